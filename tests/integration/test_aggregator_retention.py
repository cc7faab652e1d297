"""What an aggregator keeps, for how long, and what it does not let stop it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.aggregator import running as running_module
from fedrecon.aggregator.ingest import Staging
from fedrecon.aggregator.snapshots import UNNAMED_MILLISECONDS, Snapshots
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import Append
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.sealing import SealedBlobs
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import CloseRequest, UploadStatusRequest
from fedrecon.v1.common_pb2 import RoundKey
from support.aggregator_sample import ROUND, SEAL_KEY, make_device, merging, now, opened, refused, running

KEEP_HOURS = 0.01
KEEP_MILLISECONDS = 36_000
STREAM = "group/3.1/0"


def files_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "aggregator" / "sums").glob("??/*") if path.is_file()]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def test_the_sum_of_an_expired_attempt_goes_and_is_not_merged(tmp_path: Path) -> None:
    clock, journal = ManualClock(now()), MemoryJournal()
    async with running(tmp_path, journal, clock) as aggregator:
        checkpoint, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        await make_device(1).upload(aggregator, group)
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        await aggregator.sums.Merge(merging(checkpoint, [group]), timeout=5)
        assert len(files_of(tmp_path)) == 1
        await clock.advance(12_000)

        async def is_gone() -> bool:
            await clock.advance(1_000)  # files are removed in a thread
            return not files_of(tmp_path)

        await until(is_gone)
        assert len((await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)).groups) == 1
        late = aggregator.sums.Merge(merging(checkpoint, [group]), timeout=5)
        await refused(late, grpc.StatusCode.FAILED_PRECONDITION, "EXPIRED")


async def test_a_disk_that_fails_to_remove_a_sum_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, journal = ManualClock(now()), MemoryJournal()
    really, failures = Snapshots.delete, 0

    def failing(snapshots: Snapshots, digest: bytes) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise OSError(errno.EIO, "the disk fails")
        really(snapshots, digest)

    async with running(tmp_path, journal, clock) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        await make_device(1).upload(aggregator, group)
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        monkeypatch.setattr(Snapshots, "delete", failing)
        await clock.advance(12_000)

        async def is_gone() -> bool:
            await clock.advance(1_000)
            return not files_of(tmp_path)

        await until(is_gone)
        assert failures == 3


async def test_an_unreadable_group_costs_its_attempt_and_not_the_start(tmp_path: Path) -> None:
    journal = MemoryJournal()
    other = RoundKey(task="films", round=4, attempt=1)
    async with running(tmp_path, journal) as aggregator:
        _, (group,) = await opened(aggregator)
        await make_device(1).upload(aggregator, group)
        await opened(aggregator, round=other)
    version = (await journal.load("films", STREAM)).version
    await journal.append("films", [Append(STREAM, version, (b'{"event":"FromTheFuture"}',))])
    async with running(tmp_path, journal) as aggregator:
        found = await aggregator.sums.Close(CloseRequest(round=other), timeout=5)
        assert found.groups[0].phase == aggregator_pb2.GROUP_PHASE_ABORTED, "nobody had reported to it"
        gone = aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        await refused(gone, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")
        told = await refused(opened(aggregator), grpc.StatusCode.FAILED_PRECONDITION, "UNREADABLE_GROUPS")
        assert "FromTheFuture" in told.message


async def test_groups_of_a_replaced_disk_are_removed_when_everybody_has_forgotten_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_LEFTOVERS_MILLISECONDS", 1_000)
    clock, journal = ManualClock(now()), MemoryJournal()
    async with running(tmp_path / "old", journal, clock) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        await make_device(1).upload(aggregator, group)
    unreadable = "group/9.1/0"
    await journal.append("films", [Append(unreadable, 0, (b"not an event",))])
    async with running(tmp_path / "new", journal, clock, aggregator_keep_hours=KEEP_HOURS) as aggregator:
        await clock.advance(10_000 + 2 * KEEP_MILLISECONDS - 5_000)
        assert STREAM in await journal.streams("films", "group/")
        await clock.advance(10_000)

        async def is_gone() -> bool:
            await clock.advance(1_000)
            return not await journal.streams("films", "group/")

        await until(is_gone)


async def test_a_sum_that_no_group_names_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "_LEFTOVERS_MILLISECONDS", 1_000)
    clock, journal, sums = ManualClock(now()), MemoryJournal(), tmp_path / "sums"
    later = now() + 48 * 3_600_000
    async with (
        running(tmp_path / "a", journal, clock, sums=sums) as first,
        running(tmp_path / "b", journal, clock, sums=sums),
    ):
        _, (group,) = await opened(first, expires_unix_milliseconds=later)
        device = make_device(1)
        await device.upload(first, group)
        (named,) = sums.glob("??/*")
        unnamed = SealedBlobs(LocalBlobs(sums), SEAL_KEY).put(b"never journalled", b"")

        async def left() -> set[str]:
            await clock.advance(1_000)  # files are removed in a thread
            return {path.name for path in sums.glob("??/*")}

        for age in (UNNAMED_MILLISECONDS - 3_600_000, UNNAMED_MILLISECONDS + 1):
            assert await left() == {named.name, unnamed.hex()}
            written = (clock.now_milliseconds() - age) / 1000
            for path in sums.glob("??/*"):
                os.utime(path, (written, written))

        async def is_gone() -> bool:
            return await left() == {named.name}

        await until(is_gone)


async def test_groups_that_the_journal_forgot_are_opened_anew(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with running(tmp_path, journal) as aggregator:
        _, (group,) = await opened(aggregator)
        device = make_device(1)
        await device.upload(aggregator, group)
        journal._tasks["films"].streams.clear()  # the store was put back to an older state
        _, (anew,) = await opened(aggregator)
        assert anew != group
        status = await aggregator.devices.UploadStatus(UploadStatusRequest(proof=device.proof, group=anew), timeout=5)
        assert not status.acknowledged
        await device.upload(aggregator, anew)
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert (closed.groups[0].phase, closed.groups[0].reports) == (aggregator_pb2.GROUP_PHASE_CLOSED, 1)


async def test_a_removal_of_what_the_journal_forgot_ends(tmp_path: Path) -> None:
    clock, journal = ManualClock(now()), MemoryJournal()
    async with running(tmp_path, journal, clock, aggregator_keep_hours=KEEP_HOURS) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        await make_device(1).upload(aggregator, group)
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        del journal._tasks["films"].streams[STREAM].events[1:]
        await clock.advance(10_000 + KEEP_MILLISECONDS)

        async def is_unknown() -> bool:
            await clock.advance(1_000)  # files are removed in a thread
            with contextlib.suppress(grpc.aio.AioRpcError):
                await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
                return False
            return True

        await until(is_unknown)


async def test_uploads_to_an_expired_attempt_give_their_room_back(tmp_path: Path) -> None:
    clock, journal = ManualClock(now()), MemoryJournal()
    async with running(tmp_path, journal, clock) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        parts = make_device(1).parts(group, size=16)
        call = aggregator.devices.Upload(timeout=30)
        for _ in range(3):
            await call.write(next(parts))

        async def holds_room() -> bool:
            return aggregator.counted("aggregator_pending_bytes") > 0

        async def holds_none() -> bool:
            await clock.advance(1_000)
            return not await holds_room()

        await until(holds_room)
        await clock.advance(12_000)
        await until(holds_none)
        call.cancel()


def test_only_the_uploads_of_ended_attempts_are_dropped() -> None:
    staging = Staging(1_000, lambda: 0.0, lambda _: None)
    for number, session in ((1, b"a"), (1, b"b"), (2, b"c")):
        staging.begin((("films", number, 1, 0), session), 100, bytes(32), 0)
    staging.drop_ended(lambda part: part == ("films", 2, 1, 0))
    assert staging.bytes_held == 100
    assert staging.received((("films", 2, 1, 0), b"c")) == 0
