"""Known answers and edges of what both ends of a masked sum do alike."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.v1.aggregator_pb2 import Member
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire import fixed_point, key_agreement, keystream, masks, shamir, sum_context
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Segment
from fedrecon.wire.sum_context import SumContext

VECTORS = json.loads((Path(__file__).parents[2] / "protos" / "vectors" / "secure_sum.json").read_text())


def bytes_of(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def context_of(case: dict[str, Any]) -> SumContext:
    return SumContext(
        task=case["task"],
        round=case["round"],
        attempt=case["attempt"],
        kind=case["kind"],
        group=bytes_of(case, "group"),
        server_nonce=bytes_of(case, "server_nonce"),
        plan_digest=bytes_of(case, "plan_digest"),
        checkpoint_digest=bytes_of(case, "checkpoint_digest"),
        members=case["members"],
        neighbours=case["neighbours"],
        threshold=case["threshold"],
        fixed_point=FixedPoint(
            segments=tuple(
                Segment(each["elements"], each["bound"], bytes.fromhex(each.get("row_set", "")))
                for each in case["segments"]
            ),
            metric_bounds=tuple(case["metric_bounds"]),
            maximum_reports=case["maximum_reports"],
            maximum_weight=case["maximum_weight"],
            ring_bits=case["ring_bits"],
        ),
        roster_digest=bytes_of(case, "roster_digest"),
    )


def agreement_of(member: int, kind: str) -> key_agreement.Agreement:
    context = bytes.fromhex(VECTORS["contexts"][0]["context"])
    return key_agreement.Agreement(bytes_of(VECTORS["keys"][member], f"{kind}_secret"), context, member)


def public_key(member: int, kind: str) -> bytes:
    return bytes_of(VECTORS["keys"][member], f"{kind}_key")


def test_keys_and_signatures_over_them_are_the_published_ones() -> None:
    for case in VECTORS["keys"]:
        assert key_agreement.public_key_of(bytes_of(case, "share_secret")) == bytes_of(case, "share_key")
        assert key_agreement.public_key_of(bytes_of(case, "mask_secret")) == bytes_of(case, "mask_key")
        round_key = RoundKey(task=case["task"], round=case["round"], attempt=case["attempt"])
        session_digest = digest_of(bytes_of(case, "session"))
        message = sum_context.keys_message(
            round_key, session_digest, bytes_of(case, "share_key"), bytes_of(case, "mask_key")
        )
        assert message.hex() == case["message"]
        device = Ed25519PrivateKey.from_private_bytes(bytes_of(case, "device_secret"))
        assert device.public_key().public_bytes_raw().hex() == case["device_key"]
        assert device.sign(message).hex() == case["signature"]


def test_the_roster_has_its_published_digest() -> None:
    members = [
        Member(
            index=index,
            share_key=bytes_of(case, "share_key"),
            mask_key=bytes_of(case, "mask_key"),
            device_key=bytes_of(case, "device_key"),
            session_digest=digest_of(bytes_of(case, "session")),
        )
        for index, case in enumerate(VECTORS["keys"])
    ]
    assert sum_context.roster_digest(members).hex() == VECTORS["roster_digest"]


def test_contexts_are_the_published_ones() -> None:
    for case in VECTORS["contexts"]:
        assert context_of(case).digest().hex() == case["context"]


def test_pairs_agree_on_the_published_seeds_and_keys_from_both_sides() -> None:
    for case in VECTORS["pairs"]:
        for member, other in (case["members"], reversed(case["members"])):
            mask_seed = agreement_of(member, "mask").mask_seed(other, public_key(other, "mask"))
            assert mask_seed.hex() == case["mask_seed"]
            sealing = agreement_of(member, "share").share_key(other, public_key(other, "share"))
            assert sealing.key.hex() == case["share_key"]


def test_shares_are_the_published_ones() -> None:
    for case in VECTORS["shares"]:
        points = [int(point) for point in case["shares"]]
        entropy = BytesIO(bytes_of(case, "entropy"))
        shares = shamir.split(bytes_of(case, "secret"), case["threshold"], points, entropy.read)
        assert {str(point): share.hex() for point, share in shares.items()} == case["shares"]
        assert shamir.combine(shares, case["threshold"]) == bytes_of(case, "secret")


def test_sealed_shares_are_the_published_ones_and_open() -> None:
    for case in VECTORS["sealed_shares"]:
        member, other = case["from"], case["to"]
        pair = bytes_of(case, "key_share"), bytes_of(case, "seed_share")
        sender = agreement_of(member, "share").share_key(other, public_key(other, "share"))
        assert sender.seal(*pair).hex() == case["ciphertext"]
        receiver = agreement_of(other, "share").share_key(member, public_key(member, "share"))
        assert receiver.open(bytes_of(case, "ciphertext")) == pair


def test_commitments_are_the_published_ones() -> None:
    for case in VECTORS["seed_commitments"]:
        commitment = sum_context.seed_commitment(bytes_of(case, "context"), case["member"], bytes_of(case, "seed"))
        assert commitment.hex() == case["commitment"]


def test_masks_are_the_published_ones() -> None:
    for case in VECTORS["masks"]:
        metrics = (1.0,) * (case["tail_entries"] - 2)
        agreed = FixedPoint((Segment(case["elements"], 1.0),), metrics, 3, 10, case["ring_bits"])
        vector = fixed_point.zero(agreed)
        masks.add_mask(vector, bytes_of(case, "seed"), 1)
        assert vector.to_bytes().hex() == case["mask"]


def test_masked_vectors_are_the_published_ones_and_sum_to_the_plain_sum() -> None:
    agreed = context_of(VECTORS["contexts"][0]).fixed_point
    total = fixed_point.zero(agreed)
    seeds = [bytes_of(case, "seed") for case in VECTORS["seed_commitments"]]
    for case in VECTORS["masked_vectors"]:
        member = case["member"]
        read = fixed_point.read_vector(bytes_of(case, "vector"), agreed)
        masked = fixed_point.Vector(read.body.copy(), read.tail.copy())
        masks.add_mask(masked, seeds[member], 1)
        for other in {0, 1, 2} - {member}:
            seed = agreement_of(member, "mask").mask_seed(other, public_key(other, "mask"))
            masks.add_mask(masked, seed, masks.pair_sign(member, other))
        assert masked.to_bytes().hex() == case["masked"]
        fixed_point.add(total, masked)
    assert total.to_bytes().hex() == VECTORS["sum"]["masked"]
    masks.add_masks(total, [], seeds)
    assert total.to_bytes().hex() == VECTORS["sum"]["plain"]


@pytest.mark.parametrize(
    "change",
    [
        {"task": "film"},
        {"round": 8},
        {"attempt": 3},
        {"kind": 2},
        {"group": bytes(16)},
        {"server_nonce": bytes(32)},
        {"plan_digest": bytes(32)},
        {"checkpoint_digest": bytes(32)},
        {"members": 4},
        {"neighbours": 3},
        {"threshold": 3},
        {"roster_digest": bytes(32)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.0)), (25.0,), 3, 10, 16)},
        {"fixed_point": FixedPoint((Segment(2, 0.5), Segment(3, 1.25)), (25.0,), 3, 10, 16)},
        {"fixed_point": FixedPoint((Segment(3, 0.5, b"s" * 32), Segment(2, 1.25)), (25.0,), 3, 10, 16)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.25)), (24.0,), 3, 10, 16)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.25)), (25.0,), 4, 10, 16)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.25)), (25.0,), 3, 11, 16)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.25)), (25.0,), 3, 10, 32)},
        {"fixed_point": FixedPoint((Segment(3, 0.5), Segment(2, 1.25)), (), 3, 10, 16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_members_are_told_differently_gives_another_context(change: dict[str, Any]) -> None:
    context = context_of(VECTORS["contexts"][0])
    assert replace(context, **change).digest() != context.digest()


def test_the_encoding_tells_where_one_item_ends() -> None:
    keys = bytes(32), bytes(32)
    one = sum_context.keys_message(RoundKey(task="ab", round=1, attempt=1), b"c" * 32, *keys)
    other = sum_context.keys_message(RoundKey(task="a", round=1, attempt=1), b"bc" * 16, *keys)
    assert one != other
    assert len(one) != len(sum_context.keys_message(RoundKey(task="a", round=1, attempt=1), b"c" * 32, *keys))


def test_a_share_does_not_open_for_another_context_pair_or_direction() -> None:
    secret, other_secret = os.urandom(32), os.urandom(32)
    key, other_key = key_agreement.public_key_of(secret), key_agreement.public_key_of(other_secret)
    context = bytes(32)
    sealed = key_agreement.Agreement(secret, context, 1).share_key(2, other_key).seal(bytes(33), bytes(33))
    assert key_agreement.Agreement(other_secret, context, 2).share_key(1, key).open(sealed)
    for context_told, member, other in ((bytes([1] * 32), 2, 1), (context, 3, 1), (context, 2, 4), (context, 1, 2)):
        receiver = key_agreement.Agreement(other_secret, context_told, member).share_key(other, key)
        with pytest.raises(key_agreement.BadSealError):
            receiver.open(sealed)


@pytest.mark.parametrize("position", [0, 40, 81])
def test_a_damaged_share_does_not_open(position: int) -> None:
    secret = os.urandom(32)
    sealing = key_agreement.Agreement(secret, bytes(32), 1).share_key(2, key_agreement.public_key_of(os.urandom(32)))
    opening = key_agreement.SealingKey(sealing.key, bytes(32), 2, 1)
    sealed = bytearray(sealing.seal(bytes(33), bytes(33)))
    sealed[position] ^= 1
    with pytest.raises(key_agreement.BadSealError):
        opening.open(bytes(sealed))


@pytest.mark.parametrize("sealed", [b"", bytes(15), bytes(16), bytes(81)])
def test_what_is_no_sealed_share_does_not_open(sealed: bytes) -> None:
    with pytest.raises(key_agreement.BadSealError):
        key_agreement.SealingKey(bytes(32), bytes(32), 1, 2).open(sealed)


SMALL_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ((1 << 255) - 20).to_bytes(32, "little"),
)


@pytest.mark.parametrize(
    "key", [*SMALL_ORDER, b"", bytes(31), ((1 << 255) - 19 + 9).to_bytes(32, "little"), bytes([9] * 31) + b"\x80"]
)
def test_a_public_key_of_small_order_or_of_another_encoding_is_refused(key: bytes) -> None:
    with pytest.raises(key_agreement.BadKeyError):
        key_agreement.check_public_key(key)


def test_a_public_key_of_a_device_is_not_refused() -> None:
    key_agreement.check_public_key(key_agreement.public_key_of(os.urandom(32)))


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_nobody_agrees_with_a_key_of_small_order(key: bytes) -> None:
    with pytest.raises(key_agreement.BadKeyError):
        key_agreement.Agreement(os.urandom(32), bytes(32), 0).mask_seed(1, key)


@pytest.mark.parametrize("seed", [b"", bytes(4), bytes(31), bytes(33)])
def test_a_mask_comes_from_256_bits_and_no_fewer(seed: bytes) -> None:
    agreed = FixedPoint((Segment(4, 1.0),), (), 2, 1)
    with pytest.raises(ValueError, match="seed has 32 bytes"):
        masks.add_mask(fixed_point.zero(agreed), seed, 1)


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_masks_added_in_parts_are_those_of_the_whole(ring_bits: int) -> None:
    elements = 3 * masks.PIECE_BYTES // 2 + 5
    agreed = FixedPoint((Segment(elements, 1.0),), (1.0,), 10, 5, ring_bits)
    seeds = [bytes([number]) * 32 for number in range(3)]
    whole, parts = fixed_point.zero(agreed), fixed_point.zero(agreed)
    masks.add_masks(whole, seeds[:2], seeds[2:])
    limits = [0, 1, 7, elements // 3, elements - 1, elements]
    for start, end in itertools.pairwise(limits):
        masks.add_range(parts.body[start:end], start * parts.body.itemsize, seeds[:2], seeds[2:])
    masks.add_range(parts.tail, parts.body.nbytes, seeds[:2], seeds[2:])
    assert parts.to_bytes() == whole.to_bytes()
    expected = keystream.stream_from(seeds[0], "mask", 0).update(bytes(agreed.vector_bytes))
    masks.add_masks(whole, seeds[2:], [seeds[1]])
    assert whole.to_bytes() == expected


def test_tail_masks_have_all_64_bits() -> None:
    agreed = FixedPoint((), (1.0,), 2, 1, 16)
    seen = np.zeros(agreed.tail_entries, dtype="<u8")
    for number in range(40):
        vector = fixed_point.zero(agreed)
        masks.add_mask(vector, bytes([number]) * 32, 1)
        seen |= vector.tail
    assert (seen == np.uint64(2**64 - 1)).all()


@pytest.mark.parametrize("sign", [0, 2, -2])
def test_a_mask_is_added_or_subtracted_and_nothing_else(sign: int) -> None:
    with pytest.raises(ValueError, match="sign 1 or -1"):
        masks.add_mask(fixed_point.zero(FixedPoint((), (), 2, 1)), bytes(32), sign)


def test_members_of_a_pair_use_opposite_signs() -> None:
    assert (masks.pair_sign(3, 8), masks.pair_sign(8, 3)) == (1, -1)


def test_too_few_or_damaged_shares_are_refused() -> None:
    shares = shamir.split(bytes(range(32)), 3, [1, 2, 3, 4], os.urandom)
    for few in ({}, {1: shares[1]}, {1: shares[1], 2: shares[2]}):
        with pytest.raises(shamir.DamagedShareError):
            shamir.combine(few, 3)
    for wrong in (b"", shares[1][:32], shares[1] + b"\0", shamir.PRIME.to_bytes(33, "little"), b"\xff" * 33):
        with pytest.raises(shamir.DamagedShareError):
            shamir.combine({**shares, 1: wrong}, 3)
    for point in (0, -1, shamir.LARGEST_POINT + 1):
        with pytest.raises(shamir.DamagedShareError):
            shamir.combine({point: shares[1], 2: shares[2], 3: shares[3]}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(31), 1, [1]),
        (bytes(32), 0, [1]),
        (bytes(32), 2, [1]),
        (bytes(32), 2, [1, 1]),
        (bytes(32), 1, [0]),
        (bytes(32), 1, [shamir.LARGEST_POINT + 1]),
    ],
)
def test_a_secret_is_split_only_where_its_shares_can_give_it_back(
    secret: bytes, threshold: int, points: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"secret|shares|points"):
        shamir.split(secret, threshold, points, os.urandom)


def test_a_source_that_gives_too_little_splits_nothing() -> None:
    for short in (0, 1, 49, 97):
        with pytest.raises(ValueError, match="entropy"):
            shamir.split(bytes(32), 3, [1, 2, 3], BytesIO(bytes(short)).read)


def test_the_prime_is_the_smallest_above_256_bits() -> None:
    def passes(number: int) -> bool:  # Miller and Rabin, first bases
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            value = pow(base, odd, number)
            if value in {1, number - 1}:
                continue
            for _ in range(twos - 1):
                value = value * value % number
                if value == number - 1:
                    break
            else:
                return False
        return True

    assert passes(shamir.PRIME)
    assert not any(passes(number) for number in range((1 << 256) + 1, shamir.PRIME, 2))
