"""What must hold for every secret, and for every course of a masked sum: the sum exactly, or nothing at all.

A program says what each member does, and what the network and a curious server do to it, in each phase. The two cores
run against each other without services.
"""

from __future__ import annotations

import contextlib
import enum
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecon.aggregator import unmasking
from fedrecon.aggregator.unmasking import CannotUnmaskError, InvalidMessageError
from fedrecon.device_sdk.errors import SumRefusedError
from fedrecon.v1.aggregator_pb2 import RevealedShare, SealedShare, ShareResponse, UnmaskResponse
from fedrecon.wire import fixed_point, shamir
from support.masked_sums import MaskedSum, agreement, entropy_of

secrets = st.binary(min_size=32, max_size=32)
points = st.lists(st.integers(1, shamir.LARGEST_POINT), min_size=1, max_size=7, unique=True)


@settings(deadline=None)
@given(secret=secrets, at=points, data=st.data(), seed=st.integers(0, 2**32))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, at: list[int], data: st.DataObject, seed: int) -> None:
    threshold = data.draw(st.integers(1, len(at)))
    shares = shamir.split(secret, threshold, at, entropy_of(str(seed)))
    for some in combinations(at, threshold):
        assert shamir.combine({point: shares[point] for point in some}, threshold) == secret
    assert shamir.combine(shares, threshold) == secret


@settings(deadline=None)
@given(secret=secrets, other=secrets, at=points, data=st.data(), seed=st.integers(0, 2**32))
def test_fewer_shares_than_the_threshold_fit_every_secret(
    secret: bytes, other: bytes, at: list[int], data: st.DataObject, seed: int
) -> None:
    """For any t - 1 shares and any secret whatever there is exactly one polynomial: they tell nothing."""
    threshold = data.draw(st.integers(1, len(at)))
    shares = shamir.split(secret, threshold, at, entropy_of(str(seed)))
    known = data.draw(st.permutations(at))[: threshold - 1]
    through = [(0, int.from_bytes(other, "little")), *((p, int.from_bytes(shares[p], "little")) for p in known)]
    fresh = next(point for point in range(1, shamir.LARGEST_POINT) if point not in known)
    forged = {point: shares[point] for point in known}
    forged[fresh] = interpolate(through, fresh).to_bytes(33, "little")
    assert shamir.combine(forged, threshold) == other


def interpolate(through: Sequence[tuple[int, int]], at: int) -> int:
    """Lagrange's value at a point, the plain way."""
    total = 0
    for x, y in through:
        numerator = denominator = 1
        for other, _ in through:
            if other != x:
                numerator = numerator * (at - other) % shamir.PRIME
                denominator = denominator * (x - other) % shamir.PRIME
        total += y * numerator * pow(denominator, -1, shamir.PRIME)
    return total % shamir.PRIME


@settings(deadline=None)
@given(secret=secrets, position=st.integers(0, 32), change=st.integers(1, 255), seed=st.integers(0, 2**32))
def test_a_changed_share_never_gives_the_secret(secret: bytes, position: int, change: int, seed: int) -> None:
    shares = shamir.split(secret, 3, [1, 2, 3], entropy_of(str(seed)))
    damaged = bytearray(shares[2])
    damaged[position] ^= change
    with contextlib.suppress(shamir.DamagedShareError):
        assert shamir.combine({**shares, 2: bytes(damaged)}, 3) != secret


class InSharing(enum.Enum):
    """What happens to a member when it joins and shares."""

    SHARES = enum.auto()
    SHARES_TWICE = enum.auto()
    IS_LOST = enum.auto()
    COMES_TOO_EARLY = enum.auto()
    IS_TOLD_A_LOWER_THRESHOLD = enum.auto()
    IS_TOLD_OF_A_STRANGER = enum.auto()
    IS_TOLD_ANOTHER_NONCE_AFTERWARDS = enum.auto()


class InUploading(enum.Enum):
    """What happens to it when it masks and uploads."""

    UPLOADS = enum.auto()
    UPLOADS_TWICE = enum.auto()
    GETS_SHARES_REORDERED = enum.auto()
    IS_LOST = enum.auto()
    IS_LOST_AFTER_MASKING = enum.auto()
    GETS_A_TAMPERED_SHARE = enum.auto()
    GETS_A_SHARE_TWICE = enum.auto()
    GETS_ANOTHERS_SHARE = enum.auto()
    IS_ASKED_FOR_ANOTHER_VECTOR = enum.auto()


class InUnmasking(enum.Enum):
    """What happens to it when it reveals."""

    REVEALS = enum.auto()
    REVEALS_TWICE = enum.auto()
    IS_LOST = enum.auto()
    GETS_OVERLAPPING_LISTS = enum.auto()
    GETS_INCOMPLETE_LISTS = enum.auto()
    IS_ASKED_FOR_THE_OTHER_SHARES_AFTERWARDS = enum.auto()
    SENDS_TOO_FEW = enum.auto()
    SENDS_A_FALSE_SHARE = enum.auto()
    SENDS_ANOTHERS_ANSWER = enum.auto()


