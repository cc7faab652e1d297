"""What was acknowledged counts exactly once, whatever dies between a report and its checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fedrecon.aggregator.group_events import Accepted, Closed
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.aggregator.summing import CODEC
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_service_channel
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import CloseRequest, JoinRequest, UploadStatusRequest
from fedrecon.v1.task_pb2 import SecureSum
from fedrecon.wire.digests import digest_of
from support.aggregator_sample import (
    ROUND,
    SEAL_KEY,
    TOKEN_KEY,
    Aggregator,
    Device,
    make_device,
    merging,
    now,
    opened,
    refused,
    running,
    total_of,
)


class FaultyJournal:
    """A journal whose appends of one kind of event go wrong.

    Attributes:
        fault: called in place of each such append; gets a function that really appends. None: nothing goes wrong.
        reached: set when such an append was asked for.
    """

    def __init__(self, journal: Journal, kind: type) -> None:
        self._journal = journal
        self._kind = kind
        self.fault: Callable[[Callable[[], Any]], Any] | None = None
        self.reached = asyncio.Event()

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        async def really() -> None:
            await self._journal.append(task, appends, lease=lease)

        of_group = appends[0].stream.startswith("group/") and appends[0].events  # without, only versions are checked
        of_kind = of_group and isinstance(CODEC.decode(appends[0].events[0]), self._kind)
        if self.fault is None or not of_kind:
            await really()
        else:
            await self.fault(really)

    async def die_before(self, really: Callable[[], Any]) -> None:
        """Never appends, and never returns."""
        del really
        self.reached.set()
        await asyncio.Event().wait()

    async def die_after(self, really: Callable[[], Any]) -> None:
        """Appends, and never returns."""
        await really()
        self.reached.set()
        await asyncio.Event().wait()

    def hold(self) -> asyncio.Event:
        """Lets appends wait for the event that is returned."""
        released = asyncio.Event()

        async def wait(really: Callable[[], Any]) -> None:
            self.reached.set()
            await released.wait()
            await really()

        self.fault = wait
        return released

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


async def abandoned(journal: FaultyJournal, *calls: Any) -> None:
    """Makes calls of which none is answered, because the aggregator is stuck in the journal's fault."""
    begun = [asyncio.ensure_future(call) for call in calls]
    await journal.reached.wait()
    for call in begun:
        assert not call.done()
        call.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    journal.reached.clear()


async def added(aggregator: Aggregator, reports: int) -> None:
    """Returns once so many reports are in a sum, durable or not."""
    while aggregator.counted("report_bytes_count") < reports:  # noqa: ASYNC110 - seen from outside
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def a_journal(kind: str, folder: Path) -> AsyncIterator[Journal]:
    if kind == "memory":
        yield MemoryJournal()
        return
    server = EmbeddedValkey(folder / "valkey")
    await asyncio.to_thread(server.start)
    try:
        journal = await RedisJournal.connect(server.url)
        try:
            yield journal
        finally:
            await journal.close()
    finally:
        await asyncio.to_thread(server.stop)


def sealed_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "aggregator" / "sums").glob("??/*") if path.is_file()]


async def closing(aggregator: Aggregator, *, discard: bool = False) -> Any:
    return await aggregator.sums.Close(CloseRequest(round=ROUND, discard=discard), timeout=20)


async def refuses_reports(aggregator: Aggregator, group: bytes) -> None:
    """Returns once a round that is being closed takes no more reports."""
    latecomer = make_device(999)
    while True:
        try:
            await aggregator.devices.Join(JoinRequest(proof=latecomer.proof), timeout=5)
        except grpc.aio.AioRpcError:
            break
        await asyncio.sleep(0.01)
    await refused(latecomer.upload(aggregator, group), grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")


async def reported(aggregator: Aggregator) -> int:
    answer = await closing(aggregator)
    (group,) = answer.groups
    assert group.phase == aggregator_pb2.GROUP_PHASE_CLOSED
    return int(group.reports)


@pytest.mark.parametrize("kind", ["memory", "valkey"])
async def test_a_batch_that_was_not_journalled_never_happened(tmp_path: Path, kind: str) -> None:
    devices = [make_device(seed) for seed in range(6)]
    async with a_journal(kind, tmp_path) as kept:
        journal: Any = FaultyJournal(kept, Accepted)
        async with running(tmp_path, journal) as aggregator:
            checkpoint, groups = await opened(aggregator)
            await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices[:3]))
            journal.fault = journal.die_before
            await abandoned(journal, *(device.upload(aggregator, groups[0]) for device in devices[3:]))
            assert len(sealed_files(tmp_path)) == 2
        journal.fault = None
        async with running(tmp_path, journal) as aggregator:
            assert aggregator.counted("aggregator_recovered_reports_total") == 3
            for device in devices:  # those that were acknowledged may ask again; the others must
                await device.upload(aggregator, groups[0])
            assert await reported(aggregator) == 6
            merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
            assert merged.sum_digest == digest_of(total_of(devices))


