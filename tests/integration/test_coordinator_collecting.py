"""Blobs that nothing names any more are removed, whatever happens meanwhile; no other ever is."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedrecon.coordinator import collecting, ledger, tasks
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.collecting import LEASE_NAME, Collector, Swept
from fedrecon.coordinator.editing import find_checkpoint
from fedrecon.coordinator.entries import REGISTRY_TASK, TASK_STREAM
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.registering import read_spec, register_task
from fedrecon.coordinator.round_events import Blob, Opened
from fedrecon.coordinator.specs import terms_of
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.watermarks import keep_watermark
from fedrecon.ops.blobs import BlobStore, LocalBlobs, open_blobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal import Append
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.admin_pb2 import CollectBlobsRequest
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.manifests import read_manifest
from support.coordinating import CALL_SECONDS, KEY, TASK, house, make_plan, make_spec, until_true

KEPT = 3
PLAN_PARTS = 3  # manifest, initial checkpoint, vocabulary


class Deployment:
    """A journal and blobs with tasks, and a collector over them."""

    def __init__(self, blobs: Any) -> None:
        self.blobs = blobs
        self.journal = MemoryJournal()
        self.books: dict[str, Book] = {}
        none: Any = None
        self.around = Surroundings(
            self.journal,
            blobs,
            none,
            SystemClock(),
            Measures(Metrics.create("coordinator")),
            KEY,
            KeyRing(KEY),
            none,
            kept_checkpoints=KEPT,
        )
        self.collector = Collector(self.around)

    def spec(self, name: str) -> TaskSpec:
        spec = make_spec(make_plan(self.blobs))
        spec.name = name
        return spec

    async def register(self, name: str = TASK, spec: TaskSpec | None = None) -> None:
        created = read_spec(spec or self.spec(name), self.blobs, "olga")
        await register_task(self.journal, name, created, 1)
        book = self.books[name] = Book(name, self.journal, SystemClock(), "me")
        assert await book.acquire()
        await book.read()

    def put(self, content: str) -> Blob:
        return Blob(self.blobs.put(content.encode()), len(content))

    async def commit(self, name: str = TASK, content: str = "") -> tuple[Blob, Blob]:
        book = self.books[name]
        number = book.task.number
        checkpoint = self.put(content or f"checkpoint {name} {number}")
        state = self.put(f"state {name} {number}")
        await book.record_task(tasks.CheckpointCommitted(number, 1, checkpoint, state, 3, 30))
        return checkpoint, state

    def make_old(self) -> None:
        """Lets all that lies there look as if it had lain there for two days."""
        for blob in list(self.blobs.stored()):
            path = self.blobs._path(blob.digest)
            if isinstance(self.blobs, LocalBlobs):
                os.utime(path, (time.time() - 2 * 86_400,) * 2)
            else:
                file = self.blobs._store.store[self.blobs._store._strip_protocol(path)]
                file.created = file.modified = datetime.now(UTC) - timedelta(days=2)

    def has(self, *blobs: Blob) -> list[bool]:
        return [self.blobs.size(blob.digest) is not None for blob in blobs]

    def between_mark_and_sweep(self, act: Callable[[], object]) -> None:
        """Lets something happen once between marking and sweeping."""
        sweep = self.collector._sweep

        def first_act(named: frozenset[bytes], since: int, *, dry_run: bool) -> Swept:
            act()
            return sweep(named, since, dry_run=dry_run)

        self.collector._sweep = first_act  # type: ignore[method-assign]


@pytest.fixture(params=["local", "memory"])
def deployed(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    blobs: BlobStore = open_blobs(
        tmp_path / "blobs" if request.param == "local" else f"memory://{secrets.token_hex(8)}"
    )
    return Deployment(blobs)


@pytest.fixture
def local(tmp_path: Path) -> Deployment:
    return Deployment(LocalBlobs(tmp_path))


async def test_what_can_be_rolled_back_to_stays_and_the_rest_goes(deployed: Deployment) -> None:
    await deployed.register()
    commits = [await deployed.commit() for _ in range(8)]
    orphan, export = deployed.put("checkpoint of a merge that was abandoned"), deployed.put("recommender")
    deployed.make_old()
    young = deployed.put("an upload that becomes a task soon")
    would = await deployed.collector.collect(dry_run=True)
    assert all(deployed.has(orphan, export, young, *(blob for commit in commits for blob in commit)))
    swept = await deployed.collector.collect()
    assert swept == would
    assert [deployed.has(*commit) for commit in commits] == [[False, False]] * 5 + [[True, True]] * KEPT
    assert deployed.has(orphan, export, young) == [False, False, True]
    assert (swept.needed, swept.young, swept.removed) == (PLAN_PARTS + 2 * KEPT, 1, 2 * 5 + 2)
    assert swept.young_bytes == young.size
    spec = TaskSpec.FromString(deployed.books[TASK].task.created.spec)
    manifest = read_manifest(deployed.blobs.read(spec.plan.digest))
    for part in (manifest.initial_checkpoint, manifest.vocabularies["items"]):
        assert deployed.blobs.size(part.digest) is not None
    assert (await deployed.collector.collect()).removed == 0


async def test_the_live_checkpoint_stays_however_old_it_is(local: Deployment) -> None:
    await local.register()
    first = await local.commit()
    await local.commit()
    entries = await ledger.load_task_entries(local.journal, TASK)
    rolled = find_checkpoint(local.books[TASK].task, entries, 1, local.blobs)
    await local.books[TASK].record_task(replace(rolled, operator="olga"))
    for _ in range(4):
        await local.books[TASK].record_task(tasks.TaskPaused("by itself"))
        await local.books[TASK].record_task(tasks.TaskResumed("olga"))
    local.make_old()
    await local.collector.collect()
    assert local.has(*first) == [True, True]


async def test_a_blob_that_another_task_needs_stays(local: Deployment) -> None:
    await local.register("films")
    await local.register("books")
    shared, _ = await local.commit("films", "the same bytes")
    again, _ = await local.commit("books", "the same bytes")
    assert shared == again
    for _ in range(5):
        await local.commit("films")
    local.make_old()
    await local.collector.collect()
    assert local.has(shared) == [True]
    for _ in range(5):
        await local.commit("books")
    local.make_old()
    await local.collector.collect()
    assert local.has(shared) == [False]


async def test_what_the_round_under_way_names_stays(local: Deployment) -> None:
    await local.register()
    book = local.books[TASK]
    other = local.put("what an older version of the task started from")
    spec = TaskSpec.FromString(book.task.spec)
    await book.record(1, Opened(TASK, 1, 1, terms_of(spec), other, None, book.task.spec))
    local.make_old()
    await local.collector.collect()
    assert local.has(other) == [True]


async def test_a_merge_that_makes_an_old_checkpoint_again_is_not_robbed_of_it(deployed: Deployment) -> None:
    await deployed.register()
    old = deployed.put("the same checkpoint as that of an abandoned merge")
    deployed.make_old()
    again: list[Blob] = []
    deployed.between_mark_and_sweep(
        lambda: again.append(deployed.put("the same checkpoint as that of an abandoned merge"))
    )
    assert (await deployed.collector.collect()).removed == 0
    assert again == [old]
    assert deployed.has(old) == [True]


async def test_a_task_that_is_registered_while_blobs_are_collected_keeps_its_plan(deployed: Deployment) -> None:
    await deployed.register("books")
    spec = deployed.spec("films")
    vocabulary = deployed.put("uploaded long ago, and never used")
    deployed.make_old()
    deployed.between_mark_and_sweep(lambda: read_spec(spec, deployed.blobs, "olga"))
    swept = await deployed.collector.collect()
    assert swept.removed == 1
    assert deployed.has(vocabulary) == [False]
    await deployed.register("films", spec)


async def test_a_checkpoint_that_is_rolled_back_to_meanwhile_stays(deployed: Deployment) -> None:
    await deployed.register()
    commits = [await deployed.commit() for _ in range(KEPT + 2)]
    entries = await ledger.load_task_entries(deployed.journal, TASK)
    task = deployed.books[TASK].task
    deployed.make_old()
    deployed.between_mark_and_sweep(lambda: find_checkpoint(task, entries, 1, deployed.blobs))
    await deployed.collector.collect()
    assert [deployed.has(*commit) for commit in commits[:2]] == [[True, True], [False, False]]


async def test_a_sweep_that_was_killed_is_finished_by_the_next(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed.register()
    for _ in range(8):
        await deployed.commit()
    deployed.make_old()
    really, calls = deployed.blobs.delete_unless_written, 0

    def dying(digest: bytes, since: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ConnectionAbortedError
        return bool(really(digest, since))

    monkeypatch.setattr(deployed.blobs, "delete_unless_written", dying)
    with pytest.raises(ConnectionAbortedError):
        await deployed.collector.collect()
    monkeypatch.undo()
    assert (await deployed.collector.collect()).removed == 2 * 5 - 3
    assert (await deployed.collector.collect()).needed == PLAN_PARTS + 2 * KEPT


async def test_a_journal_that_knows_no_task_removes_nothing(local: Deployment) -> None:
    orphan = local.put("orphan")
    local.make_old()
    swept = await local.collector.collect()
    assert "no task is registered" in swept.blocked
    assert local.has(orphan) == [True]


async def test_a_journal_that_has_lost_a_task_removes_nothing(local: Deployment) -> None:
    await local.register("films")
    await local.register("books")
    for name, book in local.books.items():
        keep_watermark(local.blobs, name, book.task, book.version)
    orphan = local.put("orphan")
    local.make_old()
    emptied = Deployment(local.blobs)
    await emptied.register("films")
    local.make_old()
    swept = await emptied.collector.collect()
    assert "books" in swept.blocked
    assert local.has(orphan) == [True]
    assert (await local.collector.collect()).removed == 1


async def test_a_lost_checkpoint_stays_until_its_loss_is_accepted(local: Deployment) -> None:
    await local.register()
    await local.commit()
    older = local.journal._tasks[TASK].streams[TASK_STREAM].events.copy()
    lost = await local.commit()
    book = local.books[TASK]
    keep_watermark(local.blobs, TASK, book.task, book.version)
    local.journal._tasks[TASK].streams[TASK_STREAM].events[:] = older
    local.make_old()
    await local.collector.collect()
    assert local.has(*lost) == [True, True]


@pytest.mark.parametrize("harm", ["plan", "task"])
async def test_what_cannot_be_read_stops_the_sweep(local: Deployment, harm: str) -> None:
    await local.register()
    orphan = local.put("orphan")
    if harm == "plan":
        local.blobs.delete(TaskSpec.FromString(local.books[TASK].task.spec).plan.digest)
    else:
        await local.journal.append(TASK, [Append(TASK_STREAM, 1, (b'{"at":1,"event":"FromTheFuture"}',))])
    local.make_old()
    assert (await local.collector.collect()).blocked
    assert local.has(orphan) == [True]


async def test_coordinators_collect_in_turns(local: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_LOOK_MILLISECONDS", 5)
    await local.register()
    orphan = local.put("orphan")
    local.make_old()
    held = await local.journal.acquire(REGISTRY_TASK, LEASE_NAME, "another", 60_000)
    assert held is not None
    await local.collector._take_turn()
    assert local.has(orphan) == [True]
    await local.journal.release(held)
    await local.collector._take_turn()
    assert local.has(orphan) == [False]
    second = local.put("another orphan")
    local.make_old()
    await Collector(local.around)._take_turn()
    assert local.has(second) == [True], "the next sweep is due in an hour"


async def test_whatever_fails_the_collector_goes_on(local: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_LOOK_MILLISECONDS", 5)
    monkeypatch.setattr(collecting, "SWEEP_MILLISECONDS", 1)
    await local.register()
    orphan = local.put("orphan")
    local.make_old()
    failures = 0
    stored = local.blobs.stored

    def failing() -> Any:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise OSError("the store is away")
        return stored()

    monkeypatch.setattr(local.blobs, "stored", failing)
    running = asyncio.create_task(local.collector.run())
    try:
        await until_true(lambda: local.has(orphan) == [False])
    finally:
        running.cancel()
    assert failures >= 3


async def test_operators_ask_a_coordinator_to_collect(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan))
        orphan = built.blobs.put(b"orphan")
        os.utime(built.blobs._path(orphan), (1, 1))
        for dry_run, is_there in ((True, True), (False, False)):
            request = CollectBlobsRequest(dry_run=dry_run)
            found = await coordinator.admin.CollectBlobs(request, timeout=CALL_SECONDS)
            assert (found.needed, found.removed, found.removed_bytes) == (PLAN_PARTS, 1, len(b"orphan"))
            assert (built.blobs.size(orphan) is not None) == is_there
