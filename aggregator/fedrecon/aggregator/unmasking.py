"""The aggregator's side of a masked sum: what members send is checked, and the sum unmasked. SecAgg+, server side.

A member that shared is needed in one of two ways: if its vector is in the sum, its self-mask seed; if it was lost
before, its private mask key, from which the masks come that its surviving neighbours added. Each is rebuilt from
`threshold` shares and held against what the member said before: the commitment to its seed, the public key of its
roster entry. If one is not what it must be, the sum stays closed: there is no partial rescue, and the next attempt has
fresh keys.

Rules: pure; nothing is learned from a member's shares but what unmasks the sum; a check that fails raises and changes
nothing, the sum handed in included.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, CCS 2020 (ePrint 2020/704), section 4.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import Member, RevealedShare, SealedShare
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.digests import DIGEST_BYTES
from fedrecon.wire.fixed_point import Vector
from fedrecon.wire.key_agreement import SEALED_BYTES, Agreement, BadKeyError, check_public_key, public_key_of
from fedrecon.wire.masks import add_range, pair_sign
from fedrecon.wire.shamir import DamagedShareError, check_share, combine, point_of
from fedrecon.wire.sum_context import BadKeysError, seed_commitment, verify_keys

SEED, KEY = aggregator_pb2.SHARE_KIND_SEED, aggregator_pb2.SHARE_KIND_KEY

Unsigned = TypeVar("Unsigned", bound=np.unsignedinteger)


class InvalidMessageError(ValueError):
    """A member's message that must not be taken.

    Attributes:
        reason: a stable word: `keys`, `shares` or `reveal`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CannotUnmaskError(Exception):
    """The sum stays closed.

    Attributes:
        members: whose secrets are missing or wrong.
    """

    def __init__(self, message: str, members: Sequence[int]) -> None:
        super().__init__(f"{message}: members {', '.join(map(str, members))}")
        self.members = tuple(members)


@dataclass(frozen=True, slots=True)
class MaskedGroup:
    """What a group's members agreed on, and how far each of them came.

    Attributes:
        context: digest of the sum's context.
        roster: members in order of their indices.
        neighbours: of every member, by index; in the order of the ring, as `rings.all_neighbours` gives them, secrets
            are rebuilt several times faster.
        threshold: shares that recover a secret.
        commitments: to the self-mask seed, of every member that shared.
        survivors: those whose vector is in the sum.
    """

    context: bytes
    roster: Sequence[Member]
    neighbours: Mapping[int, Sequence[int]]
    threshold: int
    commitments: Mapping[int, bytes]
    survivors: frozenset[int]

    @property
    def lost(self) -> tuple[int, ...]:
        """Members that shared, and whose vector is not in the sum."""
        return tuple(sorted(self.commitments.keys() - self.survivors))

    def neighbours_that_shared(self, index: int) -> tuple[int, ...]:
        """Returns a member's neighbours that it masked with."""
        return tuple(other for other in self.neighbours[index] if other in self.commitments)


def check_keys(round_key: RoundKey, member: Member) -> None:
    """Raises unless neighbours of a device that joins could agree with its keys: they refuse the whole group otherwise.

    Args:
        round_key: the attempt.
        member: the device's entry of the roster.

    Raises:
        InvalidMessageError: a key is malformed or of small order, or not signed by the device.
    """
    try:
        check_public_key(member.share_key)
        check_public_key(member.mask_key)
        verify_keys(round_key, member)
    except (BadKeyError, BadKeysError) as error:
        raise InvalidMessageError("keys", str(error)) from error


