"""A group of a masked sum whose members are simulated as far as the aggregator sees them.

Rules: what is measured is real: devices that are timed run the SDK's own part, and the aggregator's core gets the
messages that it would get. Everything else is made by the shortest way: masks of two survivors cancel, so the masked
sum is made of the survivors' vectors, their self-masks, and their masks with members that were lost. A device that was
timed puts its own masked vector there, so that a sum which opens correctly says that its masks are right, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.aggregator import rings, thresholds
from fedrecon.aggregator.unmasking import KEY, SEED, MaskedGroup
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, Member, RevealedShare, SealedShare, ShareResponse, UnmaskResponse
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire import fixed_point
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Segment, Vector
from fedrecon.wire.key_agreement import Agreement, public_key_of
from fedrecon.wire.masks import add_masks, pair_sign
from fedrecon.wire.shamir import point_of, split
from fedrecon.wire.sum_context import SumContext, keys_message, roster_digest, seed_commitment

BOUND, WEIGHT, METRIC_BOUND = 1.0, 10, 25.0
ROUND = RoundKey(task="secure-sum", round=1, attempt=1)
_GROUP, _NONCE = bytes(16), bytes(32)
_PLAN, _CHECKPOINT = digest_of(b"plan"), digest_of(b"checkpoint")


@dataclass(frozen=True, slots=True)
class _Secrets:
    """A member's secrets, in the order in which the SDK draws them."""

    share_key: bytes
    mask_key: bytes
    seed: bytes


