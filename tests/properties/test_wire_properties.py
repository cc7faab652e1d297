"""What must hold for every input of the shared arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.wire import fixed_point, schedules

disjoint_rules = st.sampled_from(
    [
        task_pb2.SPLIT_RULE_ALTERNATE_BATCHES,
        task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES,
        task_pb2.SPLIT_RULE_BY_TIME,
        task_pb2.SPLIT_RULE_BY_FRACTION,
    ]
)


@given(
    examples=st.integers(0, 400),
    rule=disjoint_rules,
    batch_size=st.integers(1, 20),
    fraction=st.floats(0, 1),
    seed=st.binary(min_size=32, max_size=32),
    epochs=st.integers(0, 4),
)
def test_support_and_query_are_disjoint_and_together_everything(
    examples: int, rule: task_pb2.SplitRule.ValueType, batch_size: int, fraction: float, seed: bytes, epochs: int
) -> None:
    support, query = schedules.split(examples, rule, batch_size=batch_size, support_fraction=fraction, seed=seed)
    assert sorted([*support.tolist(), *query.tolist()]) == list(range(examples))
    schedule = Schedule(batch_size=batch_size, epochs=epochs)
    reconstructed_on, updated_on = (
        set(order[mask > 0].tolist())
        for order, mask in (schedules.order(support, schedule), schedules.order(query, schedule))
    )
    assert not reconstructed_on & updated_on


@given(
    positions=st.lists(st.integers(0, 1000), unique=True, max_size=60),
    batch_size=st.integers(1, 9),
    epochs=st.integers(0, 3),
)
def test_every_epoch_visits_every_position_once(positions: list[int], batch_size: int, epochs: int) -> None:
    order, mask = schedules.order(np.array(positions, dtype=np.int64), Schedule(batch_size=batch_size, epochs=epochs))
    assert sorted(order[mask > 0].tolist()) == sorted(positions * epochs)


updates = hnp.arrays(np.float32, 12, elements=st.floats(-2, 2, width=32))


@given(
    reports=st.lists(st.tuples(updates, st.integers(1, 300), st.floats(-50, 50)), min_size=1, max_size=8),
    ring_bits=st.sampled_from([16, 32]),
    shuffle_seed=st.integers(0, 99),
)
def test_sums_are_exact_in_any_order_and_near_the_truth(
    reports: list[tuple[np.ndarray, int, float]], ring_bits: int, shuffle_seed: int
) -> None:
    agreement = fixed_point.FixedPoint(
        (fixed_point.Segment(5, 1.0), fixed_point.Segment(7, 2.0)), (50.0,), 8, 100, ring_bits=ring_bits
    )
    vectors = [
        fixed_point.quantise([update[:5], update[5:]], examples, [metric], agreement, bytes([index]) * 32)
        for index, (update, examples, metric) in enumerate(reports)
    ]
    totals = []
    for order in (range(len(vectors)), np.random.default_rng(shuffle_seed).permutation(len(vectors))):
        total = fixed_point.zero(agreement)
        for index in order:
            fixed_point.add(total, vectors[int(index)])
        totals.append(total)
    assert totals[0].to_bytes() == totals[1].to_bytes()
    summed = fixed_point.dequantise(totals[0], agreement)
    assert summed.reports == len(reports)
    assert summed.weight == sum(min(examples, 100) for _, examples, _ in reports)
    for index, (bound, piece) in enumerate([(1.0, slice(0, 5)), (2.0, slice(5, 12))]):
        truth = sum(
            np.clip(update[piece].astype(np.float64) * min(examples, 100), -100 * bound, 100 * bound)
            for update, examples, _ in reports
        )
        resolution = 100 * bound / agreement.quantum_limit
        np.testing.assert_allclose(summed.updates[index], truth, atol=len(reports) * resolution * 1.001)
    np.testing.assert_allclose(summed.metrics[0], sum(metric for _, _, metric in reports), atol=1e-5)


@given(update=updates, seed=st.binary(min_size=32, max_size=32))
def test_a_vector_survives_its_bytes(update: np.ndarray, seed: bytes) -> None:
    agreement = fixed_point.FixedPoint((fixed_point.Segment(12, 2.0),), (1.0,), 3, 5)
    vector = fixed_point.quantise([update], 3, [0.5], agreement, seed)
    again = fixed_point.read_vector(vector.to_bytes(), agreement)
    assert np.array_equal(again.body, vector.body)
    assert np.array_equal(again.tail, vector.tail)