@pytest.mark.parametrize("kind", ["memory", "valkey"])
async def test_a_batch_that_was_journalled_counts_although_nobody_was_told(tmp_path: Path, kind: str) -> None:
    devices = [make_device(seed) for seed in range(6)]
    async with a_journal(kind, tmp_path) as kept:
        journal: Any = FaultyJournal(kept, Accepted)
        async with running(tmp_path, journal) as aggregator:
            checkpoint, groups = await opened(aggregator)
            await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices[:2]))
            journal.fault = journal.die_after
            await abandoned(journal, devices[2].upload(aggregator, groups[0]))
        journal.fault = None
        async with running(tmp_path, journal) as aggregator:
            status = await aggregator.devices.UploadStatus(
                UploadStatusRequest(proof=devices[2].proof, group=groups[0]), timeout=5
            )
            assert status.acknowledged
            assert status.digest == digest_of(devices[2].vector)
            await devices[2].upload(aggregator, groups[0])
            await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices[3:]))
            assert await reported(aggregator) == 6
            merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
            assert merged.sum_digest == digest_of(total_of(devices))


@pytest.mark.parametrize("applied", [False, True], ids=["lost", "applied"])
async def test_reports_wait_while_the_journal_is_away_and_count_once(tmp_path: Path, applied: bool) -> None:
    devices = [make_device(seed) for seed in range(5)]
    journal: Any = FaultyJournal(MemoryJournal(), Accepted)
    failures, back = 0, asyncio.Event()

    async def unavailable(really: Callable[[], Any]) -> None:
        nonlocal failures
        if back.is_set():
            await really()
            return
        failures += 1
        if applied and failures == 1:
            await really()
        if failures == 2:
            journal.reached.set()
        raise JournalUnavailable("away")

    async with running(tmp_path, journal) as aggregator:
        checkpoint, groups = await opened(aggregator)
        journal.fault = unavailable
        uploads = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in devices]
        await added(aggregator, 5)
        await abandoned(journal, devices[0].upload(aggregator, groups[0]))
        assert not any(upload.done() for upload in uploads)
        back.set()
        await asyncio.gather(*uploads)
        await devices[0].upload(aggregator, groups[0])
        assert await reported(aggregator) == 5
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))


async def test_a_close_whose_answer_was_lost_is_closed(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(3)]
    journal: Any = FaultyJournal(MemoryJournal(), Closed)
    async with running(tmp_path, journal) as aggregator:
        checkpoint, groups = await opened(aggregator)
        for device in devices:
            await device.upload(aggregator, groups[0])
        journal.fault = journal.die_after
        await abandoned(journal, closing(aggregator))
    journal.fault = None
    async with running(tmp_path, journal) as aggregator:
        assert await reported(aggregator) == 3
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))
        assert (await opened(aggregator))[1] == groups


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, Path.unlink], ids=["damaged", "missing"])
async def test_a_lost_sum_makes_its_reports_void(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    journal, device = MemoryJournal(), make_device(1)
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        await device.upload(aggregator, groups[0])
    (path,) = sealed_files(tmp_path)
    harm(path)
    async with running(tmp_path, journal) as aggregator:
        asking = UploadStatusRequest(proof=device.proof, group=groups[0])
        status = await aggregator.devices.UploadStatus(asking, timeout=5)
        assert status.fate == coordinator_pb2.REPORT_FATE_VOID
        late = make_device(2).upload(aggregator, groups[0])
        await refused(late, grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")
        answer = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [(one.phase, one.voided) for one in answer.groups] == [(aggregator_pb2.GROUP_PHASE_ABORTED, 1)]
        assert aggregator.counted("secure_sum_voided_total") == 1


async def test_a_sum_lost_after_closing_is_not_merged(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator)
        await make_device(1).upload(aggregator, groups[0])
        assert await reported(aggregator) == 1
        flip(sealed_files(tmp_path)[0])
        merge = aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        await refused(merge, grpc.StatusCode.DATA_LOSS, "SUM_LOST")
        answer = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [one.phase for one in answer.groups] == [aggregator_pb2.GROUP_PHASE_ABORTED]


async def test_an_older_sum_cannot_pass_for_the_newest(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        await make_device(1).upload(aggregator, groups[0])
        (older,) = sealed_files(tmp_path)
        content = older.read_bytes()
        await make_device(2).upload(aggregator, groups[0])
        (newer,) = sealed_files(tmp_path)
    newer.write_bytes(content)
    async with running(tmp_path, journal) as aggregator:
        answer = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [(one.phase, one.voided) for one in answer.groups] == [(aggregator_pb2.GROUP_PHASE_ABORTED, 2)]


async def test_a_full_disk_refuses_reports_and_keeps_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [make_device(seed) for seed in range(6)]
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator)
        await devices[0].upload(aggregator, groups[0])

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(descriptor))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            for device in devices[1:3]:
                explained = await refused(
                    device.upload(aggregator, groups[0]), grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"
                )
                assert explained.retry.max_milliseconds > 0
        assert len(sealed_files(tmp_path)) == 1
        await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices[2:]))
        assert await reported(aggregator) == 5
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of([devices[0], *devices[2:]]))


