"""A journal that is put back to an older state stops its tasks, until an operator has decided."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedrecon.coordinator import book, ledger, runner
from fedrecon.coordinator.round_state import Phase
from fedrecon.coordinator.tasks import State, Task
from fedrecon.coordinator.watermarks import read_watermark
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Journal
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.v1 import admin_pb2
from support.coordinating import CALL_SECONDS, TASK, Coordinator, House, house, make_spec


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "LEASE_MILLISECONDS", 400)
    monkeypatch.setattr(runner, "RENEW_MILLISECONDS", 100)
    monkeypatch.setattr(runner, "_ACQUIRE_MILLISECONDS", 20)


class Store:
    """A Valkey whose data can be copied, and put back to a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "valkey"
        self.server = EmbeddedValkey(self.folder)
        self.server.start()

    async def copy(self, name: str) -> Path:
        copied = self.folder.with_name(name)
        await asyncio.to_thread(shutil.copytree, self.folder, copied, ignore=shutil.ignore_patterns("*.sock"))
        return copied

    async def put_back(self, copied: Path) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(shutil.rmtree, self.folder)
        await asyncio.to_thread(shutil.copytree, copied, self.folder)
        await asyncio.to_thread(self.server.start)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path)
    yield made
    await asyncio.to_thread(made.server.stop)


@pytest.fixture
async def journal(store: Store) -> AsyncIterator[Journal]:
    connected = await RedisJournal.connect(store.server.url)
    yield connected
    await connected.close()


async def commit(built: House, coordinator: Coordinator, number: int) -> bytes:
    """Runs a round and returns the digest of its checkpoint, once the watermark says so too."""
    assigned = await coordinator.assign(1, 2, 3)
    await built.sums.report(assigned[0].round, 3)
    committed = (await coordinator.until(Phase.COMMITTED, number)).committed
    assert committed is not None
    async with asyncio.timeout(CALL_SECONDS):
        while (noted := read_watermark(built.blobs, TASK)) is None or noted.committed < number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await coordinator.until(Phase.SELECTING, number + 1)
    return committed.checkpoint.digest


async def until_paused(journal: Journal) -> Task:
    async with asyncio.timeout(CALL_SECONDS):
        while True:
            task = (await ledger.load_task(journal, TASK)).task
            assert task is not None
            if task.state is State.PAUSED:
                return task
            await asyncio.sleep(0.01)


async def resume(coordinator: Coordinator) -> None:
    await coordinator.until_ready()
    await coordinator.admin.ResumeTask(admin_pb2.ResumeTaskRequest(task=TASK), timeout=CALL_SECONDS)


async def test_a_running_coordinator_stops_when_the_store_went_back(
    tmp_path: Path, store: Store, journal: Journal
) -> None:
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan))
        await commit(built, coordinator, 1)
        older = await store.copy("older")
        lost = await commit(built, coordinator, 2)
        await store.put_back(older)
        checking_in = [asyncio.create_task(coordinator.check_in(device)) for device in (1, 2, 3)]
        paused = await until_paused(journal)
        assert "round 2 was committed" in paused.reason
        assert lost.hex()[:12] in paused.reason
        assert paused.committed == 1
        attempts = (await ledger.load_round(journal, TASK, 2)).attempts
        assert attempts[-1].abandoned is not None, "its reports are void, not counted a second time"
        assert built.blobs.size(lost) is not None
        for call in checking_in:  # else they wait for a selection until their deadline
            call.cancel()
        await asyncio.gather(*checking_in, return_exceptions=True)
        await resume(coordinator)
        again = await commit(built, coordinator, 2)
        assert built.blobs.size(again) is not None
        assert (await coordinator.task()).committed == 2


async def test_a_coordinator_that_starts_finds_that_the_store_went_back(
    tmp_path: Path, store: Store, journal: Journal
) -> None:
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan))
        await commit(built, coordinator, 1)
        older = await store.copy("older")
        lost = await commit(built, coordinator, 2)
        await coordinator.stop()
        newer = await store.copy("newer")

        await store.put_back(older)
        coordinator = await built.coordinator()
        paused = await until_paused(journal)
        assert "fedrecon task resume films" in paused.reason
        await coordinator.stop()
        coordinator = await built.coordinator()
        assert (await until_paused(journal)).reason == paused.reason, "it stays until somebody decides"
        entries = await ledger.load_task_entries(journal, TASK)
        assert [type(entry.event).__name__ for entry in entries].count("HistoryLost") == 1
        await coordinator.stop()

        await store.put_back(newer)  # a newer copy was found: nothing is lost
        coordinator = await built.coordinator()
        await coordinator.until_ready()
        task = await coordinator.task()
        assert (task.state, task.committed, task.checkpoint.digest) == (admin_pb2.TASK_STATE_RUNNING, 2, lost)
        await commit(built, coordinator, 3)


async def test_a_loss_that_was_accepted_is_not_told_again(tmp_path: Path, store: Store, journal: Journal) -> None:
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan))
        await commit(built, coordinator, 1)
        older = await store.copy("older")
        await commit(built, coordinator, 2)
        await coordinator.stop()
        await store.put_back(older)
        coordinator = await built.coordinator()
        await until_paused(journal)
        await resume(coordinator)
        await coordinator.kill()
        coordinator = await built.coordinator()
        await coordinator.until_ready()
        await commit(built, coordinator, 2)
        await coordinator.stop()
        coordinator = await built.coordinator()
        await coordinator.until_ready()
        assert (await coordinator.task()).state == admin_pb2.TASK_STATE_RUNNING