def check_shares(index: int, neighbours: Collection[int], shares: Sequence[SealedShare], commitment: bytes) -> None:
    """Raises unless a member sealed exactly one share for each of its neighbours.

    Args:
        index: the member.
        neighbours: of the member.
        shares: what it sent.
        commitment: to its self-mask seed.

    Raises:
        InvalidMessageError: a share is missing, twice there, misaddressed or of another size.
    """
    receivers = [share.to_index for share in shares]
    if len(receivers) != len(neighbours) or set(receivers) != set(neighbours):
        raise InvalidMessageError("shares", f"member {index} sealed shares for {len(receivers)} members, or for others")
    if any(share.from_index != index or len(share.ciphertext) != SEALED_BYTES for share in shares):
        raise InvalidMessageError("shares", f"a share of member {index} is somebody else's, or of another size")
    if len(commitment) != DIGEST_BYTES:
        raise InvalidMessageError("shares", f"the commitment of member {index} has {len(commitment)} bytes")


def check_reveal(index: int, group: MaskedGroup, revealed: Sequence[RevealedShare]) -> None:
    """Raises unless a survivor revealed exactly one share, of the right kind, for each neighbour that shared.

    Args:
        index: the survivor.
        group: its group.
        revealed: what it sent.

    Raises:
        InvalidMessageError: a share is missing, twice there, of the other kind or malformed.
    """
    expected = {other: SEED if other in group.survivors else KEY for other in group.neighbours_that_shared(index)}
    kinds = {share.index: share.kind for share in revealed}
    if len(revealed) != len(expected) or kinds != expected:
        raise InvalidMessageError(
            "reveal", f"member {index} revealed {len(revealed)} shares; it must be one for each of {len(expected)}"
        )
    try:
        for share in revealed:
            check_share(share.share)
    except DamagedShareError as error:
        raise InvalidMessageError("reveal", f"member {index}: {error}") from error


def missing(group: MaskedGroup, revealed: Mapping[int, Sequence[RevealedShare]]) -> tuple[int, ...]:
    """Returns the members whose needed secret has fewer shares than the threshold.

    Args:
        group: the group.
        revealed: what survivors sent, by survivor; each of them checked.
    """
    counts = Counter(share.index for shares in revealed.values() for share in shares)
    return tuple(index for index in sorted(group.commitments) if counts[index] < group.threshold)


def unmask(
    total: Vector,
    group: MaskedGroup,
    revealed: Mapping[int, Sequence[RevealedShare]],
    executor: Executor | None = None,
    parts: int = 1,
) -> Vector:
    """Returns the sum without masks.

    Args:
        total: the masked vectors of all survivors, added; it is not changed.
        group: the group.
        revealed: what survivors sent, by survivor; each of them checked.
        executor: does the parts of the work, in processes or threads; None: they are done here, one after the other.
        parts: how many parts.

    Raises:
        CannotUnmaskError: a secret lacks shares, or is not what its member committed to; or the sum is nobody's.
    """
    if not group.survivors:
        raise CannotUnmaskError("nobody's vector is in the sum", sorted(group.commitments))
    lacking = missing(group, revealed)
    if lacking:
        raise CannotUnmaskError("too few shares were revealed", lacking)
    run = map if executor is None else executor.map
    secrets = _sealed_secrets(group, revealed)
    opened = list(run(_open_all, (secrets[part] for part in _cut(len(secrets), parts))))
    wrong = [index for one in opened for index in one.wrong]
    if wrong:
        raise CannotUnmaskError("secrets are not what their members committed to", sorted(wrong))
    added = [seed for one in opened for seed in one.added]
    subtracted = [seed for one in opened for seed in one.subtracted]
    pieces = [total.body[part] for part in _cut(total.body.size, parts)]
    starts = itertools.accumulate((piece.nbytes for piece in pieces), initial=0)
    # What members added is subtracted, and the other way round.
    bodies = list(run(_change, pieces, starts, itertools.repeat(subtracted), itertools.repeat(added)))
    tail = _change(total.tail, total.body.nbytes, subtracted, added)
    return Vector(np.concatenate(bodies), tail)