async def test_a_disk_that_fails_refuses_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as aggregator:
        _, groups = await opened(aggregator)

        def broken(*arguments: object) -> bytes:
            del arguments
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Snapshots, "put", broken)
        upload = make_device(1).upload(aggregator, groups[0])
        await refused(upload, grpc.StatusCode.UNAVAILABLE, "STORAGE_FAILED")


async def test_reports_that_arrive_while_a_batch_is_written_share_the_next(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(20)]
    kept = MemoryJournal()
    journal: Any = FaultyJournal(kept, Accepted)
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        released = journal.hold()
        uploads = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in devices]
        await added(aggregator, 20)
        released.set()
        await asyncio.gather(*uploads)
        (stream,) = await kept.streams("films", "group/")
        batches = [CODEC.decode(one.event) for one in (await kept.load("films", stream)).events[1:]]
        assert len(batches) == 2
        assert await reported(aggregator) == 20


async def test_a_batch_that_is_being_answered_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [make_device(seed) for seed in range(3)]
    cleaning, cleaned, delete = threading.Event(), threading.Event(), Snapshots.delete

    def slowly(self: Snapshots, digest: bytes) -> None:
        cleaning.set()
        cleaned.wait()
        delete(self, digest)

    monkeypatch.setattr(Snapshots, "delete", slowly)
    sums = SecureSum(protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=3, maximum_weight=10)
    async with running(tmp_path) as aggregator:
        _, groups = await opened(aggregator, secure_sum=sums, cohort_size=3)
        await devices[0].upload(aggregator, groups[0])
        second = asyncio.create_task(devices[1].upload(aggregator, groups[0]))
        await asyncio.to_thread(cleaning.wait)
        third = asyncio.create_task(devices[2].upload(aggregator, groups[0]))
        await added(aggregator, 3)
        cleaned.set()
        await asyncio.gather(second, third)
        assert await reported(aggregator) == 3


async def test_closing_writes_what_has_arrived(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(4)]
    journal: Any = FaultyJournal(MemoryJournal(), Accepted)
    async with running(tmp_path, journal) as aggregator:
        checkpoint, groups = await opened(aggregator)
        released = journal.hold()
        uploads = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in devices]
        await added(aggregator, 4)
        closed = asyncio.create_task(reported(aggregator))
        await refuses_reports(aggregator, groups[0])
        released.set()
        assert await closed == 4
        await asyncio.gather(*uploads)
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))


