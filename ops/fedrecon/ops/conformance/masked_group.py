"""The rest of a masked group, played for one device: it opens the device's shares and takes its masks away again.

The other members are made up for each scene, with secrets that the group knows: so every byte that the device sends can
be checked, and its vector read. Written from the contract (`aggregator.proto`), over `fedrecon.wire` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import JoinRequest, JoinResponse, Member, SealedShare
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire import fixed_point
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Vector
from fedrecon.wire.key_agreement import KEY_BYTES, Agreement, BadKeyError, BadSealError, SealingKey, public_key_of
from fedrecon.wire.masks import add_masks, pair_sign
from fedrecon.wire.shamir import DamagedShareError, combine, point_of, split
from fedrecon.wire.sum_context import (
    SERVER_NONCE_BYTES,
    BadKeysError,
    SumContext,
    keys_message,
    roster_digest,
    seed_commitment,
    verify_keys,
)

MEMBERS = 6
DEVICE = 2
"""Index of the device under test: some neighbours are before it, some behind."""
THRESHOLD = 3
GROUP = b"a masked group 1"


@dataclass(slots=True)
class Phantom:
    """A made-up member, and all its secrets."""

    index: int
    identity: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    share_secret: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES))
    mask_secret: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES))
    seed: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES))

    def member(self) -> Member:
        """Returns its entry of the roster, not yet signed."""
        return Member(
            index=self.index,
            share_key=public_key_of(self.share_secret),
            mask_key=public_key_of(self.mask_secret),
            device_key=self.identity.public_key().public_bytes_raw(),
            session_digest=digest_of(b"session of phantom %d" % self.index),
        )


class MaskedGroup:
    """The group of one scene.

    Args:
        assignment: what the device was asked for.
        agreed: how its report becomes integers.
        request: the device's `Join`.
        change_keys: changes a phantom's keys before it signs them.

    Attributes:
        complaints: what the device did wrong, in words.
    """

    def __init__(
        self,
        assignment: Assignment,
        agreed: FixedPoint,
        request: JoinRequest,
        change_keys: Callable[[Member], None] = lambda _member: None,
    ) -> None:
        self.complaints: list[str] = []
        self._agreed = agreed
        self._round = assignment.round
        self._phantoms = {index: Phantom(index) for index in range(MEMBERS) if index != DEVICE}
        self._device = Member(
            index=DEVICE,
            share_key=request.share_key,
            mask_key=request.mask_key,
            device_key=request.proof.credentials.device_key,
            key_signature=request.key_signature,
            session_digest=digest_of(assignment.session),
        )
        self._members = {index: phantom.member() for index, phantom in self._phantoms.items()}
        for index, member in self._members.items():
            change_keys(member)
            member.key_signature = self._phantoms[index].identity.sign(self._signed(member))
        self._members[DEVICE] = self._device
        self._roster_digest = roster_digest([self._members[index] for index in range(MEMBERS)])
        self._nonce = os.urandom(SERVER_NONCE_BYTES)
        self._context = SumContext(
            task=assignment.round.task,
            round=assignment.round.round,
            attempt=assignment.round.attempt,
            kind=assignment.kind,
            group=GROUP,
            server_nonce=self._nonce,
            plan_digest=assignment.plan.digest,
            checkpoint_digest=assignment.checkpoint.digest,
            members=MEMBERS,
            neighbours=MEMBERS - 1,
            threshold=THRESHOLD,
            fixed_point=agreed,
            roster_digest=self._roster_digest,
        ).digest()
        self._given: dict[int, tuple[bytes, bytes]] = {}
        """Shares of each phantom that the device holds: of its mask key, and of its seed."""
        self._taken: dict[int, tuple[bytes, bytes]] = {}
        """The device's own shares, opened: of its mask key, and of its seed."""
        self._commitment = b""
        try:
            verify_keys(self._round, self._device)
        except BadKeysError:
            self.complaints.append("the keys of its Join are not signed by the device key")

    def joined(self) -> JoinResponse:
        """Returns the device's place in the group."""
        return JoinResponse(
            group=GROUP,
            phase=aggregator_pb2.GROUP_PHASE_SHARING,
            index=DEVICE,
            neighbours=[self._members[index] for index in sorted(self._phantoms)],
            members=MEMBERS,
            threshold=THRESHOLD,
            roster_digest=self._roster_digest,
            server_nonce=self._nonce,
        )

    def take(self, shares: Iterable[SealedShare], commitment: bytes) -> None:
        """Opens the shares that the device gave its neighbours."""
        self._commitment = commitment
        given = list(shares)
        if sorted(share.to_index for share in given) != sorted(self._phantoms):
            self.complaints.append("its shares are not one for each neighbour")
            return
        for share in given:
            try:
                opened = self._sealing(share.to_index).open(share.ciphertext)
            except (BadSealError, BadKeyError):
                self.complaints.append(f"its share for member {share.to_index} does not open")
                continue
            if share.from_index != DEVICE:
                self.complaints.append(f"its share for member {share.to_index} names another sender")
            self._taken[share.to_index] = opened
        if len(self._taken) == len(self._phantoms):
            self._check_secrets()

    def shares(self, sharing: Iterable[int]) -> Iterator[SealedShare]:
        """Yields what some phantoms sealed for the device."""
        for index in sharing:
            phantom = self._phantoms[index]
            points = [point_of(other) for other in range(MEMBERS) if other != index]
            secrets = (phantom.mask_secret, phantom.seed)
            key_share, seed_share = (
                split(secret, THRESHOLD, points, os.urandom)[point_of(DEVICE)] for secret in secrets
            )
            self._given[index] = key_share, seed_share
            yield SealedShare(
                from_index=index, to_index=DEVICE, ciphertext=self._sealing(index).seal(key_share, seed_share)
            )

    def unmasked(self, masked: bytes) -> bytes:
        """Returns the device's vector without its masks; some bytes where it was masked in another way."""
        if len(masked) != self._agreed.vector_bytes or len(self._taken) < THRESHOLD:
            return masked
        read = fixed_point.read_vector(masked, self._agreed)
        vector = Vector(np.array(read.body), np.array(read.tail))
        signed: dict[int, list[bytes]] = {1: [self._secret(1)], -1: []}
        for index in self._given:
            agreement = Agreement(self._phantoms[index].mask_secret, self._context, index)
            signed[pair_sign(DEVICE, index)].append(agreement.mask_seed(DEVICE, self._device.mask_key))
        add_masks(vector, signed[-1], signed[1])
        return vector.to_bytes()

    def revealed(self, shares: Iterable[Any], survivors: Iterable[int], dropouts: Iterable[int]) -> None:
        """Checks what the device revealed of its neighbours' secrets."""
        expected = {(index, aggregator_pb2.SHARE_KIND_SEED): self._given[index][1] for index in survivors}
        expected |= {(index, aggregator_pb2.SHARE_KIND_KEY): self._given[index][0] for index in dropouts}
        found = [((share.index, share.kind), share.share) for share in shares]
        if len({index for (index, _), _ in found}) != len(found):
            self.complaints.append("it revealed two shares of one neighbour")
        if dict(found) != expected:
            self.complaints.append("it did not reveal the seed's share of survivors and the key's share of dropouts")

    def _check_secrets(self) -> None:
        try:
            mask_key, seed = self._secret(0), self._secret(1)
        except DamagedShareError:
            self.complaints.append("its shares are not of one secret")
            return
        if public_key_of(mask_key) != self._device.mask_key:
            self.complaints.append("its shares do not give the private half of its mask key")
        if seed_commitment(self._context, DEVICE, seed) != self._commitment:
            self.complaints.append("its commitment is not to the seed that its shares give")

    def _secret(self, which: int) -> bytes:
        return combine({point_of(index): pair[which] for index, pair in self._taken.items()}, THRESHOLD)

    def _sealing(self, index: int) -> SealingKey:
        agreement = Agreement(self._phantoms[index].share_secret, self._context, index)
        return agreement.share_key(DEVICE, self._device.share_key)

    def _signed(self, member: Member) -> bytes:
        return keys_message(self._round, member.session_digest, member.share_key, member.mask_key)