@dataclass(frozen=True, slots=True)
class _SealedSecret:
    """What it takes to rebuild one member's masks.

    Attributes:
        index: the member.
        context: digest of the sum's context.
        threshold: shares that recover the secret.
        shares: so many, by their points.
        commitment: what a survivor said of its seed; empty for a member that was lost.
        mask_key: the public mask key of a member that was lost; empty for a survivor.
        counterparts: index and public mask key of the survivors that masked with a member that was lost.
    """

    index: int
    context: bytes
    threshold: int
    shares: Mapping[int, bytes]
    commitment: bytes
    mask_key: bytes
    counterparts: Sequence[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """Seeds of masks that are in the masked sum: those that members added, and those that they subtracted."""

    added: list[bytes]
    subtracted: list[bytes]
    wrong: list[int]


def _sealed_secrets(group: MaskedGroup, revealed: Mapping[int, Sequence[RevealedShare]]) -> list[_SealedSecret]:
    shares: dict[int, dict[int, bytes]] = {index: {} for index in group.neighbours if index in group.commitments}
    for survivor, answer in revealed.items():
        for share in answer:
            shares[share.index][point_of(survivor)] = share.share
    secrets = []
    for index, chosen in _chosen(group, shares):
        alive = index in group.survivors
        others = () if alive else [each for each in group.neighbours_that_shared(index) if each in group.survivors]
        secrets.append(
            _SealedSecret(
                index=index,
                context=group.context,
                threshold=group.threshold,
                shares=chosen,
                commitment=group.commitments[index] if alive else b"",
                mask_key=b"" if alive else group.roster[index].mask_key,
                counterparts=[(other, group.roster[other].mask_key) for other in others],
            )
        )
    return secrets


def _chosen(group: MaskedGroup, shares: Mapping[int, Mapping[int, bytes]]) -> Iterator[tuple[int, Mapping[int, bytes]]]:
    """Yields members with so many of their shares as are needed: the same points for members near each other.

    What most of the work of rebuilding secrets is done for depends on the points alone, and members near each other in
    the ring have most neighbours in common.
    """
    alive = len(group.survivors) / len(group.commitments)
    most = len(next(iter(group.neighbours.values())))
    together = max(1, int((alive * most - group.threshold) / (4 * alive)))  # twice as many have still enough on average
    members = list(shares)
    for start in range(0, len(members), together):
        block = members[start : start + together]
        common = sorted(set.intersection(*(set(shares[index]) for index in block)))
        for index in block:
            points = common if len(common) >= group.threshold else sorted(shares[index])
            yield index, {point: shares[index][point] for point in points[: group.threshold]}


def _open_all(secrets: Sequence[_SealedSecret]) -> _Opened:
    """Returns the seeds of the masks behind some secrets, and whose are not what they must be."""
    opened = _Opened([], [], [])
    for secret in secrets:
        try:
            _open(secret, opened)
        except (DamagedShareError, BadKeyError):
            opened.wrong.append(secret.index)
    return opened


def _open(secret: _SealedSecret, opened: _Opened) -> None:
    value = combine(secret.shares, secret.threshold)
    if secret.commitment:
        if seed_commitment(secret.context, secret.index, value) != secret.commitment:
            opened.wrong.append(secret.index)
        opened.added.append(value)
        return
    if public_key_of(value) != secret.mask_key:
        opened.wrong.append(secret.index)
    agreement = Agreement(value, secret.context, secret.index)
    for other, mask_key in secret.counterparts:
        seeds = opened.added if pair_sign(other, secret.index) == 1 else opened.subtracted
        seeds.append(agreement.mask_seed(other, mask_key))


def _change(
    part: NDArray[Unsigned], first_byte: int, added: Sequence[bytes], subtracted: Sequence[bytes]
) -> NDArray[Unsigned]:
    """Returns a part of a vector with the masks of some seeds added, and those of others subtracted."""
    changed = part.copy()
    add_range(changed, first_byte, added, subtracted)
    return changed


def _cut(length: int, parts: int) -> list[slice]:
    """Returns where a sequence is cut into so many parts of almost the same length."""
    limits = [length * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(limits)]