Behaviour = tuple[InSharing, InUploading, InUnmasking]


Kind = TypeVar("Kind", bound=enum.Enum)


def mostly(good: Kind, kinds: type[Kind]) -> st.SearchStrategy[Kind]:
    """Nothing in particular, three times out of four: else hardly any sum would open."""
    return st.one_of(st.just(good), st.just(good), st.just(good), st.sampled_from(kinds))


behaviours = st.tuples(
    mostly(InSharing.SHARES, InSharing),
    mostly(InUploading.UPLOADS, InUploading),
    mostly(InUnmasking.REVEALS, InUnmasking),
)
"""Of one member."""


class Program:
    """A masked sum whose members behave in their own ways."""

    def __init__(self, group: MaskedSum, ways: Sequence[Behaviour], seed: int) -> None:
        self.group = group
        self.ways = ways
        self.draw = random.Random(seed)
        self.told: dict[tuple[int, int], set[int]] = {}
        self.masked: dict[int, set[bytes]] = {}
        self.lied = False

    def in_some_order(self, members: Sequence[int]) -> list[int]:
        return self.draw.sample(members, len(members))

    def run(self) -> None:
        """Runs the program; at the end stands the sum, or the reason why there is none."""
        group = self.group
        for index in self.in_some_order(range(len(group.devices))):
            self.share(index)
        self.leave_out_the_lonely()
        for index in self.in_some_order(list(group.sealed)):
            self.upload(index)
        if not all(self.near(index, group.survivors) >= group.threshold for index in group.sealed):
            return  # the aggregator gives the group up before it asks anybody
        for index in self.in_some_order(sorted(group.survivors)):
            self.reveal(index)
        self.check()

    def near(self, index: int, members: object) -> int:
        return sum(other in members for other in self.group.neighbours[index])  # type: ignore[operator]

    def leave_out_the_lonely(self) -> None:
        group = self.group
        while lonely := [index for index in group.sealed if self.near(index, group.sealed) < group.threshold]:
            for index in lonely:
                del group.sealed[index], group.commitments[index]

    def share(self, index: int) -> None:
        group, masking = self.group, self.group.devices[index].masking
        way, joined = self.ways[index][0], self.group.joined(index)
        match way:
            case InSharing.IS_LOST:
                return
            case InSharing.COMES_TOO_EARLY:
                refused(masking.mask, group.shared(index), group.vectors[index].to_bytes())
                refused(masking.share, joined)
                return
            case InSharing.IS_TOLD_A_LOWER_THRESHOLD:
                joined.threshold = len(joined.neighbours) // 2
                refused(masking.share, joined)
                return
            case InSharing.IS_TOLD_OF_A_STRANGER:
                joined.neighbours[0].mask_key = group.devices[index].masking.join_keys().share_key[::-1]
                refused(masking.share, joined)
                return
        group.share(index)
        if way is InSharing.SHARES_TWICE:
            assert masking.share(joined) == (group.sealed[index], group.commitments[index])
        if way is InSharing.IS_TOLD_ANOTHER_NONCE_AFTERWARDS:
            joined.server_nonce = bytes(32)
            refused(masking.share, joined)

    def upload(self, index: int) -> None:
        group, way, vector = self.group, self.ways[index][1], self.group.vectors[index].to_bytes()
        masking = group.devices[index].masking
        ended = self.ways[index][0] is InSharing.IS_TOLD_ANOTHER_NONCE_AFTERWARDS
        shares = list(group.shared(index).shares)
        if way is InUploading.IS_LOST:
            return
        spoilt = spoil(way, shares, index, self.other_share(index))
        if spoilt or ended:
            refused(masking.mask, ShareResponse(shares=shares), vector)
            refused(masking.mask, group.shared(index), vector)
            return
        if way is InUploading.GETS_SHARES_REORDERED:
            self.draw.shuffle(shares)
        masked = masking.mask(ShareResponse(shares=shares), vector)
        if way is InUploading.UPLOADS_TWICE:
            assert masking.mask(ShareResponse(shares=shares), vector) == masked
        if way is InUploading.IS_ASKED_FOR_ANOTHER_VECTOR:
            refused(masking.mask, ShareResponse(shares=shares), bytes(len(vector)))
            assert masking.mask(ShareResponse(shares=shares), vector) == masked
        if way is not InUploading.IS_LOST_AFTER_MASKING:
            fixed_point.add(group.total, fixed_point.read_vector(masked, group.agreed))
            group.survivors.add(index)

    def other_share(self, index: int) -> SealedShare:
        """A share of a neighbour that was sealed for somebody else."""
        sender = next(other for other in self.group.neighbours[index] if other in self.group.sealed)
        return next(share for share in self.group.sealed[sender] if share.to_index != index)

    def reveal(self, index: int) -> None:
        group, way, lists = self.group, self.ways[index][2], self.group.lists(index)
        masking = group.devices[index].masking
        if way is InUnmasking.IS_LOST:
            return
        if self.ways[index][1] is InUploading.IS_ASKED_FOR_ANOTHER_VECTOR:
            refused(masking.reveal, lists)  # that refusal ended its part
            return
        if way is InUnmasking.GETS_OVERLAPPING_LISTS:
            both = UnmaskResponse(survivors=lists.survivors, dropouts=[*lists.dropouts, lists.survivors[0]])
            refused(masking.reveal, both)
            refused(masking.reveal, lists)
            return
        if way is InUnmasking.GETS_INCOMPLETE_LISTS:
            refused(masking.reveal, UnmaskResponse(survivors=lists.survivors[1:], dropouts=lists.dropouts))
            return
        revealed = self.note(index, masking.reveal(lists))
        if way is InUnmasking.REVEALS_TWICE:
            assert self.note(index, masking.reveal(lists)) == revealed
        if way is InUnmasking.IS_ASKED_FOR_THE_OTHER_SHARES_AFTERWARDS:
            swapped = UnmaskResponse(survivors=lists.survivors[1:], dropouts=[*lists.dropouts, lists.survivors[0]])
            refused(masking.reveal, swapped)
        self.send(index, way, revealed)

    def note(self, index: int, revealed: Sequence[RevealedShare]) -> Sequence[RevealedShare]:
        for share in revealed:
            self.told.setdefault((index, share.index), set()).add(share.kind)
        return revealed

    def send(self, index: int, way: InUnmasking, revealed: Sequence[RevealedShare]) -> None:
        """What arrives is taken as the aggregator takes it."""
        group, sent = self.group, list(revealed)
        if way is InUnmasking.SENDS_TOO_FEW:
            sent = sent[:-1]
        if way is InUnmasking.SENDS_A_FALSE_SHARE:
            first = sent[0]
            sent[0] = RevealedShare(index=first.index, kind=first.kind, share=first.share[1:] + b"\0")
            self.lied = True
        if way is InUnmasking.SENDS_ANOTHERS_ANSWER:
            sent = [RevealedShare(index=index, kind=unmasking.SEED, share=share.share) for share in sent]
        try:
            unmasking.check_reveal(index, group.group(), sent)
        except InvalidMessageError:
            assert way in {InUnmasking.SENDS_TOO_FEW, InUnmasking.SENDS_ANOTHERS_ANSWER}
        else:
            group.revealed[index] = sent

    def check(self) -> None:
        group = self.group
        lacking = unmasking.missing(group.group(), group.revealed)
        try:
            opened = unmasking.unmask(group.total, group.group(), group.revealed)
        except CannotUnmaskError:
            assert lacking or self.lied or not group.survivors
        else:
            assert group.survivors
            assert not lacking
            assert opened.to_bytes() == group.plain().to_bytes()
        assert all(len(kinds) == 1 for kinds in self.told.values())


