"""Server optimizers against a scalar transcription of Reddi et al. 2020, algorithm 2."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np
import pytest

from fedrecon.aggregator import optimizers
from fedrecon.aggregator.optimizers import OptimizerStateMismatchError
from fedrecon.v1 import task_pb2
from fedrecon.v1.task_pb2 import ServerOptimizer

RATE, FIRST, SECOND, TAU, INITIAL = 0.3, 0.9, 0.99, 1e-3, 1e-6
RULES = {
    "sgd": task_pb2.OPTIMIZER_RULE_SGD,
    "adagrad": task_pb2.OPTIMIZER_RULE_ADAGRAD,
    "adam": task_pb2.OPTIMIZER_RULE_ADAM,
    "yogi": task_pb2.OPTIMIZER_RULE_YOGI,
}


def message(rule: str, **changes: float) -> ServerOptimizer:
    numbers = {
        "rate": RATE,
        "momentum": FIRST,
        "second_momentum": SECOND,
        "adaptivity": TAU,
        "initial_accumulator": INITIAL,
    } | changes
    made = ServerOptimizer(rule=RULES[rule])
    for name, value in numbers.items():
        setattr(made, name, value)
    return made


def single(value: float) -> float:
    """Rounds to binary32, without numpy."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


SECOND_MOMENTS: dict[str, Callable[[float, float], float]] = {
    "adagrad": lambda v, square: v + square,
    "adam": lambda v, square: SECOND * v + (1.0 - SECOND) * square,
    "yogi": lambda v, square: v - (1.0 - SECOND) * square * (0.0 if v == square else math.copysign(1.0, v - square)),
}


def by_hand(rule: str, start: float, changes: list[float]) -> float:
    """One coordinate, several rounds, as the paper writes it."""
    x, m, v = single(start), 0.0, single(INITIAL)
    for change in changes:
        if rule == "sgd":
            m = single(FIRST * m + change)
            x = single(x + RATE * m)
            continue
        m = single(FIRST * m + (1.0 - FIRST) * change)
        v = single(SECOND_MOMENTS[rule](v, change * change))
        x = single(x + RATE * (m / (math.sqrt(v) + TAU)))
    return x


@pytest.mark.parametrize("rule", RULES)
def test_the_paper_s_formulas_hold_bit_for_bit(rule: str) -> None:
    generator = np.random.default_rng(4)
    start = generator.normal(size=(5, 3)).astype(np.float32)
    rounds = [generator.normal(scale=10.0**-power, size=(5, 3)) for power in range(6)]
    optimizer = optimizers.from_message(message(rule))
    parameters, state = {"items": start}, optimizer.init({"items": start})
    for change in rounds:
        parameters, state = optimizer.update({"items": change}, state, parameters)
    expected = [
        by_hand(rule, float(start[row, column]), [float(change[row, column]) for change in rounds])
        for row in range(5)
        for column in range(3)
    ]
    assert parameters["items"].dtype == np.float32
    assert parameters["items"].ravel().tolist() == expected


def test_adam_s_first_step_is_the_closed_form() -> None:
    # m = (1 - b1) d and v = (1 - b2) d^2 from v0 = 0: the step is rate (1 - b1) / (sqrt(1 - b2) + tau / |d|) sign(d).
    optimizer = optimizers.from_message(message("adam", initial_accumulator=0.0))
    before = {"x": np.zeros(1, np.float32)}
    after, _ = optimizer.update({"x": np.array([-2.0])}, optimizer.init(before), before)
    assert after["x"][0] == pytest.approx(-RATE * 0.1 / (math.sqrt(0.01) + TAU / 2.0), rel=1e-6)


def test_yogi_lets_go_of_a_large_second_moment_more_slowly_than_adam() -> None:
    second = {}
    for rule in ("adam", "yogi"):
        optimizer = optimizers.from_message(message(rule, initial_accumulator=1.0))
        before = {"x": np.zeros(1, np.float32)}
        _, state = optimizer.update({"x": np.array([0.1])}, optimizer.init(before), before)
        second[rule] = float(state["second_moment/x"][0])
    assert second["adam"] == pytest.approx(0.99 + 0.01 * 0.01)
    assert second["yogi"] == pytest.approx(1.0 - 0.01 * 0.01)


