"""What was acknowledged counts exactly once, whatever dies between a report and its checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fedrecon.aggregator.groups import Accepted, Closed
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.aggregator.summing import CODEC
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, Lease, StaleWriter
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.tls import open_channel
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import CloseRequest, UploadStatusRequest
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
    """A journal whose appends of one kind of event go wrong, once or for a while.

    Attributes:
        fault: called around each such append; gets a function that really appends.
    """

    def __init__(self, journal: Journal, kind: type) -> None:
        self._journal = journal
        self._kind = kind
        self.fault: Callable[[Callable[[], Any]], Any] | None = None

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        async def really() -> None:
            await self._journal.append(task, appends, lease=lease)

        of_kind = appends[0].stream.startswith("group/") and isinstance(CODEC.decode(appends[0].events[0]), self._kind)
        if self.fault is None or not of_kind:
            await really()
        else:
            await self.fault(really)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


async def forever() -> None:
    await asyncio.Event().wait()


async def die_before(really: Callable[[], Any]) -> None:
    del really
    await forever()


async def die_after(really: Callable[[], Any]) -> None:
    await really()
    await forever()


async def gave_up(call: Any) -> None:
    """Waits for a call that its caller stops waiting for."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


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


async def reported(aggregator: Aggregator) -> int:
    answer = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)
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
            journal.fault = die_before
            await asyncio.gather(*(gave_up(device.upload(aggregator, groups[0], 0.5)) for device in devices[3:]))
            assert len(sealed_files(tmp_path)) == 2
        journal.fault = None
        async with running(tmp_path, journal) as aggregator:
            assert len(sealed_files(tmp_path)) == 1
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
            journal.fault = die_after
            await gave_up(devices[2].upload(aggregator, groups[0], 0.5))
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
    failures = 0

    async def unavailable(really: Callable[[], Any]) -> None:
        nonlocal failures
        failures += 1
        if applied:
            with contextlib.suppress(StaleWriter):
                await really()
        if failures < 3:
            raise JournalUnavailable("away")
        journal.fault = None
        if applied:
            raise JournalUnavailable("away")
        await really()

    async with running(tmp_path, journal) as aggregator:
        checkpoint, groups = await opened(aggregator)
        journal.fault = unavailable
        uploads = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in devices]
        await gave_up(devices[0].upload(aggregator, groups[0], 0.1))
        assert not any(upload.done() for upload in uploads)
        await asyncio.gather(*uploads)
        await devices[0].upload(aggregator, groups[0])
        assert failures == 3
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
        journal.fault = die_after
        await gave_up(aggregator.sums.Close(CloseRequest(round=ROUND), timeout=0.3))
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
    journal: Any = FaultyJournal(MemoryJournal(), Accepted)
    batches = []

    async def slow(really: Callable[[], Any]) -> None:
        batches.append(1)
        await asyncio.sleep(0.2)
        await really()

    journal.fault = slow
    async with running(tmp_path, journal) as aggregator:
        _, groups = await opened(aggregator)
        await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices))
        assert len(batches) <= 4
        assert await reported(aggregator) == 20


async def test_closing_writes_what_has_arrived_and_discarding_does_not(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(4)]
    journal: Any = FaultyJournal(MemoryJournal(), Accepted)

    async def slow(really: Callable[[], Any]) -> None:
        await asyncio.sleep(0.3)
        await really()

    journal.fault = slow
    async with running(tmp_path, journal) as aggregator:
        checkpoint, groups = await opened(aggregator)
        uploads = [asyncio.create_task(device.upload(aggregator, groups[0])) for device in devices[:3]]
        await asyncio.sleep(0.1)
        assert await reported(aggregator) == 3
        await asyncio.gather(*uploads)
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices[:3]))


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
        closing = second.sums.Close(CloseRequest(round=ROUND), timeout=5)
        await refused(closing, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    first = Snapshots(tmp_path, SEAL_KEY)
    with pytest.raises(UserMistake, match="Another aggregator"):
        Snapshots(tmp_path, SEAL_KEY)
    first.close()
    second = Snapshots(tmp_path, SEAL_KEY)
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
    server = EmbeddedValkey(tmp_path / "valkey")
    await asyncio.to_thread(server.start)
    process = Process(tmp_path, server.url)
    try:
        address = await process.start()
        async with open_channel(address) as channel:
            aggregator = Aggregator(
                channel, Metrics.create("test"), LocalBlobs(tmp_path / "blobs"), None, tmp_path, asyncio.Event()
            )
            checkpoint, groups = await opened(aggregator, cohort_size=40)

            async def report(device: Device) -> None:
                await asyncio.sleep(generator.random())
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
            await asyncio.sleep(generator.uniform(0.3, 0.6))
            assert 0 < len(acknowledged) < len(devices)
            await process.kill()
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
