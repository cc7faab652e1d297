"""Closed sums to checkpoints, against plain arithmetic on the devices' own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrecon.aggregator.group_events import Config, Metric, Phase, Segment
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.merging import (
    ClosedSum,
    MismatchedCheckpointError,
    NotFiniteError,
    RoundSum,
    apply,
    combine,
)
from fedrecon.aggregator.optimizers import Optimizer, OptimizerStateMismatchError, adam, in_half_precision, sgd
from fedrecon.aggregator.secure_sum import DamagedSumError, InvalidReportError, MessageRefusedError, check_sum
from fedrecon.aggregator.trusted import TrustedSum
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import JoinRequest, JoinResponse, ShareRequest, UnmaskRequest
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, add, dequantise, quantise, zero

CONFIG = Config(
    task="films",
    round=1,
    attempt=1,
    kind=1,
    protocol=1,
    segments=(Segment("items", 8, 0.5), Segment("bias", 3, 2.0)),
    metrics=(Metric("squared_error", 25.0), Metric("count", 1.0)),
    ring_bits=32,
    maximum_reports=40,
    maximum_weight=6,
    minimum_group=0,
    cohort_size=40,
    plan_digest=bytes(32),
    checkpoint_digest=bytes(32),
    expires_milliseconds=1_000,
)
CHECKPOINT: dict[str, Any] = {
    "items": np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2),
    "bias": np.array([1.0, 2.0, 3.0], np.float32),
    "other": np.array([7], np.int64),
}


def report(seed: int, config: Config = CONFIG) -> tuple[Vector, list[np.ndarray[Any, Any]], int, list[float]]:
    generator = np.random.default_rng(seed)
    updates = [generator.uniform(-one.bound, one.bound, one.elements) for one in config.segments]
    examples = int(generator.integers(1, 12))
    metrics = [generator.uniform(0, 25) * examples, float(examples)]
    return quantise(updates, examples, metrics, config.fixed_point, generator.bytes(32)), updates, examples, metrics


def summed(vectors: list[Vector], config: Config = CONFIG) -> ClosedSum:
    total = zero(config.fixed_point)
    for vector in vectors:
        add(total, vector)
    return ClosedSum(total, len(vectors))


def test_the_mean_is_the_weighted_mean_of_the_devices_updates() -> None:
    reports = [report(seed) for seed in range(20)]
    result = combine([summed([one[0] for one in reports])], CONFIG)
    weights = [min(examples, 6) for _, _, examples, _ in reports]
    assert (result.weight, result.reports) == (sum(weights), 20)
    for position, segment in enumerate(CONFIG.segments):
        plain = sum(w * one[1][position] for w, one in zip(weights, reports, strict=True)) / sum(weights)
        assert np.allclose(
            result.mean_updates[segment.parameter], plain, atol=20 / CONFIG.fixed_point.scales()[position]
        )
    assert result.metric_sums["count"] == sum(one[2] for one in reports)
    assert result.metric_sums["squared_error"] == pytest.approx(sum(one[3][0] for one in reports), abs=1e-4)
    flat = np.concatenate([result.mean_updates["items"], result.mean_updates["bias"]])
    assert result.update_norm == pytest.approx(float(np.linalg.norm(flat)))


def test_one_sum_and_many_give_the_same_numbers() -> None:
    vectors = [report(seed)[0] for seed in range(12)]
    together = combine([summed(vectors)], CONFIG)
    apart = combine([summed(vectors[:5]), summed(vectors[5:7]), summed(vectors[7:])], CONFIG)
    assert all(np.array_equal(together.mean_updates[name], apart.mean_updates[name]) for name in together.mean_updates)
    assert (together.weight, together.metric_sums, together.sum_digest) == (
        apart.weight,
        apart.metric_sums,
        apart.sum_digest,
    )
    assert together.sum_digest == digest_of(summed(vectors).total.to_bytes())


def test_one_sum_is_read_as_the_wire_s_own_arithmetic_reads_it() -> None:
    closed = summed([report(seed)[0] for seed in range(9)])
    read = dequantise(closed.total, CONFIG.fixed_point)
    result = combine([closed], CONFIG)
    assert np.array_equal(result.mean_updates["items"], read.updates[0] / read.weight)
    assert tuple(result.metric_sums.values()) == read.metrics


def test_groups_whose_integers_would_wrap_together_do_not() -> None:
    config = replace(CONFIG, ring_bits=16, maximum_reports=2, segments=(Segment("bias", 1, 1.0),), maximum_weight=1)
    vectors = [quantise([np.ones(1)], 1, [0.0, 1.0], config.fixed_point, bytes(32)) for _ in range(6)]
    sums = [summed(vectors[start : start + 2], config) for start in (0, 2, 4)]
    assert combine(sums, config).mean_updates["bias"].tolist() == [1.0]


def test_a_checkpoint_moves_where_the_devices_want_and_nowhere_else() -> None:
    result = combine([summed([report(seed)[0] for seed in range(9)])], CONFIG)
    after, state = apply(result, CHECKPOINT, sgd(1.0), None)
    moved = CHECKPOINT["items"].astype(np.float64) + result.mean_updates["items"].reshape(4, 2)
    assert np.array_equal(after["items"], moved.astype(np.float32))
    assert after["other"] is CHECKPOINT["other"]
    assert state == {}


def test_the_optimizer_s_state_goes_on_from_the_last_round() -> None:
    result = combine([summed([report(seed)[0] for seed in range(9)])], CONFIG)
    optimizer = adam(0.1, 0.9, 0.99, 1e-3, 0.0)
    once, state = apply(result, CHECKPOINT, optimizer, None)
    fresh, _ = apply(result, once, optimizer, None)
    carried, _ = apply(result, once, optimizer, state)
    assert not np.array_equal(fresh["items"], carried["items"])
    with pytest.raises(OptimizerStateMismatchError):
        apply(result, once, sgd(0.1), state)


def held(rows: list[int], updates: dict[str, Any]) -> tuple[RoundSum, dict[str, Any]]:
    """A round's sum that holds some rows of the items only."""
    means = {name: np.asarray(mean, np.float64).ravel() for name, mean in updates.items()}
    return RoundSum(means, 1, 1, {}, 1.0, b""), {"items": np.array(rows)}