@pytest.mark.parametrize("rule", RULES)
def test_untouched_rows_and_parameters_stay_as_they_are(rule: str) -> None:
    generator = np.random.default_rng(1)
    before = {"items": generator.normal(size=(6, 2)).astype(np.float32), "bias": np.ones(2, np.float32)}
    change = np.zeros((6, 2))
    change[2] = 1.0
    optimizer = optimizers.from_message(message(rule))
    after, _ = optimizer.update({"items": change}, optimizer.init({"items": before["items"]}), before)
    assert np.array_equal(np.delete(after["items"], 2, axis=0), np.delete(before["items"], 2, axis=0))
    assert not np.array_equal(after["items"][2], before["items"][2])
    assert after["bias"] is before["bias"]


@pytest.mark.parametrize("rule", RULES)
def test_in_16_bits_devices_get_the_32_bit_parameters_rounded_and_nothing_is_lost(rule: str) -> None:
    generator = np.random.default_rng(7)
    start = {"items": generator.normal(size=(40, 3)).astype(np.float32), "bias": np.ones(2, np.float32)}
    full, half = optimizers.from_message(message(rule)), optimizers.from_message(message(rule, checkpoint_bits=16))
    wide, wide_state = dict(start), full.init({"items": start["items"]})
    narrow, state = dict(start), half.init({"items": start["items"]})
    for power in range(8):  # the later steps are far below what 16 bits tell apart
        change = {"items": generator.normal(scale=10.0**-power, size=(40, 3))}
        wide, wide_state = full.update(change, wide_state, wide)
        narrow, state = half.update(change, state, narrow)
        assert narrow["items"].dtype == np.float16
        assert np.array_equal(narrow["items"], wide["items"].astype(np.float16))
        assert np.array_equal(narrow["items"].astype(np.float32) + state["remainder/items"], wide["items"])
    assert {name: state[name].tobytes() for name in wide_state} == {
        name: array.tobytes() for name, array in wide_state.items()
    }
    assert narrow["bias"] is start["bias"]


def test_a_state_of_32_bits_is_refused_in_16_and_the_other_way_round() -> None:
    before, change = {"x": np.ones(3, np.float32)}, {"x": np.ones(3)}
    full, half = optimizers.from_message(message("adam")), optimizers.from_message(message("adam", checkpoint_bits=16))
    with pytest.raises(OptimizerStateMismatchError, match="32-bit"):
        half.update(change, full.init(before), before)
    with pytest.raises(OptimizerStateMismatchError):
        full.update(change, half.init(before), before)
    with pytest.raises(ValueError, match="checkpoint_bits 8: 16 or 32 is needed"):
        optimizers.from_message(message("adam", checkpoint_bits=8))


def test_sgd_without_momentum_has_no_state_and_adds_the_mean() -> None:
    optimizer = optimizers.from_message(message("sgd", rate=1.0, momentum=0.0))
    before = {"x": np.array([1.0, 2.0], np.float32)}
    assert optimizer.init(before) == {}
    after, state = optimizer.update({"x": np.array([0.5, -0.5])}, {}, before)
    assert after["x"].tolist() == [1.5, 1.5]
    assert state == {}


def test_inputs_are_not_changed() -> None:
    optimizer = optimizers.from_message(message("adam"))
    before, change = {"x": np.ones(3, np.float32)}, {"x": np.ones(3)}
    state = optimizer.init(before)
    optimizer.update(change, state, before)
    assert before["x"].tolist() == change["x"].tolist() == [1.0] * 3
    assert state["first_moment/x"].tolist() == [0.0] * 3


@pytest.mark.parametrize("rule", ["adagrad", "adam", "yogi"])
def test_a_state_of_something_else_is_refused(rule: str) -> None:
    before = {"x": np.ones(3, np.float32)}
    optimizer = optimizers.from_message(message(rule))
    for state in ({}, optimizer.init({"x": np.ones(4, np.float32)}), optimizer.init({**before, "y": before["x"]})):
        with pytest.raises(OptimizerStateMismatchError, match="moment/"):
            optimizer.update({"x": np.ones(3)}, state, before)


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ("sgd", "rate", 0.0),
        ("sgd", "rate", math.inf),
        ("sgd", "momentum", 1.0),
        ("adam", "second_momentum", -0.1),
        ("yogi", "second_momentum", math.nan),
        ("adagrad", "adaptivity", 0.0),
        ("adam", "initial_accumulator", -1.0),
        ("adam", "initial_accumulator", 1e300),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(rule: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        optimizers.from_message(message(rule, **{name: value}))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule 0"):
        optimizers.from_message(ServerOptimizer(rate=1.0))