async def test_discarding_refuses_what_is_not_durable_and_voids_what_is(tmp_path: Path) -> None:
    first, *others = [make_device(seed) for seed in range(4)]
    journal: Any = FaultyJournal(MemoryJournal(), Accepted)
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        released = journal.hold()
        written = asyncio.create_task(first.upload(aggregator, groups[0]))
        await journal.reached.wait()
        waiting = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in others]
        await added(aggregator, 4)
        discarded = asyncio.create_task(closing(aggregator, discard=True))
        await refuses_reports(aggregator, groups[0])
        released.set()
        assert (await written).digest == digest_of(first.vector)
        for upload in waiting:
            await refused(upload, grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")
        answer = await discarded
        assert [(one.phase, one.voided) for one in answer.groups] == [(aggregator_pb2.GROUP_PHASE_ABORTED, 1)]


async def test_a_group_that_somebody_else_writes_to_is_given_up_here(tmp_path: Path) -> None:
    journal, device = MemoryJournal(), make_device(1)
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        (stream,) = await journal.streams("films", "group/")
        foreign = CODEC.encode(Closed(0, b"", now()))
        await journal.append("films", [Append(stream, 1, (foreign,))])
        await refused(device.upload(aggregator, groups[0]), grpc.StatusCode.ABORTED, "GROUP_MOVED")


async def test_an_attempt_lies_on_one_aggregator(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with running(tmp_path / "a", journal) as first, running(tmp_path / "b", journal) as second:
        _, groups = await opened(first)
        await refused(opened(second), grpc.StatusCode.FAILED_PRECONDITION, "HELD_ELSEWHERE")
        await make_device(1).upload(first, groups[0])
    async with running(tmp_path / "b", journal) as second:
        assert second.counted("aggregator_recovered_reports_total") == 0
        await refused(closing(second), grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    first = Snapshots(tmp_path, SEAL_KEY, LocalBlobs(tmp_path / "sums"))
    with pytest.raises(UserMistake, match="Another aggregator"):
        Snapshots(tmp_path, SEAL_KEY, LocalBlobs(tmp_path / "sums"))
    first.close()
    second = Snapshots(tmp_path, SEAL_KEY, LocalBlobs(tmp_path / "sums"))
    assert second.holder == first.holder
    second.close()


class Process:
    """An aggregator as a process of its own, which is killed and started again at the same address."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self._redis_url = redis_url
        self._port = "0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fedrecon.aggregator",
            "--ready-file",
            str(ready),
            env={
                **os.environ,
                "FEDRECON_HOME": str(self.folder),
                "FEDRECON_REDIS_URL": self._redis_url,
                "FEDRECON_SEAL_KEY": SEAL_KEY.hex(),
                "FEDRECON_ROUND_TOKEN_KEY": TOKEN_KEY.hex(),
                "FEDRECON_AGGREGATOR_PORT": self._port,
                "FEDRECON_METRICS_PORT": "none",
                "FEDRECON_LOG_LEVEL": "error",
                "FEDRECON_ENROLMENT": "off",
            },
        )
        while not ready.exists():
            assert self._process.returncode is None
            await asyncio.sleep(0.02)
        address: str = json.loads(ready.read_text())["address"]
        self._port = address.rpartition(":")[2]
        return address

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert await self._process.wait() == 0


async def test_kill_9_in_the_middle_of_batches_loses_and_doubles_nothing(tmp_path: Path) -> None:
    generator = random.Random(7)
    devices = [make_device(seed) for seed in range(40)]
    acknowledged: set[bytes] = set()
    killed, late = asyncio.Event(), devices[30:]
    server = EmbeddedValkey(tmp_path / "valkey")
    await asyncio.to_thread(server.start)
    process = Process(tmp_path, server.url)
    try:
        address = await process.start()
        async with open_service_channel(address, Settings(round_token_key=TOKEN_KEY.hex())) as channel:
            aggregator = Aggregator(
                address,
                channel,
                Metrics.create("test"),
                LocalBlobs(tmp_path / "blobs"),
                None,
                tmp_path,
                asyncio.Event(),
                SystemClock(),
            )
            checkpoint, groups = await opened(aggregator, cohort_size=40)

            async def report(device: Device) -> None:
                await asyncio.sleep(generator.random())
                if device in late:
                    await killed.wait()
                while device.session not in acknowledged:
                    try:
                        await device.upload(aggregator, groups[0], 3)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                            raise
                        await asyncio.sleep(0.05)
                    else:
                        acknowledged.add(device.session)

            reports = asyncio.gather(*(report(device) for device in devices))
            while len(acknowledged) < 10 and not reports.done():  # noqa: ASYNC110 - a test's own patience
                await asyncio.sleep(0.01)
            await process.kill()
            killed.set()
            await process.start()
            await reports
            closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=20)
            assert [group.reports for group in closed.groups] == [len(devices)]
            merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=20)
            assert merged.sum_digest == digest_of(total_of(devices))
            await process.kill()
            await process.start()
            assert await aggregator.sums.Merge(merging(checkpoint, groups), timeout=20) == merged
        await process.stop()
    finally:
        await asyncio.to_thread(server.stop)
