"""Devices that report under a secure sum, step by step, for tests that stop them between any two steps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import JoinRequest, SessionProof, ShareRequest, UnmaskRequest
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.task_pb2 import SecureSum
from fedrecon.wire.fixed_point import FixedPoint
from support.aggregator_sample import FIXED_POINT, PLAN, ROUND, Aggregator, Device, make_device, now, opened

SMALLEST = 5
PHASE_MILLISECONDS = 1_500
JOINING_MILLISECONDS = 20_000


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


async def take_part(aggregator: Aggregator, devices: Sequence[MaskedDevice]) -> None:
    await asyncio.gather(*(device.take_part(aggregator) for device in devices))
