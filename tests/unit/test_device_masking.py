"""A device's part in a masked sum: what it does, what it refuses, and the flaws that others have had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedrecon.device_sdk.errors import SumRefusedError
from fedrecon.device_sdk.masking import Masking
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, Member, SealedShare, ShareResponse, UnmaskResponse
from fedrecon.wire import fixed_point, key_agreement, sum_context
from fedrecon.wire.digests import digest_of
from support.masked_sums import CHECKPOINT, MaskedDevice, MaskedSum, agreement, entropy_of

MEMBERS = 45
"""A ring: 22 neighbours, threshold 13."""


@pytest.fixture
def ring() -> MaskedSum:
    return MaskedSum(MEMBERS)


@pytest.fixture
def little() -> MaskedSum:
    """A complete graph of five, threshold 3, in which everybody shared."""
    group = MaskedSum(5)
    for index in range(5):
        group.share(index)
    return group


def refusal(step: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(SumRefusedError) as raised:
        step(*arguments)
    return raised.value.reason


def duplicate(joined: JoinResponse) -> None:
    joined.neighbours[1].CopyFrom(joined.neighbours[0])


def same_key(joined: JoinResponse) -> None:
    joined.neighbours[1].mask_key = joined.neighbours[0].mask_key


def same_device(joined: JoinResponse) -> None:
    joined.neighbours[1].device_key = joined.neighbours[0].device_key


def key_for_both(joined: JoinResponse) -> None:
    joined.neighbours[0].mask_key = joined.neighbours[0].share_key


def own_index(joined: JoinResponse) -> None:
    joined.neighbours[0].index = joined.index


def beyond_the_roster(joined: JoinResponse) -> None:
    joined.neighbours[0].index = joined.members


def own_index_beyond_the_roster(joined: JoinResponse) -> None:
    joined.index = joined.members


def short_nonce(joined: JoinResponse) -> None:
    joined.server_nonce = bytes(31)


def short_group(joined: JoinResponse) -> None:
    joined.group = b""


def short_roster_digest(joined: JoinResponse) -> None:
    joined.roster_digest = bytes(31)


def unsigned(joined: JoinResponse) -> None:
    joined.neighbours[3].key_signature = b""


def swapped_keys(joined: JoinResponse) -> None:
    member = joined.neighbours[3]
    member.share_key, member.mask_key = member.mask_key, member.share_key


def of_another_session(joined: JoinResponse) -> None:
    joined.neighbours[3].session_digest = bytes(32)


def no_device_key(joined: JoinResponse) -> None:
    joined.neighbours[3].device_key = b""


def few_neighbours(joined: JoinResponse) -> None:
    del joined.neighbours[9:]
    joined.threshold = 6


def no_neighbours(joined: JoinResponse) -> None:
    del joined.neighbours[:]
    joined.threshold = 0


def fewer_than_threshold(joined: JoinResponse) -> None:
    joined.threshold = len(joined.neighbours) + 1


def half_a_threshold(joined: JoinResponse) -> None:
    joined.threshold = len(joined.neighbours) // 2


def no_threshold(joined: JoinResponse) -> None:
    joined.threshold = 0


def huge(joined: JoinResponse) -> None:
    joined.members = 101


def tiny(joined: JoinResponse) -> None:
    joined.members = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (duplicate, "BAD_ROSTER"),
        (same_key, "BAD_ROSTER"),
        (same_device, "BAD_ROSTER"),
        (key_for_both, "BAD_ROSTER"),
        (own_index, "BAD_ROSTER"),
        (beyond_the_roster, "BAD_ROSTER"),
        (own_index_beyond_the_roster, "BAD_ROSTER"),
        (short_nonce, "BAD_ROSTER"),
        (short_group, "BAD_ROSTER"),
        (short_roster_digest, "BAD_ROSTER"),
        (unsigned, "BAD_SIGNATURE"),
        (swapped_keys, "BAD_SIGNATURE"),
        (of_another_session, "BAD_SIGNATURE"),
        (no_device_key, "BAD_SIGNATURE"),
        (few_neighbours, "TOO_FEW_NEIGHBOURS"),
        (no_neighbours, "TOO_FEW_NEIGHBOURS"),
        (fewer_than_threshold, "TOO_FEW_NEIGHBOURS"),
        (half_a_threshold, "THRESHOLD_TOO_LOW"),
        (no_threshold, "THRESHOLD_TOO_LOW"),
        (huge, "GROUP_TOO_LARGE"),
        (tiny, "GROUP_TOO_SMALL"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_group_that_hides_less_than_it_should_is_refused(
    ring: MaskedSum, change: Callable[[JoinResponse], None], reason: str
) -> None:
    joined = ring.joined(0)
    change(joined)
    assert refusal(ring.devices[0].masking.share, joined) == reason


def test_its_own_keys_among_the_neighbours_are_refused(ring: MaskedSum) -> None:
    own = ring.roster[0]
    for name in ("share_key", "mask_key", "device_key"):
        joined = ring.joined(0)
        setattr(joined.neighbours[0], name, getattr(own, name))
        device = MaskedDevice(" 0", ring.agreed)
        assert device.entry(0) == own
        assert refusal(device.masking.share, joined) == "BAD_ROSTER"


@pytest.mark.parametrize(("floor", "promised"), [(46, 2), (2, 46)])
def test_a_group_below_the_floor_or_the_promise_is_refused(ring: MaskedSum, floor: int, promised: int) -> None:
    device = MaskedDevice(" 0", ring.agreed, minimum_group=promised)
    masking = Masking(entropy_of(" 0"), device.key.sign, floor, device.terms)
    assert refusal(masking.share, ring.joined(0)) == "GROUP_TOO_SMALL"


def test_a_sum_cannot_wrap_because_larger_groups_than_its_scale_are_refused() -> None:
    group = MaskedSum(6, agreement(maximum_reports=5))
    assert refusal(group.share, 0) == "GROUP_TOO_LARGE"


def test_a_key_of_small_order_is_refused_though_it_is_signed(ring: MaskedSum) -> None:
    other = ring.devices[ring.neighbours[0][0]]
    member = ring.roster[ring.neighbours[0][0]]
    member.share_key = bytes(32)
    message = sum_context.keys_message(other.terms.round_key, member.session_digest, member.share_key, member.mask_key)
    member.key_signature = other.key.sign(message)
    assert refusal(ring.share, 0) == "BAD_KEY"


def test_in_a_complete_graph_the_roster_must_be_the_one_of_its_digest() -> None:
    group = MaskedSum(5)
    joined = group.joined(0)
    joined.roster_digest = bytes(32)
    assert refusal(group.devices[0].masking.share, joined) == "BAD_ROSTER"


def test_every_neighbour_gets_one_share_and_none_is_readable_by_another(little: MaskedSum) -> None:
    for index, shares in little.sealed.items():
        assert [share.to_index for share in shares] == list(little.neighbours[index])
        assert len({share.ciphertext for share in shares}) == len(shares)


def test_the_same_request_gets_the_same_bytes_in_every_step(little: MaskedSum) -> None:
    device, vector = little.devices[1], little.vectors[1].to_bytes()
    assert device.masking.join_keys() is device.masking.join_keys()
    joined = little.joined(1)
    joined.phase = aggregator_pb2.GROUP_PHASE_UPLOADING  # the group went on; its numbers are the same
    joined.aggregator = "elsewhere:1"
    assert device.masking.share(joined)[0] == little.sealed[1]
    masked = device.masking.mask(little.shared(1), vector)
    backwards = ShareResponse(shares=reversed(little.shared(1).shares))
    assert device.masking.mask(backwards, vector) == masked
    revealed = device.masking.reveal(UnmaskResponse(survivors=[0, 2, 3], dropouts=[4]))
    again = UnmaskResponse(survivors=[3, 2, 0], dropouts=[4], phase=aggregator_pb2.GROUP_PHASE_CLOSED)
    assert device.masking.reveal(again) == revealed


def test_two_vectors_are_never_masked_with_one_mask(little: MaskedSum) -> None:
    masking = little.devices[0].masking
    masked = masking.mask(little.shared(0), little.vectors[0].to_bytes())
    assert refusal(masking.mask, little.shared(0), little.vectors[1].to_bytes()) == "ANSWERED_ALREADY"
    assert masking.mask(little.shared(0), little.vectors[0].to_bytes()) == masked


def test_one_vector_is_never_masked_with_two_sets_of_neighbours(little: MaskedSum) -> None:
    masking, vector = little.devices[0].masking, little.vectors[0].to_bytes()
    masking.mask(little.shared(0), vector)
    fewer = ShareResponse(shares=little.shared(0).shares[:-1])
    assert refusal(masking.mask, fewer, vector) == "ANSWERED_ALREADY"


def test_a_second_group_gets_no_shares(little: MaskedSum) -> None:
    joined = little.joined(0)
    joined.server_nonce = bytes(32)
    assert refusal(little.devices[0].masking.share, joined) == "ANSWERED_ALREADY"


def test_both_shares_of_one_neighbour_are_never_handed_out(little: MaskedSum) -> None:
    masking = little.devices[0].masking
    masking.mask(little.shared(0), little.vectors[0].to_bytes())
    first = masking.reveal(UnmaskResponse(survivors=[1, 2, 3], dropouts=[4]))
    for survivors, dropouts in (([1, 2, 4], [3]), ([1, 2, 3, 4], []), ([4, 2, 3], [1])):
        lists = UnmaskResponse(survivors=survivors, dropouts=dropouts)
        assert refusal(masking.reveal, lists) == "ANSWERED_ALREADY"
    again = masking.reveal(UnmaskResponse(survivors=[1, 2, 3], dropouts=[4]))
    assert again == first
    assert len({share.index for share in first}) == len(first) == 4


@pytest.mark.parametrize(
    ("survivors", "dropouts"),
    [
        ([1, 2, 3], []),
        ([1, 2, 3, 4], [4]),
        ([1, 2, 3, 4, 4], []),
        ([1, 2, 3], [4, 0]),
        ([0, 1, 2, 3], [4]),
        ([1, 2, 3], [4, 9]),
        ([], []),
    ],
    ids=["incomplete", "overlapping", "twice", "itself lost", "itself", "stranger", "empty"],
)
def test_lists_that_are_not_of_everybody_once_are_refused(
    little: MaskedSum, survivors: list[int], dropouts: list[int]
) -> None:
    masking = little.devices[0].masking
    masking.mask(little.shared(0), little.vectors[0].to_bytes())
    lists = UnmaskResponse(survivors=survivors, dropouts=dropouts)
    assert refusal(masking.reveal, lists) == "BAD_LISTS"
    good = UnmaskResponse(survivors=[1, 2, 3], dropouts=[4])
    assert refusal(masking.reveal, good) == "OUT_OF_ORDER"  # a refusal ends the part


def test_nothing_is_revealed_for_fewer_survivors_than_recover_a_secret(little: MaskedSum) -> None:
    masking = little.devices[0].masking
    masking.mask(little.shared(0), little.vectors[0].to_bytes())
    lists = UnmaskResponse(survivors=[1, 2], dropouts=[3, 4])
    assert refusal(masking.reveal, lists) == "TOO_FEW_NEIGHBOURS"


def test_where_it_sees_all_members_it_reveals_nothing_for_fewer_than_the_promise() -> None:
    group = MaskedSum(8)  # threshold 4 of 7
    group.devices[0] = MaskedDevice(" 0", group.agreed, minimum_group=7)
    for index in range(8):
        group.share(index)
    group.upload(0)
    lists = UnmaskResponse(survivors=[1, 2, 3, 4, 5], dropouts=[6, 7])
    assert refusal(group.devices[0].masking.reveal, lists) == "GROUP_TOO_SMALL"


def test_nothing_is_masked_when_too_few_neighbours_shared(little: MaskedSum) -> None:
    few = ShareResponse(shares=little.shared(0).shares[:2])
    masking = little.devices[0].masking
    assert refusal(masking.mask, few, little.vectors[0].to_bytes()) == "TOO_FEW_NEIGHBOURS"


def tampered(shares: list[SealedShare]) -> None:
    shares[0].ciphertext = bytes([shares[0].ciphertext[0] ^ 1]) + shares[0].ciphertext[1:]


def addressed_elsewhere(shares: list[SealedShare]) -> None:
    shares[0].to_index = 3


def from_a_stranger(shares: list[SealedShare]) -> None:
    shares[0].from_index = 77


def from_itself(shares: list[SealedShare]) -> None:
    shares[0].from_index = 0


def swapped(shares: list[SealedShare]) -> None:
    shares[0].ciphertext, shares[1].ciphertext = shares[1].ciphertext, shares[0].ciphertext


def repeated(shares: list[SealedShare]) -> None:
    shares.append(shares[0])


def cut_short(shares: list[SealedShare]) -> None:
    shares[0].ciphertext = shares[0].ciphertext[:10]


@pytest.mark.parametrize(
    "change",
    [tampered, addressed_elsewhere, from_a_stranger, from_itself, swapped, repeated, cut_short],
    ids=lambda change: change.__name__,
)
def test_a_share_that_is_not_a_neighbours_for_it_is_refused(
    little: MaskedSum, change: Callable[[list[SealedShare]], None]
) -> None:
    shares = list(little.shared(0).shares)
    change(shares)
    masking = little.devices[0].masking
    assert refusal(masking.mask, ShareResponse(shares=shares), little.vectors[0].to_bytes()) == "BAD_SHARE"


def test_a_share_meant_for_another_member_does_not_open(little: MaskedSum) -> None:
    stolen = next(share for share in little.sealed[1] if share.to_index == 2)
    shares = [share for share in little.shared(0).shares if share.from_index != 1]
    shares.append(SealedShare(from_index=1, to_index=0, ciphertext=stolen.ciphertext))
    masking = little.devices[0].masking
    assert refusal(masking.mask, ShareResponse(shares=shares), little.vectors[0].to_bytes()) == "BAD_SHARE"


def test_steps_are_taken_in_order() -> None:
    group = MaskedSum(5)
    for step in (
        lambda masking: masking.mask(ShareResponse(), group.vectors[0].to_bytes()),
        lambda masking: masking.reveal(UnmaskResponse()),
    ):
        masking = MaskedDevice("early", group.agreed).masking
        assert refusal(step, masking) == "OUT_OF_ORDER"
    group.share(0)
    masking = group.devices[0].masking
    assert refusal(masking.reveal, UnmaskResponse(survivors=[1, 2, 3, 4])) == "OUT_OF_ORDER"


def test_a_refusal_ends_the_part_and_forgets_its_secrets(little: MaskedSum) -> None:
    masking = little.devices[0].masking
    shares = list(little.shared(0).shares)
    tampered(shares)
    refusal(masking.mask, ShareResponse(shares=shares), little.vectors[0].to_bytes())
    assert refusal(masking.mask, little.shared(0), little.vectors[0].to_bytes()) == "OUT_OF_ORDER"
    assert masking._secrets is None
    assert not masking._held
    assert not masking._sealing


def test_a_part_that_is_done_has_forgotten_its_secrets(little: MaskedSum) -> None:
    for index in range(5):
        little.upload(index)
    for index in range(5):
        little.reveal(index)
    for device in little.devices:
        assert device.masking._secrets is None
        assert not device.masking._held


def test_a_vector_of_another_length_is_a_mistake_of_the_caller(little: MaskedSum) -> None:
    masking, vector = little.devices[0].masking, little.vectors[0].to_bytes()
    with pytest.raises(ValueError, match="the layout needs"):
        masking.mask(little.shared(0), vector + b"\0")
    assert masking.mask(little.shared(0), vector) != vector


@pytest.mark.parametrize("odd_one", [0, 3, 4])
def test_a_device_shown_another_model_breaks_the_sum_instead_of_standing_out(odd_one: int) -> None:
    """Nothing that it sealed opens, and nothing sealed for it: the group goes no further with it."""
    group = MaskedSum(5)
    group.devices[odd_one] = MaskedDevice(f" {odd_one}", group.agreed, checkpoint=digest_of(b"another"))
    assert digest_of(b"another") != CHECKPOINT
    for index in range(5):
        group.share(index)
    for index in range(5):
        assert refusal(group.upload, index) == "BAD_SHARE"


@pytest.mark.parametrize("field", ["members", "threshold", "roster_digest", "server_nonce", "group"])
def test_devices_shown_other_numbers_do_not_open_each_others_shares(field: str) -> None:
    group = MaskedSum(MEMBERS)
    joined = group.joined(0)
    value = getattr(joined, field)
    setattr(joined, field, value + 1 if isinstance(value, int) else bytes(len(value)))
    if field == "group":
        joined.group = bytes([9] * 16)
    shares, commitment = group.devices[0].masking.share(joined)
    group.sealed[0], group.commitments[0] = shares, commitment
    for index in range(1, MEMBERS):
        group.share(index)
    assert refusal(group.upload, 0) == "BAD_SHARE"
    assert refusal(group.upload, group.neighbours[0][0]) == "BAD_SHARE"


def test_masks_of_members_with_different_contexts_do_not_cancel() -> None:
    """Also where shares are not looked at: the masks themselves are bound to what each was shown."""
    one, other = bytes(range(32)), bytes(range(1, 33))
    keys = key_agreement.public_key_of(one), key_agreement.public_key_of(other)
    contexts = [digest_of(b"this model"), digest_of(b"that model")]
    first = key_agreement.Agreement(one, contexts[0], 0).mask_seed(1, keys[1])
    assert key_agreement.Agreement(other, contexts[0], 1).mask_seed(0, keys[0]) == first
    assert key_agreement.Agreement(other, contexts[1], 1).mask_seed(0, keys[0]) != first


def test_the_number_of_examples_travels_under_the_mask_only() -> None:
    messages = (
        aggregator_pb2.JoinRequest,
        aggregator_pb2.ShareRequest,
        aggregator_pb2.UploadHeader,
        aggregator_pb2.UnmaskRequest,
    )
    names = {field.name for message in messages for field in message.DESCRIPTOR.fields}
    assert not {name for name in names if "example" in name or "weight" in name}
    group = MaskedSum(5)
    for index in range(5):
        group.share(index)
    lengths = set()
    for index in range(5):
        masked = fixed_point.read_vector(
            group.devices[index].masking.mask(group.shared(index), group.vectors[index].to_bytes()), group.agreed
        )
        assert int(masked.tail[fixed_point.TAIL_WEIGHT]) > 2**32  # but for 1 in 2^32
        assert int(masked.tail[fixed_point.TAIL_ONE]) > 2**32
        lengths.add(len(masked.to_bytes()))
    assert lengths == {group.agreed.vector_bytes}


def test_a_masked_vector_is_noise_and_as_long_as_the_plain_one() -> None:
    group = MaskedSum(4, agreement(40_000))
    for index in range(4):
        group.share(index)
    plain = fixed_point.zero(group.agreed).to_bytes()  # nothing at all to report
    masked = group.devices[0].masking.mask(group.shared(0), plain)
    counts = np.bincount(np.frombuffer(masked, dtype=np.uint8), minlength=256)
    expected = len(masked) / 256
    assert len(masked) == len(plain)
    assert ((counts - expected) ** 2 / expected).sum() < 360  # chi-square with 255 degrees of freedom: 1 in 50,000


def test_own_entry_is_not_changed_by_what_the_server_says(ring: MaskedSum) -> None:
    before = Member()
    before.CopyFrom(ring.devices[0].masking._own)
    ring.share(0)
    assert ring.devices[0].masking._own == before