@pytest.mark.parametrize("optimizer", [sgd(1.0), sgd(1.0, 0.9), adam(0.1, 0.9, 0.99, 1e-3, 0.0)])
def test_rows_outside_of_a_row_set_keep_their_bytes_and_what_is_remembered_of_them(optimizer: Optimizer) -> None:
    whole = RoundSum({"items": np.ones(8), "bias": np.ones(3)}, 1, 1, {}, 1.0, b"")
    before, state = apply(whole, CHECKPOINT, optimizer, None)
    some, rows = held([0, 3], {"items": np.ones((2, 2)), "bias": np.ones(3)})
    after, kept = apply(some, before, optimizer, state, rows)
    everywhere, remembered = apply(whole, before, optimizer, state)
    assert np.array_equal(after["items"][[1, 2]], before["items"][[1, 2]])
    assert np.array_equal(after["items"][[0, 3]], everywhere["items"][[0, 3]])
    assert np.array_equal(after["bias"], everywhere["bias"])
    assert kept.keys() == state.keys()
    for name, moments in kept.items():
        inside, outside = ([0, 3], [1, 2]) if name.endswith("items") else ([0, 1, 2], [])
        assert np.array_equal(moments[inside], remembered[name][inside])
        assert np.array_equal(moments[outside], state[name][outside])


def test_in_16_bits_rows_outside_of_a_row_set_are_rounded_once_and_lose_nothing() -> None:
    optimizer = in_half_precision(sgd(1.0))
    some, rows = held([0, 3], {"items": np.full((2, 2), 1e-4)})
    before, state = apply(some, CHECKPOINT, optimizer, None, rows)
    assert before["items"].dtype == np.float16
    for _ in range(3):
        after, kept = apply(some, before, optimizer, state, rows)
        assert after["items"][[1, 2]].tobytes() == before["items"][[1, 2]].tobytes()
        before, state = after, kept
    whole = before["items"].astype(np.float32) + state["remainder/items"]
    assert np.array_equal(whole[[1, 2]], CHECKPOINT["items"][[1, 2]])
    assert whole[[0, 3]] == pytest.approx(CHECKPOINT["items"][[0, 3]] + 4e-4, abs=1e-6)
    with pytest.raises(NotFiniteError):
        apply(RoundSum({"items": np.full(8, 1e6)}, 1, 1, {}, 1.0, b""), CHECKPOINT, optimizer, None)


def test_the_first_round_of_a_row_set_remembers_all_rows() -> None:
    some, rows = held([1], {"items": np.ones((1, 2))})
    after, state = apply(some, CHECKPOINT, adam(0.1, 0.9, 0.99, 1e-3, 0.5), None, rows)
    assert state["second_moment/items"].shape == (4, 2)
    assert (state["second_moment/items"][[0, 2, 3]] == 0.5).all()
    assert np.array_equal(after["items"][[0, 2, 3]], CHECKPOINT["items"][[0, 2, 3]])
    assert after["bias"] is CHECKPOINT["bias"]


def test_a_row_set_that_the_checkpoint_or_its_state_does_not_have_is_refused() -> None:
    some, rows = held([1, 4], {"items": np.ones((2, 2))})
    with pytest.raises(MismatchedCheckpointError, match="4 rows as 'items'; the sum has row 4"):
        apply(some, CHECKPOINT, sgd(1.0), None, rows)
    with pytest.raises(MismatchedCheckpointError, match="nothing"):
        apply(some, {}, sgd(1.0), None, rows)
    with pytest.raises(MismatchedCheckpointError, match="the sum is of 4"):
        apply(some, CHECKPOINT, sgd(1.0), None, {"items": np.array([1])})
    longer = {"first_moment/items": np.zeros((9, 2), np.float32)}
    with pytest.raises(OptimizerStateMismatchError, match="9, 2"):
        apply(some, CHECKPOINT, sgd(1.0, 0.9), longer, {"items": np.array([0, 1])})


