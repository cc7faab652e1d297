"""Devices that report under a secure sum, step by step, for tests that stop them between any two steps.

No phase of these tests ends because a machine is slow: windows are long, and where devices are lost time jumps once all
others have been heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.aggregator.secagg_plus import SecAggPlusSum
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.ops.clock import SystemClock
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import JoinRequest, SessionProof, ShareRequest, UnmaskRequest, WatchRequest
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.task_pb2 import SecureSum
from fedrecon.wire.fixed_point import FixedPoint
from support.aggregator_sample import FIXED_POINT, PLAN, ROUND, Aggregator, Device, make_device, now, opened, running

SMALLEST = 5
PHASE_MILLISECONDS = 120_000
JOINING_MILLISECONDS = 120_000
_LOOK_SECONDS = 0.01


class Step(IntEnum):
    """What a device does last."""

    JOIN = 1
    SHARE = 2
    UPLOAD = 3
    UNMASK = 4


@dataclass
class MaskedDevice(Device):
    """A device with a report and keys of its own.

    Attributes:
        checkpoint: what its update started from.
        fixed_point: how its report became integers.
        last: what it does last before it vanishes.
        fate: what it was told of its report.
    """

    checkpoint: bytes = b""
    fixed_point: FixedPoint = FIXED_POINT
    last: Step = Step.UNMASK
    fate: int = 0
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    masking: Masking | None = None

    @property
    def proof(self) -> SessionProof:
        proof = super().proof
        proof.credentials.CopyFrom(Credentials(device_key=public_bytes(self.key)))
        return proof

    def begin(self) -> Masking:
        if self.masking is None:
            terms = MaskTerms(
                round_key=ROUND,
                session=self.session,
                device_key=public_bytes(self.key),
                kind=coordinator_pb2.SESSION_KIND_TRAIN,
                plan_digest=PLAN,
                checkpoint_digest=self.checkpoint,
                fixed_point=self.fixed_point,
                minimum_group=SMALLEST,
            )
            self.masking = Masking(os.urandom, self.key.sign, SMALLEST, terms)
        return self.masking

    def keys(self) -> JoinRequest:
        keys = self.begin().join_keys()
        return JoinRequest(
            proof=self.proof, share_key=keys.share_key, mask_key=keys.mask_key, key_signature=keys.key_signature
        )

    async def join(self, aggregator: Aggregator) -> Any:
        return await until(aggregator, "Join", self.keys(), aggregator_pb2.GROUP_PHASE_JOINING)

    async def share(self, aggregator: Aggregator, joined: Any) -> Any:
        shares, commitment = self.begin().share(joined)
        request = ShareRequest(proof=self.proof, group=joined.group, shares=shares, seed_commitment=commitment)
        return await until(aggregator, "Share", request, aggregator_pb2.GROUP_PHASE_SHARING)

    async def send(self, aggregator: Aggregator, group: bytes, shared: Any) -> None:
        masked = Device(self.session, self.begin().mask(shared, self.vector))
        await masked.upload(aggregator, group)

    async def unmask(self, aggregator: Aggregator, group: bytes) -> None:
        question = UnmaskRequest(proof=self.proof, group=group)
        lists = await until(aggregator, "Unmask", question, aggregator_pb2.GROUP_PHASE_UPLOADING)
        if lists.phase == aggregator_pb2.GROUP_PHASE_UNMASKING:
            answer = UnmaskRequest(proof=self.proof, group=group, shares=self.begin().reveal(lists))
            lists = await until(aggregator, "Unmask", answer, aggregator_pb2.GROUP_PHASE_UNMASKING)
        self.fate = lists.fate

    async def take_part(self, aggregator: Aggregator) -> None:
        """Does all steps up to its last."""
        joined = await self.join(aggregator)
        if self.last is Step.JOIN:
            return
        shared = await self.share(aggregator, joined)
        if self.last is Step.SHARE:
            return
        await self.send(aggregator, joined.group, shared)
        if self.last is not Step.UPLOAD:
            await self.unmask(aggregator, joined.group)


async def until(aggregator: Aggregator, method: str, request: Any, phase: int) -> Any:
    """Sends a request until its group has left a phase."""
    while True:
        answer = await getattr(aggregator.devices, method)(request, timeout=30)
        if answer.phase != phase:
            return answer


def make_masked(count: int, checkpoint: bytes, fixed_point: FixedPoint = FIXED_POINT) -> list[MaskedDevice]:
    plain = [make_device(seed, fixed_point) for seed in range(count)]
    return [MaskedDevice(one.session, one.vector, checkpoint=checkpoint, fixed_point=fixed_point) for one in plain]


def masked_terms(maximum_reports: int = 50) -> SecureSum:
    return SecureSum(
        protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS,
        ring_bits=32,
        maximum_reports=maximum_reports,
        maximum_weight=10,
        minimum_group=SMALLEST,
    )


async def opened_masked(aggregator: Aggregator, members: int, **changes: Any) -> tuple[bytes, list[bytes]]:
    """Opens a masked group that begins with exactly so many members, or when joining ends."""
    settings: dict[str, Any] = {
        "secure_sum": masked_terms(),
        "cohort_size": members,
        "report_goal": members,
        "joining_ends_unix_milliseconds": now() + JOINING_MILLISECONDS,
        "phase_milliseconds": PHASE_MILLISECONDS,
    }
    return await opened(aggregator, **(settings | changes))


class HurriedClock(SystemClock):
    """A clock that can jump.

    Attributes:
        ahead: milliseconds that it is ahead of the machine.
        heard: what the secure sum took from whom: steps and sessions.
    """

    def __init__(self) -> None:
        self.ahead = 0
        self.heard: set[tuple[Step, bytes]] = set()

    def now_milliseconds(self) -> int:
        return super().now_milliseconds() + self.ahead

    async def sleep_until(self, instant_milliseconds: int) -> None:
        while self.now_milliseconds() < instant_milliseconds:  # noqa: ASYNC110 - time sets no event
            await asyncio.sleep(_LOOK_SECONDS)

    def has_heard(self, step: Step, count: int) -> bool:
        return sum(each is step for each, _ in self.heard) == count

    async def wait_for(self, step: Step, count: int) -> None:
        while not self.has_heard(step, count):  # noqa: ASYNC110 - simpler than an event for each count
            await asyncio.sleep(_LOOK_SECONDS)

    def end_phase(self) -> None:
        self.ahead += PHASE_MILLISECONDS


@contextlib.asynccontextmanager
async def hurried(folder: Path) -> AsyncIterator[tuple[Aggregator, HurriedClock]]:
    """A running aggregator whose phases end when the clock says so, and its clock."""
    clock = HurriedClock()
    receive = SecAggPlusSum.receive

    def receive_and_note(self: SecAggPlusSum, group: Any, session: bytes, message: Any, now: int) -> None:
        receive(self, group, session, message, now)
        match message:
            case JoinRequest():
                clock.heard.add((Step.JOIN, session))
            case ShareRequest():
                clock.heard.add((Step.SHARE, session))
            case UnmaskRequest() if message.shares:
                clock.heard.add((Step.UNMASK, session))

    with patch.object(SecAggPlusSum, "receive", receive_and_note):
        async with running(folder, clock=clock) as aggregator:
            yield aggregator, clock


async def take_part(
    aggregator: Aggregator, clock: HurriedClock, devices: Sequence[MaskedDevice], *, results: bool = False
) -> list[Any]:
    """Lets devices take part; a phase that waits for lost ones only ends at once.

    Args:
        aggregator: where.
        clock: its clock.
        devices: all that there are.
        results: return what became of them, errors among it.
    """
    hurrying = asyncio.create_task(_hurry(aggregator, clock, devices))
    try:
        return await asyncio.gather(*(device.take_part(aggregator) for device in devices), return_exceptions=results)
    finally:
        hurrying.cancel()


async def _hurry(aggregator: Aggregator, clock: HurriedClock, devices: Sequence[MaskedDevice]) -> None:
    alive = {step: sum(device.last >= step for device in devices) for step in Step}
    for before, step in zip(Step, list(Step)[1:], strict=False):
        if step is Step.UPLOAD:
            async for progress in aggregator.sums.Watch(WatchRequest(round=ROUND), timeout=60):
                if sum(group.reports for group in progress.groups) == alive[step]:
                    break
        else:
            await clock.wait_for(step, alive[step])
        if alive[step] < alive[before]:
            clock.end_phase()