def spoil(way: InUploading, shares: list[SealedShare], index: int, other: SealedShare) -> bool:
    """Changes what a member is handed; whether it must refuse it."""
    match way:
        case InUploading.GETS_A_TAMPERED_SHARE:
            shares[0].ciphertext = shares[0].ciphertext[:-1] + bytes([shares[0].ciphertext[-1] ^ 1])
        case InUploading.GETS_A_SHARE_TWICE:
            shares.append(shares[-1])
        case InUploading.GETS_ANOTHERS_SHARE:
            kept = [share for share in shares if share.from_index != other.from_index]
            shares[:] = [*kept, SealedShare(from_index=other.from_index, to_index=index, ciphertext=other.ciphertext)]
        case _:
            return False
    return True


def refused(step: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(SumRefusedError):
        step(*arguments)


@pytest.mark.parametrize("members", [3, 4, 5, 6])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_every_program_ends_with_the_exact_sum_or_without_one(members: int, data: st.DataObject, seed: int) -> None:
    ways = data.draw(st.lists(behaviours, min_size=members, max_size=members))
    Program(MaskedSum(members, agreement(3)), ways, seed).run()


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None)
@given(ways=st.lists(behaviours, min_size=3, max_size=9), seed=st.integers(0, 2**16))
def test_every_program_of_larger_groups_does_so_too(ways: list[Behaviour], seed: int) -> None:
    Program(MaskedSum(len(ways), agreement(3)), ways, seed).run()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ways=st.lists(behaviours, min_size=40, max_size=60), seed=st.integers(0, 2**16))
def test_every_program_of_a_ring_does_so_too(ways: list[Behaviour], seed: int) -> None:
    Program(MaskedSum(len(ways), agreement(3)), ways, seed).run()
