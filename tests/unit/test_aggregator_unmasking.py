"""The aggregator's side of a masked sum: thresholds, rings, what members send, and what comes out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from fedrecon.aggregator import rings, thresholds, unmasking
from fedrecon.aggregator.thresholds import Neighbourhood, Profile
from fedrecon.aggregator.unmasking import CannotUnmaskError, InvalidMessageError
from fedrecon.device_sdk.neighbourhood import FEWEST_NEIGHBOURS
from fedrecon.v1.aggregator_pb2 import RevealedShare, SealedShare
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.sum_context import MOST_DROP_OUT, SMALLEST_GROUP
from support.masked_sums import ROUND, MaskedDevice, MaskedSum, agreement

SIZES = (50, 100, 200, 500, 1000)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (thresholds.CURIOUS, [(22, 6), (34, 11), (54, 21), (76, 31), (88, 36)]),
        (thresholds.STEADY, [(14, 9), (26, 16), (42, 27), (66, 44), (78, 52)]),
        (thresholds.DEFAULT, [(24, 14), (44, 25), (72, 42), (122, 74), (148, 90)]),
        (thresholds.UNSTEADY, [(34, 19), (66, 36), (116, 64), (212, 119), (314, 179)]),
    ],
    ids=["curious", "steady", "default", "unsteady"],
)
def test_the_profiles_have_their_table(profile: Profile, expected: list[tuple[int, int]]) -> None:
    assert [thresholds.find(members, profile) for members in SIZES] == [Neighbourhood(*each) for each in expected]


@pytest.mark.parametrize(
    ("members", "profile", "expected"),
    [
        (100, Profile(0.45, 0.45, semi_honest=True), (92, 46)),
        (1_000, Profile(0.45, 0.45, semi_honest=True), (822, 417)),
        (1_000, Profile(0.33, 0.33, semi_honest=True), (286, 150)),
        (10_000, Profile(0.33, 0.33, semi_honest=True), (422, 221)),
        (100, Profile(0.05, 0.33, semi_honest=True), (28, 6)),
        (1_000, Profile(0.05, 0.33, semi_honest=True), (72, 24)),
        (100_000, Profile(0.05, 0.33, semi_honest=True), (96, 32)),
        (1_000, Profile(0.33, 0.05, semi_honest=True), (78, 60)),
        (100, Profile(0.3, 0.3), (92, 62)),
        (1_000, Profile(0.3, 0.3), (872, 584)),
        (100, Profile(0.05, 0.33), (72, 39)),
        (1_000, Profile(0.05, 0.33), (398, 223)),
        (100, Profile(0.33, 0.05), (42, 37)),
        (1_000, Profile(0.33, 0.05), (132, 109)),
        (10_000, Profile(0.33, 0.05), (178, 146)),
    ],
)
def test_published_answers_of_another_implementation_are_found(
    members: int, profile: Profile, expected: tuple[int, int]
) -> None:
    assert thresholds.find(members, profile) == Neighbourhood(*expected)  # google-parfait/federated-compute


@pytest.mark.parametrize("members", [*range(2, 60), 99, 250, 999])
def test_what_is_found_is_what_devices_accept(members: int) -> None:
    found = thresholds.find(members)
    assert found.neighbours == members - 1 or (found.neighbours % 2 == 0 and found.neighbours >= FEWEST_NEIGHBOURS)
    assert found.neighbours < members
    assert found.neighbours // 2 + 1 <= found.threshold <= found.neighbours
    assert members >= thresholds.SMALLEST_RING or found.neighbours == members - 1


@pytest.mark.parametrize("members", range(20, 40))
def test_a_small_group_opens_after_its_share_of_drop_outs(members: int) -> None:
    found, lost = thresholds.find(members), members // 5
    assert found.threshold <= found.neighbours - lost


@pytest.mark.parametrize(
    ("members", "profile"),
    [
        (1, thresholds.DEFAULT),
        (0, thresholds.DEFAULT),
        (2_000_000, thresholds.DEFAULT),
        (30, Profile(0.4, 0.4)),
        (100, Profile(0.5, 0.5)),
    ],
)
def test_what_no_group_withstands_is_refused(members: int, profile: Profile) -> None:
    with pytest.raises(thresholds.NoThresholdError):
        thresholds.find(members, profile)


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, 1.0), (1.0, 0.0)])
def test_a_profile_has_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Profile(*shares)


def test_the_hypergeometric_tail_is_that_of_exact_fractions() -> None:
    # Fewer than 27 of 44 neighbours survive where 80 of 100 do.
    exact = sum(Fraction(math.comb(80, x) * math.comb(20, 44 - x), math.comb(100, 44)) for x in range(24, 27))
    found = thresholds._Hypergeometric(100, 80, 44).below(27)
    assert found == pytest.approx(float(exact), rel=1e-9)
    assert thresholds._Hypergeometric(100, 80, 44).below(45) == pytest.approx(1.0)


@pytest.mark.parametrize(("members", "neighbours"), [(3, 2), (7, 6), (8, 4), (50, 24), (51, 10)])
def test_everybody_has_as_many_neighbours_and_is_theirs(members: int, neighbours: int) -> None:
    order = rings.draw(members, os.urandom)
    assert sorted(order) == list(range(members))
    found = rings.all_neighbours(order, neighbours)
    for index, others in found.items():
        assert len(set(others)) == neighbours
        assert index not in others
        assert list(others) == sorted(others)
        assert others == rings.neighbours_of(order, neighbours, index)
        assert all(index in found[other] for other in others)


def test_a_ring_with_an_odd_number_of_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        rings.all_neighbours(range(50), 11)


def test_every_order_of_a_ring_is_as_likely() -> None:
    entropy = np.random.default_rng(1)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(2_400):
        order = rings.draw(4, entropy.bytes)
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    deviation = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert deviation < 60  # chi-square with 23 degrees of freedom: 1 in 30,000


def test_keys_that_neighbours_would_refuse_are_not_let_in() -> None:
    member = MaskedDevice("one", agreement()).entry(0)
    unmasking.check_keys(ROUND, member)
    with pytest.raises(InvalidMessageError):
        unmasking.check_keys(RoundKey(task="films", round=3, attempt=2), member)
    for name, value in (
        ("share_key", bytes(32)),
        ("mask_key", (1).to_bytes(32, "little")),
        ("mask_key", MaskedDevice("two", agreement()).entry(0).mask_key),
        ("device_key", bytes(32)),
        ("device_key", b""),
        ("key_signature", bytes(64)),
        ("session_digest", bytes(32)),
    ):
        changed = MaskedDevice("one", agreement()).entry(0)
        setattr(changed, name, value)
        with pytest.raises(InvalidMessageError):
            unmasking.check_keys(ROUND, changed)


def sealed(*pairs: tuple[int, int], size: int = 82) -> list[SealedShare]:
    return [SealedShare(from_index=sender, to_index=receiver, ciphertext=bytes(size)) for sender, receiver in pairs]


@pytest.mark.parametrize(
    ("shares", "commitment"),
    [
        (sealed((0, 1)), 32),
        (sealed((0, 1), (0, 1)), 32),
        (sealed((0, 1), (0, 2), (0, 2)), 32),
        (sealed((0, 1), (0, 3)), 32),
        (sealed((0, 1), (1, 2)), 32),
        (sealed((0, 1), (0, 2), size=81), 32),
        (sealed((0, 1), (0, 2)), 31),
        ([], 32),
    ],
)
def test_shares_that_are_not_one_for_each_neighbour_are_refused(shares: list[SealedShare], commitment: int) -> None:
    with pytest.raises(InvalidMessageError):
        unmasking.check_shares(0, (1, 2), shares, bytes(commitment))


def test_shares_that_are_one_for_each_neighbour_are_taken() -> None:
    unmasking.check_shares(0, (1, 2), sealed((0, 2), (0, 1)), bytes(32))


def unmasking_sum(members: int = 6, lost: Sequence[int] = (4,)) -> MaskedSum:
    """A sum in which everybody shared, some were lost, and nobody revealed yet."""
    group = MaskedSum(members)
    for index in range(members):
        group.share(index)
    for index in range(members):
        if index not in lost:
            group.upload(index)
    return group


def without_last(shares: list[RevealedShare]) -> list[RevealedShare]:
    return shares[:-1]


def twice(shares: list[RevealedShare]) -> list[RevealedShare]:
    return [*shares[:-1], shares[0]]


def one_more(shares: list[RevealedShare]) -> list[RevealedShare]:
    return [*shares, shares[0]]


def other_kind(shares: list[RevealedShare]) -> list[RevealedShare]:
    first = shares[0]
    return [RevealedShare(index=first.index, kind=unmasking.KEY, share=first.share), *shares[1:]]


def both_kinds(shares: list[RevealedShare]) -> list[RevealedShare]:
    return [*shares, RevealedShare(index=shares[0].index, kind=unmasking.KEY, share=shares[0].share)]


def short_share(shares: list[RevealedShare]) -> list[RevealedShare]:
    first = shares[0]
    return [RevealedShare(index=first.index, kind=first.kind, share=first.share[:32]), *shares[1:]]


def beyond_the_prime(shares: list[RevealedShare]) -> list[RevealedShare]:
    first = shares[0]
    return [RevealedShare(index=first.index, kind=first.kind, share=b"\xff" * 33), *shares[1:]]


def of_a_stranger(shares: list[RevealedShare]) -> list[RevealedShare]:
    first = shares[0]
    return [RevealedShare(index=99, kind=first.kind, share=first.share), *shares[1:]]


@pytest.mark.parametrize(
    "change",
    [without_last, twice, one_more, other_kind, both_kinds, short_share, beyond_the_prime, of_a_stranger],
    ids=lambda change: change.__name__,
)
def test_what_is_not_one_right_share_for_each_neighbour_is_refused(
    change: Callable[[list[RevealedShare]], list[RevealedShare]],
) -> None:
    group = unmasking_sum()
    revealed = list(group.devices[0].masking.reveal(group.lists(0)))
    unmasking.check_reveal(0, group.group(), revealed)
    with pytest.raises(InvalidMessageError):
        unmasking.check_reveal(0, group.group(), change(revealed))


def test_a_sum_opens_with_everybody() -> None:
    group = MaskedSum(5)
    assert group.run(range(5), range(5), range(5)).to_bytes() == group.plain().to_bytes()


def test_a_sum_opens_without_those_lost_at_any_phase() -> None:
    group = MaskedSum(9)  # threshold 5 of 8
    opened = group.run(sharers=range(8), uploaders=range(7), revealers=range(6))
    assert opened.to_bytes() == group.plain().to_bytes()
    assert len(group.survivors) == 7


def test_a_client_lost_before_it_shared_does_not_break_its_neighbours() -> None:
    group = MaskedSum(45)
    absent = group.neighbours[0][0]
    present = [index for index in range(45) if index != absent]
    assert group.run(present, present, present).to_bytes() == group.plain().to_bytes()


@pytest.mark.parametrize("drop_out", [0.0, 0.1, 0.2, 0.3, MOST_DROP_OUT])
def test_a_group_of_any_size_withstands_what_a_task_may_ask(drop_out: float) -> None:
    profile = thresholds.withstanding(drop_out)
    assert profile.drop_out == (drop_out or 0.2)
    for members in (*range(SMALLEST_GROUP, 60), 100, 250, 500):
        found = thresholds.find(members, profile)
        assert found.threshold <= found.neighbours


def test_a_ring_opens_as_the_complete_graph_does() -> None:
    ring, complete = MaskedSum(60), MaskedSum(60, neighbours=59, threshold=31)
    lost = {index for index in range(60) if index % 6 == 3}
    survivors = [index for index in range(60) if index not in lost]
    assert len(ring.neighbours[0]) < len(complete.neighbours[0])
    for group in (ring, complete):
        assert group.run(range(60), survivors, survivors).to_bytes() == group.plain().to_bytes()


def test_parts_of_the_work_give_the_same_sum() -> None:
    group = MaskedSum(12, agreement(1_001, 16))
    opened = group.run(range(12), range(10), range(10))
    with ThreadPoolExecutor(3) as executor:
        for parts in (1, 2, 3, 7):
            again = unmasking.unmask(group.total, group.group(), group.revealed, executor, parts)
            assert again.to_bytes() == opened.to_bytes()
    assert opened.to_bytes() == group.plain().to_bytes()


def test_the_masked_sum_is_left_as_it_was() -> None:
    group = MaskedSum(5)
    group.run(range(5), range(5), range(5))
    before = group.total.to_bytes()
    unmasking.unmask(group.total, group.group(), group.revealed)
    assert group.total.to_bytes() == before


def test_too_few_shares_leave_the_sum_closed_and_say_whose() -> None:
    group = unmasking_sum(9, lost=(8,))
    for index in range(group.threshold):
        group.reveal(index)
    # Who revealed holds no share of its own secret: those lack one, the others have exactly enough.
    assert unmasking.missing(group.group(), group.revealed) == tuple(range(group.threshold))
    with pytest.raises(CannotUnmaskError) as raised:
        unmasking.unmask(group.total, group.group(), group.revealed)
    assert raised.value.members == tuple(range(group.threshold))
    group.reveal(group.threshold)
    assert unmasking.missing(group.group(), group.revealed) == ()
    opened = unmasking.unmask(group.total, group.group(), group.revealed)
    assert opened.to_bytes() == group.plain().to_bytes()


def test_the_sum_of_nobody_stays_closed() -> None:
    group = MaskedSum(5)
    with pytest.raises(CannotUnmaskError, match="nobody"):
        unmasking.unmask(group.total, group.group(), {})
    for index in range(5):
        group.share(index)
    with pytest.raises(CannotUnmaskError, match="nobody"):
        unmasking.unmask(group.total, group.group(), {})


@pytest.mark.parametrize("about", [0, 4], ids=["survivor", "dropout"])
def test_a_false_share_leaves_the_sum_closed_and_says_whose_secret_it_was(about: int) -> None:
    group = unmasking_sum(9, lost=(4,))
    for index in sorted(group.survivors):
        group.reveal(index)
    liar = 1
    group.revealed[liar] = [
        RevealedShare(index=share.index, kind=share.kind, share=bytes(33) if share.index == about else share.share)
        for share in group.revealed[liar]
    ]
    unmasking.check_reveal(liar, group.group(), group.revealed[liar])
    with pytest.raises(CannotUnmaskError) as raised:
        unmasking.unmask(group.total, group.group(), group.revealed)
    assert raised.value.members == (about,)


def test_a_member_that_commits_to_another_seed_leaves_the_sum_closed() -> None:
    group = MaskedSum(5)
    group.run(range(5), range(5), range(5))
    group.commitments[2] = bytes(32)
    with pytest.raises(CannotUnmaskError) as raised:
        unmasking.unmask(group.total, group.group(), group.revealed)
    assert raised.value.members == (2,)


def test_masks_of_survivors_cancel_and_a_single_vector_stays_hidden() -> None:
    """What is left of masked vectors minus their self-masks is the sum; of fewer of them it is noise."""
    agreed = agreement(20_000)
    group = MaskedSum(4, agreed)
    for index in range(4):
        group.share(index)
    masked = []
    for index in range(4):
        before = group.total.body.copy()
        group.upload(index)
        masked.append(group.total.body - before)
    for few in ([0], [0, 1], [1, 2, 3]):
        partial = np.sum([masked[index].astype(np.uint64) for index in few], axis=0).astype(np.uint32)
        counts = np.bincount(partial >> 28, minlength=16)
        assert ((counts - 1250) ** 2 / 1250).sum() < 45  # chi-square with 15 degrees of freedom: 1 in 10,000
