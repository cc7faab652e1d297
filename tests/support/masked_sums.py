"""Groups of devices that sum under masks, without services: members, what the server says, and the whole of a sum.

The server's part here is as thin as it can be: it keeps what members send and hands it on, so that tests see the two
cores and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.aggregator import rings, thresholds, unmasking
from fedrecon.aggregator.unmasking import MaskedGroup
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.v1.aggregator_pb2 import JoinResponse, Member, RevealedShare, SealedShare, ShareResponse, UnmaskResponse
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire import fixed_point
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Segment, Vector
from fedrecon.wire.sum_context import SumContext, roster_digest

ROUND = RoundKey(task="films", round=3, attempt=1)
GROUP, NONCE = bytes(range(16)), bytes(range(32))
PLAN, CHECKPOINT = digest_of(b"plan"), digest_of(b"checkpoint")


def entropy_of(name: str) -> Callable[[int], bytes]:
    """The same bytes for the same name, other ones at each call."""
    calls = 0

    def draw(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{name} {calls}".encode()).digest(count)

    return draw


def agreement(elements: int = 7, ring_bits: int = 32, maximum_reports: int = 100) -> FixedPoint:
    return FixedPoint((Segment(elements, 1.0),), (25.0,), maximum_reports, 10, ring_bits)


@functools.lru_cache(maxsize=256)
def report(index: int, agreed: FixedPoint) -> Vector:
    """What the member with an index reports."""
    update = np.random.default_rng(index).uniform(-1, 1, agreed.elements).astype(np.float32)
    return fixed_point.quantise([update], 1 + index % 10, [1.5 * index], agreed, bytes([index % 256]) * 32)


class MaskedDevice:
    """A device and its part; `told` overrides what it is told of the round."""

    def __init__(self, name: str, agreed: FixedPoint, minimum_group: int = 2, checkpoint: bytes = CHECKPOINT) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(digest_of(f"key of {name}".encode()))
        self.terms = MaskTerms(
            round_key=ROUND,
            session=digest_of(f"session of {name}".encode())[:16],
            device_key=self.key.public_key().public_bytes_raw(),
            kind=1,
            plan_digest=PLAN,
            checkpoint_digest=checkpoint,
            fixed_point=agreed,
            minimum_group=minimum_group,
        )
        self.masking = Masking(entropy_of(name), self.key.sign, minimum_group, self.terms)

    def entry(self, index: int) -> Member:
        keys = self.masking.join_keys()
        return Member(
            index=index,
            share_key=keys.share_key,
            mask_key=keys.mask_key,
            device_key=self.terms.device_key,
            key_signature=keys.key_signature,
            session_digest=digest_of(self.terms.session),
        )


class MaskedSum:
    """A group of devices, and what the server keeps of it."""

    def __init__(
        self,
        members: int,
        agreed: FixedPoint | None = None,
        *,
        neighbours: int | None = None,
        threshold: int | None = None,
        seed: str = "",
    ) -> None:
        found = thresholds.find(members)
        self.agreed = agreed or agreement()
        self.devices = [MaskedDevice(f"{seed} {number}", self.agreed) for number in range(members)]
        self.roster = [device.entry(index) for index, device in enumerate(self.devices)]
        self.order = rings.draw(members, entropy_of(f"{seed} ring"))
        self.threshold = threshold or found.threshold
        self.neighbours = rings.all_neighbours(self.order, neighbours or found.neighbours)
        self.vectors = [report(index, self.agreed) for index in range(members)]
        self.sealed: dict[int, Sequence[SealedShare]] = {}
        self.commitments: dict[int, bytes] = {}
        self.survivors: set[int] = set()
        self.revealed: dict[int, Sequence[RevealedShare]] = {}
        self.total = fixed_point.zero(self.agreed)

    @functools.cached_property
    def digest(self) -> bytes:
        return roster_digest(self.roster)

    def joined(self, index: int) -> JoinResponse:
        return JoinResponse(
            group=GROUP,
            index=index,
            neighbours=[self.roster[other] for other in self.neighbours[index]],
            members=len(self.roster),
            threshold=self.threshold,
            roster_digest=self.digest,
            server_nonce=NONCE,
        )

    def context(self) -> bytes:
        return SumContext(
            task=ROUND.task,
            round=ROUND.round,
            attempt=ROUND.attempt,
            kind=1,
            group=GROUP,
            server_nonce=NONCE,
            plan_digest=PLAN,
            checkpoint_digest=CHECKPOINT,
            members=len(self.roster),
            neighbours=len(self.neighbours[0]),
            threshold=self.threshold,
            fixed_point=self.agreed,
            roster_digest=self.digest,
        ).digest()

    def share(self, index: int) -> None:
        shares, commitment = self.devices[index].masking.share(self.joined(index))
        unmasking.check_shares(index, self.neighbours[index], shares, commitment)
        self.sealed[index], self.commitments[index] = shares, commitment

    def shared(self, index: int) -> ShareResponse:
        """What the others sealed for a member."""
        received = (share for shares in self.sealed.values() for share in shares if share.to_index == index)
        return ShareResponse(shares=received)

    def upload(self, index: int) -> None:
        masked = self.devices[index].masking.mask(self.shared(index), self.vectors[index].to_bytes())
        fixed_point.add(self.total, fixed_point.read_vector(masked, self.agreed))
        self.survivors.add(index)

    def group(self) -> MaskedGroup:
        return MaskedGroup(
            self.context(),
            self.roster,
            self.neighbours,
            self.threshold,
            dict(self.commitments),
            frozenset(self.survivors),
        )

    def lists(self, index: int) -> UnmaskResponse:
        shared = self.group().neighbours_that_shared(index)
        return UnmaskResponse(
            survivors=[other for other in shared if other in self.survivors],
            dropouts=[other for other in shared if other not in self.survivors],
        )

    def reveal(self, index: int) -> None:
        revealed = self.devices[index].masking.reveal(self.lists(index))
        unmasking.check_reveal(index, self.group(), revealed)
        self.revealed[index] = revealed

    def run(self, sharers: Iterable[int], uploaders: Collection[int], revealers: Collection[int]) -> Vector:
        """The whole of a sum, in which each step is taken by so many."""
        for index in sharers:
            self.share(index)
        for index in uploaders:
            self.upload(index)
        for index in revealers:
            self.reveal(index)
        return unmasking.unmask(self.total, self.group(), self.revealed)

    def plain(self) -> Vector:
        """The sum of the survivors' reports, as it must be."""
        total = fixed_point.zero(self.agreed)
        for index in self.survivors:
            fixed_point.add(total, self.vectors[index])
        return total
