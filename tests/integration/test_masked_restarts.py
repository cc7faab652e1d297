"""An aggregator that is started again in any phase of a masked sum goes on, with what members send once more."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedrecon.aggregator.group_events import Accepted, RosterFrozen, SharesFixed, UploadsEnded
from fedrecon.aggregator.summing import CODEC
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience
from fedrecon.device_sdk.delivery import Session, deliver_masked
from fedrecon.device_sdk.driving import drive
from fedrecon.device_sdk.transport import AsyncTransport
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import CloseRequest
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.digests import digest_of
from support.aggregator_sample import ROUND, Aggregator, merging, running, total_of
from support.masked_sample import MaskedDevice, make_masked, masked_terms, opened_masked

MEMBERS = 8
STREAM = f"group/{ROUND.round}.{ROUND.attempt}/0"


async def deliver(target: str, device: MaskedDevice) -> str:
    """Lets a device deliver as the SDK does; returns the shape of its session."""
    proof = device.proof
    assignment = Assignment(
        session=device.session,
        round=ROUND,
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        aggregator=target,
        secure_sum=masked_terms(),
        round_token=proof.round_token,
    )
    patience = Patience(session_attempts=200, first_seconds=0.05, longest_seconds=0.2)
    line = Line(time.monotonic, time.time, os.urandom, patience, BlobCache(), deadline=time.monotonic() + 50)
    session, transport = Session(assignment, proof.credentials, line), AsyncTransport(None)
    try:
        await drive(deliver_masked(session, device.vector, device.begin()), transport)
    finally:
        await transport.close()
    return session.shape


class Restarts:
    """An aggregator on one port and one folder, started again whenever it is asked to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = MemoryJournal()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Aggregator]:
        async with running(self.folder, self.journal, port=self.port) as aggregator:
            self.port = int(aggregator.target.rpartition(":")[2])
            yield aggregator

    async def event(self, kind: type) -> None:
        """Returns once the group's stream has an event of a kind."""
        version = 0
        while True:
            for recorded in await self.journal.tail("films", STREAM, version, 100):
                version += 1
                if isinstance(CODEC.decode(recorded.event), kind):
                    return


@pytest.mark.parametrize("moment", [None, RosterFrozen, SharesFixed, Accepted, UploadsEnded])
async def test_a_restart_in_any_phase_loses_nobody(tmp_path: Path, moment: type | None) -> None:
    restarts = Restarts(tmp_path)
    async with restarts.running() as aggregator:
        checkpoint, groups = await opened_masked(aggregator, MEMBERS, phase_milliseconds=20_000)
        devices = make_masked(MEMBERS, checkpoint)
        early = devices if moment is not None else devices[:3]
        at_work = [asyncio.create_task(deliver(aggregator.target, device)) for device in early]
        if moment is None:  # while members still join
            await asyncio.sleep(0.3)
        else:
            await restarts.event(moment)
    async with restarts.running() as aggregator:
        late = [] if moment is not None else devices[3:]
        at_work += [asyncio.create_task(deliver(aggregator.target, device)) for device in late]
        shapes = await asyncio.gather(*at_work)
        assert set(shapes) == {"-+^"}
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)
        assert closed.groups[0].phase == aggregator_pb2.GROUP_PHASE_CLOSED
        assert closed.groups[0].reports == MEMBERS
        response = await aggregator.sums.Merge(merging(checkpoint, groups, minimum_reports=MEMBERS), timeout=10)
        assert response.sum_digest == digest_of(total_of(devices))


async def test_a_group_whose_shares_are_lost_is_given_up(tmp_path: Path) -> None:
    restarts = Restarts(tmp_path)
    async with restarts.running() as aggregator:
        checkpoint, _ = await opened_masked(aggregator, MEMBERS, phase_milliseconds=20_000)
        devices = make_masked(MEMBERS, checkpoint)
        joined = await asyncio.gather(*(device.join(aggregator) for device in devices))
        await asyncio.gather(
            *(device.share(aggregator, answer) for device, answer in zip(devices, joined, strict=True))
        )
    for file in (tmp_path / "aggregator" / "sums").rglob("*"):
        if file.is_file():
            file.unlink()
    async with restarts.running() as aggregator:
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)
        assert closed.groups[0].phase == aggregator_pb2.GROUP_PHASE_ABORTED