class SimulatedGroup:
    """One group, from its roster to what survivors reveal.

    Args:
        members: how many share.
        parameters: elements of a vector's body.
        drop_out: share of members that are lost after they shared. The default profile withstands a fifth; beyond it
            groups are of the profile for members that often are lost.
    """

    def __init__(self, members: int, parameters: int, drop_out: float) -> None:
        self.agreed = FixedPoint((Segment(parameters, BOUND),), (METRIC_BOUND,), members, WEIGHT)
        profile = thresholds.DEFAULT if drop_out <= thresholds.DEFAULT.drop_out else thresholds.UNSTEADY
        self.found = thresholds.find(members, profile)
        order = rings.draw(members, _entropy("ring"))
        self.neighbours = rings.all_neighbours(order, self.found.neighbours)
        self.lost = frozenset(rings.draw(members, _entropy("lost"))[: round(members * drop_out)])
        self.survivors = frozenset(range(members)) - self.lost
        self._secrets = [self._secrets_of(index) for index in range(members)]
        self._sessions = [digest_of(f"session {index}".encode())[:16] for index in range(members)]
        self.roster = [self._entry(index) for index in range(members)]
        self.digest = roster_digest(self.roster)
        self.context = self._context().digest()
        vector = np.random.default_rng(1).uniform(-BOUND, BOUND, parameters)
        self.vector = fixed_point.quantise([vector], WEIGHT, [1.0], self.agreed, bytes(32))

    def group(self) -> MaskedGroup:
        """Return the group as the aggregator's core knows it."""
        commitments = {
            index: seed_commitment(self.context, index, secrets.seed) for index, secrets in enumerate(self._secrets)
        }
        return MaskedGroup(
            self.context, self.roster, self.neighbours, self.found.threshold, commitments, self.survivors
        )

    def masking(self, index: int) -> Masking:
        """Return a member's part as the SDK runs it."""
        terms = MaskTerms(
            round_key=ROUND,
            session=self._sessions[index],
            device_key=self.roster[index].device_key,
            kind=coordinator_pb2.SESSION_KIND_TRAIN,
            plan_digest=_PLAN,
            checkpoint_digest=_CHECKPOINT,
            fixed_point=self.agreed,
            minimum_group=2,
        )
        return Masking(_entropy(f"member {index}"), _device_key(index).sign, 2, terms)

    def joined(self, index: int) -> JoinResponse:
        """Return what a member is told when it has joined."""
        return JoinResponse(
            group=_GROUP,
            index=index,
            neighbours=[self.roster[other] for other in self.neighbours[index]],
            members=len(self.roster),
            threshold=self.found.threshold,
            roster_digest=self.digest,
            server_nonce=_NONCE,
        )

    def shared(self, index: int) -> ShareResponse:
        """Return the shares that a member's neighbours sealed for it; their values are of no secret."""
        shares = []
        for other in self.neighbours[index]:
            agreement = Agreement(self._secrets[other].share_key, self.context, other)
            key = agreement.share_key(index, self.roster[index].share_key)
            shares.append(SealedShare(from_index=other, to_index=index, ciphertext=key.seal(bytes(33), bytes(33))))
        return ShareResponse(shares=shares)

    def lists(self, index: int) -> UnmaskResponse:
        """Return what a survivor is asked."""
        return UnmaskResponse(
            survivors=[other for other in self.neighbours[index] if other in self.survivors],
            dropouts=[other for other in self.neighbours[index] if other in self.lost],
        )

    def plain(self) -> Vector:
        """Return the sum that must come out: every survivor reports the same vector."""
        total = fixed_point.zero(self.agreed)
        for _ in self.survivors:
            fixed_point.add(total, self.vector)
        return total

    def masked(self, measured: Mapping[int, bytes]) -> Vector:
        """Return the masked sum.

        Args:
            measured: masked vectors that the SDK made, by member.
        """
        total = self.plain()
        seeds: dict[int, list[bytes]] = {1: [self._secrets[index].seed for index in self.survivors], -1: []}
        for index in self.lost:
            self._add_pairs(index, self.survivors, seeds, -1)
        for index, vector in measured.items():  # in the place of what it should be
            fixed_point.add(total, fixed_point.read_vector(vector, self.agreed))
            np.subtract(total.body, self.vector.body, out=total.body)
            np.subtract(total.tail, self.vector.tail, out=total.tail)
            seeds[-1].append(self._secrets[index].seed)
            self._add_pairs(index, frozenset(range(len(self.roster))), seeds, -1)
        add_masks(total, seeds[1], seeds[-1])
        return total

    def _add_pairs(self, index: int, others: frozenset[int], seeds: dict[int, list[bytes]], sign: int) -> None:
        """Note the masks between a member and its neighbours among others, as the member adds them, times a sign."""
        agreement = Agreement(self._secrets[index].mask_key, self.context, index)
        for other in self.neighbours[index]:
            if other in others:
                seed = agreement.mask_seed(other, self.roster[other].mask_key)
                seeds[sign * pair_sign(index, other)].append(seed)

    def revealed(self) -> dict[int, Sequence[RevealedShare]]:
        """Return what all survivors reveal."""
        revealed: dict[int, list[RevealedShare]] = {index: [] for index in sorted(self.survivors)}
        for index, secrets in enumerate(self._secrets):
            alive = index in self.survivors
            others = self.neighbours[index]
            shares = split(
                secrets.seed if alive else secrets.mask_key,
                self.found.threshold,
                [point_of(other) for other in others],
                _entropy(f"shares {index}"),
            )
            for other in others:
                if other in self.survivors:
                    share = RevealedShare(index=index, kind=SEED if alive else KEY, share=shares[point_of(other)])
                    revealed[other].append(share)
        return dict(revealed)

    @staticmethod
    def _secrets_of(index: int) -> _Secrets:
        draw = _entropy(f"member {index}")
        return _Secrets(draw(32), draw(32), draw(32))

    def _entry(self, index: int) -> Member:
        device_key = _device_key(index)
        member = Member(
            index=index,
            share_key=public_key_of(self._secrets[index].share_key),
            mask_key=public_key_of(self._secrets[index].mask_key),
            device_key=device_key.public_key().public_bytes_raw(),
            session_digest=digest_of(self._sessions[index]),
        )
        message = keys_message(ROUND, member.session_digest, member.share_key, member.mask_key)
        member.key_signature = device_key.sign(message)
        return member

    def _context(self) -> SumContext:
        return SumContext(
            task=ROUND.task,
            round=ROUND.round,
            attempt=ROUND.attempt,
            kind=coordinator_pb2.SESSION_KIND_TRAIN,
            group=_GROUP,
            server_nonce=_NONCE,
            plan_digest=_PLAN,
            checkpoint_digest=_CHECKPOINT,
            members=len(self.roster),
            neighbours=self.found.neighbours,
            threshold=self.found.threshold,
            fixed_point=self.agreed,
            roster_digest=self.digest,
        )


def _device_key(index: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest_of(f"device {index}".encode()))


def _entropy(name: str) -> Callable[[int], bytes]:
    """Return a source of fixed bytes, other ones at each call: runs are to be alike, and nothing here is secret."""
    calls = 0

    def draw(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{name}, {calls}".encode()).digest(count)

    return draw
