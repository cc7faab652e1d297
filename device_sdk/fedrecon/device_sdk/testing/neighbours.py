"""Devices that join a secure sum beside the one that is tested: real keys and shares, reports of nobody.

They are the SDK's own `Masking`, as many as the assignment's smallest group needs, and all of them survive. That is
enough for a device to take every step and every check of its own; the sum is not opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.v1.aggregator_pb2 import JoinRequest, JoinResponse, Member, SealedShare
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint
from fedrecon.wire.sum_context import GROUP_BYTES, SERVER_NONCE_BYTES, roster_digest


@dataclass(slots=True)
class Neighbours:
    """A group of which all but one are played.

    Args:
        assignment: of the device that is tested.
        fixed_point: how its report becomes integers.

    Attributes:
        group: id of the group.
        shares: what the others sealed for the device, once it has joined.
    """

    assignment: Assignment
    fixed_point: FixedPoint
    group: bytes = field(default_factory=lambda: os.urandom(GROUP_BYTES))
    shares: list[SealedShare] = field(default_factory=list)
    _answer: JoinResponse | None = None

    @property
    def indices(self) -> list[int]:
        """Everybody but the device itself, which is the first."""
        return list(range(1, self.assignment.secure_sum.minimum_group))

    def join(self, request: JoinRequest) -> JoinResponse:
        """Returns the device's place in the group: the same whenever it asks."""
        if self._answer is None:
            self._answer = self._begin(request)
        return self._answer

    def _begin(self, request: JoinRequest) -> JoinResponse:
        own = Member(
            index=0,
            share_key=request.share_key,
            mask_key=request.mask_key,
            device_key=request.proof.credentials.device_key,
            session_digest=digest_of(request.proof.session),
            key_signature=request.key_signature,
        )
        played = [self._play(index) for index in self.indices]
        roster = [own, *(member for _, member in played)]
        threshold = (len(roster) - 1) // 2 + 1
        nonce = os.urandom(SERVER_NONCE_BYTES)

        def place_of(index: int) -> JoinResponse:
            return JoinResponse(
                group=self.group,
                index=index,
                neighbours=[member for member in roster if member.index != index],
                members=len(roster),
                threshold=threshold,
                roster_digest=roster_digest(roster),
                server_nonce=nonce,
            )

        for masking, member in played:
            given, _ = masking.share(place_of(member.index))
            self.shares += [share for share in given if share.to_index == 0]
        return place_of(0)

    def _play(self, index: int) -> tuple[Masking, Member]:
        key, session = Ed25519PrivateKey.generate(), os.urandom(16)
        terms = MaskTerms(
            round_key=self.assignment.round,
            session=session,
            device_key=public_bytes(key),
            kind=self.assignment.kind,
            plan_digest=self.assignment.plan.digest,
            checkpoint_digest=self.assignment.checkpoint.digest,
            fixed_point=self.fixed_point,
            minimum_group=self.assignment.secure_sum.minimum_group,
        )
        masking = Masking(os.urandom, key.sign, 1, terms)
        keys = masking.join_keys()
        member = Member(
            index=index,
            share_key=keys.share_key,
            mask_key=keys.mask_key,
            device_key=public_bytes(key),
            session_digest=digest_of(session),
            key_signature=keys.key_signature,
        )
        return masking, member
