"""Known answers and edges of the arithmetic that both ends share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.v1 import plan_pb2, task_pb2
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.wire import chunks, digests, fixed_point, keystream, manifests, schedules, tensors, vocabularies

VECTORS = json.loads((Path(__file__).parents[2] / "protos" / "vectors" / "wire.json").read_text())


def test_the_keystream_gives_its_published_words() -> None:
    for case in VECTORS["keystream"]:
        drawn = keystream.words(bytes.fromhex(case["seed"]), case["purpose"], case["start"], len(case["words"]))
        assert drawn.tolist() == case["words"]


def test_quantising_gives_its_published_integers() -> None:
    for case in VECTORS["fixed_point"]:
        agreement = fixed_point.FixedPoint(
            segments=tuple(fixed_point.Segment(**segment) for segment in case["segments"]),
            metric_bounds=tuple(case["metric_bounds"]),
            maximum_reports=case["maximum_reports"],
            maximum_weight=case["maximum_weight"],
            ring_bits=case["ring_bits"],
        )
        vector = fixed_point.quantise(
            [np.array(update, dtype=np.float32) for update in case["updates"]],
            case["examples"],
            case["metric_sums"],
            agreement,
            bytes.fromhex(case["rounding_seed"]),
        )
        assert vector.to_bytes().hex() == case["vector"]


def test_initial_locals_give_their_published_values() -> None:
    for case in VECTORS["initial_locals"]:
        manifest = plan_pb2.Manifest(format=1)
        for parameter in case["parameters"]:
            manifest.parameters.add(
                name=parameter["name"],
                placement=plan_pb2.PLACEMENT_LOCAL,
                dtype="DTYPE_FLOAT32",
                shape=parameter["shape"],
                initial=plan_pb2.Initial(**parameter["initial"]),
            )
        initial = manifests.initial_locals(manifest, {}, bytes.fromhex(case["seed"]))
        for parameter in case["parameters"]:
            expected = np.array(parameter["values"], dtype=np.float32).reshape(parameter["shape"])
            assert np.array_equal(initial[parameter["name"]], expected)


def test_digests_are_the_published_ones() -> None:
    for case in VECTORS["digests"]:
        assert digests.digest_of(bytes.fromhex(case["content"])).hex() == case["sha256"]


def test_splits_are_the_published_ones() -> None:
    for case in VECTORS["splits"]:
        support, query = schedules.split(
            case["examples"],
            task_pb2.SplitRule.Value(case["rule"]),
            batch_size=case["batch_size"],
            support_fraction=case["support_fraction"],
            seed=bytes.fromhex(case["seed"]),
        )
        assert support.tolist() == case["support"]
        assert query.tolist() == case["query"]


def test_schedules_are_the_published_ones() -> None:
    for case in VECTORS["schedules"]:
        schedule = Schedule(batch_size=case["batch_size"], epochs=case["epochs"], maximum_steps=case["maximum_steps"])
        order, mask = schedules.order(np.array(case["positions"], dtype=np.int64), schedule)
        assert order.tolist() == case["order"]
        assert mask.tolist() == case["mask"]


def test_plan_signatures_are_the_published_ones() -> None:
    for case in VECTORS["plan_signatures"]:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["secret_key"]))
        signature = manifests.sign_plan(bytes.fromhex(case["plan_digest"]), key)
        assert signature.publisher_key.hex() == case["publisher_key"]
        assert signature.signature.hex() == case["signature"]


def test_the_keystream_is_addressed_by_position() -> None:
    whole = keystream.words(bytes(range(32)), "test", 0, 1000)
    for start, count in [(0, 1), (1, 7), (3, 4), (997, 3), (500, 0)]:
        assert np.array_equal(keystream.words(bytes(range(32)), "test", start, count), whole[start : start + count])


@pytest.mark.parametrize(("seed", "start", "count"), [(bytes(31), 0, 1), (bytes(32), -1, 1), (bytes(32), 0, -1)])
def test_a_wrong_seed_or_range_is_refused(seed: bytes, start: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"seed|negative"):
        keystream.words(seed, "test", start, count)


def test_an_extreme_update_cannot_overflow_the_sum_of_all_reports() -> None:
    agreement = fixed_point.FixedPoint((fixed_point.Segment(3, 0.5),), (), maximum_reports=7, maximum_weight=10)
    total = fixed_point.zero(agreement)
    for _ in range(7):
        extreme = [np.array([1e30, -1e30, 0.5], dtype=np.float32)]
        fixed_point.add(total, fixed_point.quantise(extreme, 999, [], agreement, bytes(32)))
    summed = fixed_point.dequantise(total, agreement)
    np.testing.assert_allclose(summed.updates[0], [35.0, -35.0, 35.0], rtol=1e-6)
    assert summed.weight == 70
    assert summed.reports == 7


def test_zero_stays_zero_whatever_the_rounding() -> None:
    agreement = fixed_point.FixedPoint((fixed_point.Segment(1000, 1.0),), (), maximum_reports=3, maximum_weight=1)
    vector = fixed_point.quantise([np.zeros(1000, np.float32)], 1, [], agreement, bytes(range(32)))
    assert not vector.body.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    agreement = fixed_point.FixedPoint((fixed_point.Segment(1, 1.0),), (), maximum_reports=3, maximum_weight=1)
    with pytest.raises(ValueError, match="not finite"):
        fixed_point.quantise([np.array([value], np.float32)], 1, [], agreement, bytes(32))


def test_a_ring_too_small_for_its_reports_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a ring of 16 bits"):
        fixed_point.FixedPoint((), (), maximum_reports=1 << 15, maximum_weight=1, ring_bits=16)


def test_checkpoints_are_read_by_the_safetensors_library_and_the_other_way_round() -> None:
    arrays: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    theirs = safetensors.numpy.load(tensors.write_safetensors(arrays, {"round": "3"}))
    ours = tensors.read_safetensors(safetensors.numpy.save(arrays))
    for name, expected in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


def test_equal_tensors_give_equal_files_whatever_their_order() -> None:
    first, second = np.ones(3, np.float32), np.zeros(2, np.float32)
    assert tensors.write_safetensors({"x": first, "y": second}) == tensors.write_safetensors({"y": second, "x": first})


def test_every_cut_of_a_checkpoint_is_found() -> None:
    whole = tensors.write_safetensors({"x": np.ones(3, np.float32)})
    for length in range(len(whole)):
        with pytest.raises(tensors.MalformedTensorsError):
            tensors.read_safetensors(whole[:length])


def test_a_tensor_travels_as_a_message() -> None:
    array = np.arange(6, dtype=np.int64).reshape(3, 2)
    message = tensors.to_message("x", array)
    assert np.array_equal(tensors.from_message(message), array)
    message.data = message.data[:-1]
    with pytest.raises(tensors.MalformedTensorsError, match="needs 48 bytes, not 47"):
        tensors.from_message(message)


def test_chunks_continue_where_a_transfer_stopped() -> None:
    content = bytes(range(256)) * 20
    received = content[:1000]
    for chunk in chunks.cut(content, offset=1000, size=999):
        received += chunks.take(chunk, len(received), len(content))
    assert received == content


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        (Chunk(offset=1, data=b"x", digest=digests.digest_of(b"x")), chunks.ChunkOrderError),
        (Chunk(offset=0, data=b"", digest=digests.digest_of(b"")), chunks.ChunkOrderError),
        (Chunk(offset=0, data=b"xyz", digest=digests.digest_of(b"xyz")), chunks.ChunkOrderError),
        (Chunk(offset=0, data=b"x", digest=digests.digest_of(b"y")), digests.DigestMismatchError),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(chunk: Chunk, error: type[Exception]) -> None:
    with pytest.raises(error):
        chunks.take(chunk, expected_offset=0, limit=2)


def test_alternate_batches_are_those_of_the_paper() -> None:
    support, query = schedules.split(23, task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, batch_size=5)
    assert support.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22]
    assert query.tolist() == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]


def test_a_schedule_repeats_its_batches_and_stops_at_its_limit() -> None:
    positions = np.array([4, 7, 9], dtype=np.int64)
    steps, mask = schedules.order(positions, Schedule(batch_size=2, epochs=2, maximum_steps=3))
    assert steps.tolist() == [[4, 7], [9, 0], [4, 7]]
    assert mask.tolist() == [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def test_an_empty_support_set_gives_no_steps() -> None:
    steps, mask = schedules.order(np.zeros(0, np.int64), Schedule(batch_size=5, epochs=3))
    assert steps.shape == mask.shape == (0, 5)


def test_an_unstated_split_is_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        schedules.split(3, task_pb2.SPLIT_RULE_UNSPECIFIED, batch_size=5)


def test_a_signature_holds_for_its_plan_and_publisher_only() -> None:
    key, other = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    digest = digests.digest_of(b"plan")
    signature = manifests.sign_plan(digest, key)
    manifests.verify_plan(digest, signature)
    with pytest.raises(manifests.BadSignatureError):
        manifests.verify_plan(digests.digest_of(b"another plan"), signature)
    signature.publisher_key = manifests.sign_plan(digest, other).publisher_key
    with pytest.raises(manifests.BadSignatureError):
        manifests.verify_plan(digest, signature)
    with pytest.raises(manifests.BadSignatureError):
        manifests.verify_plan(digest, plan_pb2.PlanSignature())


def test_a_plan_of_a_later_format_asks_for_an_upgrade() -> None:
    with pytest.raises(manifests.MalformedPlanError, match=r"format 99.*upgrade"):
        manifests.read_manifest(b'{"format": 99, "name": "later"}')


def test_a_damaged_manifest_is_refused() -> None:
    with pytest.raises(manifests.MalformedPlanError, match="cannot be read"):
        manifests.read_manifest(b"\xff\xfe{")


def test_a_vocabulary_finds_rows_and_says_what_it_does_not_know() -> None:
    items = vocabularies.read_vocabulary(vocabularies.write_vocabulary("items", 1, ["a", "b"], ["Alpha", "Beta"]))
    assert items.rows_of(["b", "x", "a"]).tolist() == [1, -1, 0]
    assert items.title_of(1) == "Beta"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        vocabularies.write_vocabulary("items", 1, ["a", "a"]),
        vocabularies.write_vocabulary("items", 1, ["a"], ["A", "B"]),
        plan_pb2.Vocabulary(name="items", keys=["a"], retired_rows=[1]).SerializeToString(),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(content: bytes) -> None:
    with pytest.raises(vocabularies.MalformedVocabularyError):
        vocabularies.read_vocabulary(content)