def test_a_sum_that_contradicts_the_journal_is_refused() -> None:
    closed = summed([report(seed)[0] for seed in range(3)])
    with pytest.raises(DamagedSumError, match="holds 3 reports, the journal 4"):
        combine([replace(closed, reports=4)], CONFIG)
    closed.total.tail[0] = 19
    with pytest.raises(DamagedSumError, match="weights is 19"):
        combine([closed], CONFIG)
    with pytest.raises(DamagedSumError, match="0"):
        combine([], CONFIG)


@pytest.mark.parametrize(
    "items", [None, np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float64)], ids=["missing", "size", "type"]
)
def test_a_checkpoint_of_another_model_is_refused(items: Any) -> None:
    result = combine([summed([report(1)[0]])], CONFIG)
    checkpoint = {name: array for name, array in CHECKPOINT.items() if name != "items"}
    with pytest.raises(MismatchedCheckpointError, match="items"):
        apply(result, checkpoint if items is None else checkpoint | {"items": items}, sgd(1.0), None)


def test_a_result_that_is_not_finite_is_refused() -> None:
    result = combine([summed([report(1)[0]])], CONFIG)
    with pytest.raises(NotFiniteError, match="learning rate"):
        apply(result, CHECKPOINT, adam(3e38, 0.0, 0.9999, 1e-30, 0.0), None)
    broken = CHECKPOINT | {"bias": np.array([np.nan, 0, 0], np.float32)}
    with pytest.raises(NotFiniteError, match="bias"):
        apply(result, broken, sgd(1.0), None)


def changed(entry: int, value: int) -> Vector:
    vector = quantise([np.zeros(8), np.zeros(3)], 3, [1.0, 3.0], CONFIG.fixed_point, bytes(32))
    vector.tail[entry] = value % (1 << 64)
    return vector


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        (0, 0, "weight"),
        (0, 7, "weight"),
        (0, 1 << 63, "weight"),
        (1, 0, "shape"),
        (1, 2, "shape"),
        (1, -1, "shape"),
        (2, (75 << 20) + 1, "norm"),
        (2, -(75 << 20) - 1, "norm"),
        (3, 1 << 62, "norm"),
        (3, -(1 << 63), "norm"),
    ],
)
def test_a_report_with_an_absurd_tail_is_refused(entry: int, value: int, reason: str) -> None:
    protocol = TrustedSum(CONFIG.fixed_point)
    with pytest.raises(InvalidReportError) as caught:
        protocol.check(changed(entry, value))
    assert caught.value.reason == reason


def test_metric_sums_up_to_their_bound_are_taken() -> None:
    protocol = TrustedSum(CONFIG.fixed_point)
    protocol.check(changed(2, 75 << 20))
    protocol.check(changed(2, -(75 << 20)))


@pytest.mark.parametrize("sign", [1, -1])
def test_an_element_beyond_the_bound_is_refused(sign: int) -> None:
    protocol, limit = TrustedSum(CONFIG.fixed_point), CONFIG.fixed_point.quantum_limit
    vector = changed(1, 1)
    vector.body[5] = (sign * limit) % (1 << 32)
    protocol.check(vector)
    vector.body[5] = (sign * (limit + 1)) % (1 << 32)
    with pytest.raises(InvalidReportError, match="element 5"):
        protocol.check(vector)


@pytest.mark.parametrize("seed", range(20))
def test_every_report_that_a_device_makes_is_taken(seed: int) -> None:
    TrustedSum(CONFIG.fixed_point).check(report(seed)[0])


def test_trusted_begins_with_uploads_and_knows_no_other_message() -> None:
    protocol = TrustedSum(CONFIG.fixed_point)
    assert protocol.open() is Phase.UPLOADING
    group = Group(b"g", CONFIG, "holder", Phase.UPLOADING)
    protocol.receive(group, b"s", JoinRequest(), 0)
    assert protocol.answer(group, b"s", JoinRequest()) == JoinResponse(
        group=b"g", phase=aggregator_pb2.GROUP_PHASE_UPLOADING
    )
    for message in (ShareRequest(), UnmaskRequest(), JoinRequest(mask_key=bytes(32))):
        with pytest.raises(MessageRefusedError):
            protocol.receive(group, b"s", message, 0)


def test_a_sum_that_lacks_a_report_is_damaged() -> None:
    closed = summed([report(1)[0], report(2)[0]])
    check_sum(closed.total, 2, CONFIG.maximum_weight)
    with pytest.raises(DamagedSumError):
        check_sum(closed.total, 1, CONFIG.maximum_weight)
