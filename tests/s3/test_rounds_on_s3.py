"""Rounds whose blobs and sealed sums lie in S3, while S3 refuses, is slow and damages what it sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrecon.ops.blobs import CorruptBlob, open_blobs
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.watched_blobs import BlobsUnavailable, WatchedBlobs
from support.chaos_driver import training
from support.hand_made_folder import write_hand_made_plan
from support.s3_server import BUCKET, Door, door_before, s3_at, serving_s3

pytestmark = pytest.mark.slow

_GIVEN_UP_SECONDS = 30.0
"""Long for a write that is refused: a machine under load takes its time. By default it took 82 s on an idle one."""


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with serving_s3() as endpoint, door_before(endpoint) as opened, s3_at(opened.endpoint):
        yield opened


@pytest.mark.parametrize(("status", "outcome"), [(403, "refused"), (503, "away")])
def test_a_store_that_refuses_is_said_to_in_time_and_works_again(door: Door, status: int, outcome: str) -> None:
    outcomes: list[str] = []
    blobs = WatchedBlobs(open_blobs(f"s3://{BUCKET}/refusing{status}"), lambda told, _: outcomes.append(told))
    digest = blobs.put(b"before")
    door.status = status
    try:
        for operation in (lambda: blobs.put(b"meanwhile"), lambda: blobs.read(digest), lambda: blobs.size(digest)):
            began = time.monotonic()
            with pytest.raises(BlobsUnavailable):
                operation()
            assert time.monotonic() - began < _GIVEN_UP_SECONDS
    finally:
        door.status = 0
    assert outcomes == ["ok", *[outcome] * 3]
    assert blobs.read(digest) == b"before"
    assert blobs.read(blobs.put(b"meanwhile")) == b"meanwhile"


def test_a_byte_that_is_damaged_on_the_way_is_noticed(door: Door) -> None:
    blobs = WatchedBlobs(open_blobs(f"s3://{BUCKET}/damaged"), lambda *_: None)
    digest = blobs.put(b"content" * 1000)
    door.is_flipping = True
    try:
        with pytest.raises((BlobsUnavailable, CorruptBlob)):
            blobs.read(digest)
    finally:
        door.is_flipping = False
    assert blobs.read(digest) == b"content" * 1000


@pytest.mark.timeout(900)
async def test_no_report_is_lost_while_s3_refuses_is_slow_and_damages(door: Door, tmp_path: Path) -> None:
    home, place = tmp_path / "home", f"s3://{BUCKET}/stack"
    plan = write_hand_made_plan(tmp_path / "plan")
    stack = Stack(Settings(home=home, blobs_url=place), environment={"FEDRECON_BLOBS_URL": place})
    try:
        await asyncio.to_thread(stack.start)
        async with training(stack, plan, stack.roles["coordinator"].address, seed=1) as run:
            await run.rounds(3)
            for status in (503, 403):
                door.status = status
                await asyncio.sleep(6)
                door.status = 0
                await run.rounds(2)
            door.is_flipping = True
            await asyncio.sleep(3)
            door.is_flipping = False
            await run.rounds(2)
            door.delay_seconds = 0.3
            await run.rounds(2)
            door.delay_seconds = 0.0
            processes = {name: role.process for name, role in stack.roles.items()}
            _, verdict = await run.end()
        assert {name: each.poll() for name, each in processes.items() if each is not None} == dict.fromkeys(processes)
    finally:
        door.status, door.delay_seconds, door.is_flipping = 0, 0.0, False
        await asyncio.to_thread(stack.stop)
    assert not (home / "blobs").exists()
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.committed >= 9
