"""The power fails after any fsync: whatever was acknowledged by then is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.local_blobs import LocalBlobs
from fedrecon.ops.sealing import SealedBlobs
from fedrecon.v1.aggregator_pb2 import CloseRequest
from fedrecon.wire.digests import digest_of
from support.aggregator_sample import ROUND, Device, make_device, merging, opened, running, total_of
from support.chaos_disk import Disk, PowerLost

CONTENTS = [bytes([number]) * (1_000 * number) for number in range(1, 5)]


@contextlib.contextmanager
def followed(root: Path) -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        try:
            yield disk
        finally:
            disk.close()


def count_of_syncs(root: Path, work: Any) -> int:
    root.mkdir()
    with followed(root) as disk:
        work(root, [])
        return disk.synced


def put_blobs(root: Path, acknowledged: list[bytes]) -> None:
    blobs = LocalBlobs(root / "blobs")
    acknowledged.extend(blobs.put(content) for content in CONTENTS)


def put_sealed(root: Path, acknowledged: list[bytes]) -> None:
    sealed = SealedBlobs(LocalBlobs(root / "sealed"), bytes(32))
    acknowledged.extend(sealed.put(content, b"sum") for content in CONTENTS)


def test_blobs_that_were_put_survive_loss_of_power_at_any_moment(tmp_path: Path) -> None:
    moments = count_of_syncs(tmp_path / "counted", put_blobs)
    assert moments >= 2 * len(CONTENTS)
    for moment in range(moments + 1):
        root, acknowledged = tmp_path / f"disk-{moment}", list[bytes]()
        root.mkdir()
        with followed(root) as disk:
            disk.lose_power_at = moment
            with contextlib.suppress(PowerLost):
                put_blobs(root, acknowledged)
            remains = disk.remains(tmp_path / f"left-{moment}")
        left = LocalBlobs(remains / "blobs")
        for digest, content in zip(acknowledged, CONTENTS, strict=False):
            assert left.read(digest) == content
        for digest in left.digests():  # and nothing else passes for a blob
            assert digest_of(left.read(digest)) == digest
    assert len(acknowledged) == len(CONTENTS)


def test_sealed_sums_survive_loss_of_power_at_any_moment(tmp_path: Path) -> None:
    moments = count_of_syncs(tmp_path / "counted", put_sealed)
    for moment in range(moments + 1):
        root, acknowledged = tmp_path / f"disk-{moment}", list[bytes]()
        root.mkdir()
        with followed(root) as disk:
            disk.lose_power_at = moment
            with contextlib.suppress(PowerLost):
                put_sealed(root, acknowledged)
            remains = disk.remains(tmp_path / f"left-{moment}")
        left = SealedBlobs(LocalBlobs(remains / "sealed"), bytes(32))
        for digest, content in zip(acknowledged, CONTENTS, strict=False):
            assert left.read(digest, b"sum") == content


def test_a_disk_without_fsync_of_folders_would_lose_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecon.ops.durable_files.sync_folder", lambda _: None)
    (tmp_path / "disk").mkdir()
    with followed(tmp_path / "disk") as disk:
        acknowledged = list[bytes]()
        put_blobs(tmp_path / "disk", acknowledged)
        left = disk.remains(tmp_path / "left")
    assert len(acknowledged) == len(CONTENTS)
    assert list(left.iterdir()) == []


@pytest.mark.parametrize("moment", [5, 10])
async def test_reports_that_were_acknowledged_survive_loss_of_power(tmp_path: Path, moment: int) -> None:
    devices = [make_device(seed) for seed in range(12)]
    journal, acknowledged = MemoryJournal(), list[Device]()
    root = tmp_path / "disk"
    root.mkdir()
    with followed(root) as disk:
        async with running(root, journal) as aggregator:
            checkpoint, groups = await opened(aggregator)
            disk.lose_power_at = disk.synced + moment

            async def report(number: int) -> None:
                await asyncio.sleep(0.01 * number)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await devices[number].upload(aggregator, groups[0])
                    acknowledged.append(devices[number])

            await asyncio.gather(*map(report, range(len(devices))))
            left = disk.remains(tmp_path / "left")
    async with running(left, journal) as aggregator:
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [group.reports for group in closed.groups] == [len(acknowledged)]
        if acknowledged:
            merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
            assert merged.sum_digest == digest_of(total_of(acknowledged))
