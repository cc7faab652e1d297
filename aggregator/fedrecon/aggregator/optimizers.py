"""Server optimizers: how the mean update of a round becomes new global parameters.

Pairs of `init` and `update` like those of optax, after Reddi et al. 2020, "Adaptive Federated Optimization"
(arXiv 2003.00295, algorithm 2), without bias correction as there. The mean update `d` already points where the
devices want to go, so it is added:

    sgd      m = b1 m + d (only d where b1 = 0)                                   x = x + rate m
    adagrad  m = b1 m + (1 - b1) d    v = v + d^2                                  x = x + rate m / (sqrt(v) + tau)
    adam     m = b1 m + (1 - b1) d    v = b2 v + (1 - b2) d^2                      the same
    yogi     m = b1 m + (1 - b1) d    v = v - (1 - b2) d^2 sign(v - d^2)           the same

with m = 0 and v = `initial_accumulator` before the first round (momentum of sgd: Hsu et al. 2019, arXiv 1909.06335).

Rules: the arithmetic is elementwise in float64 and rounded to float32 once, where a value is kept (m, v, x), so equal
inputs give equal bits on every machine; x is made from the rounded m and v, so what is stored is what was used. A
parameter without an update keeps its bits and its state; a row whose update and m are zero stays as it is.

`in_half_precision` wraps any of them where checkpoints have 16 bits: half of what every device fetches in every round.
What devices fetch, and take their updates against, is x rounded to float16; what rounding took away is remembered with
the state, which devices never get, so small steps add up (as mixed precision training keeps a master copy: Micikevicius
et al. 2018, arXiv 1710.03740). It is a remainder and no copy: rows that a sum does not hold keep theirs, new rows begin
with none, as for every other state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.v1 import task_pb2
from fedrecon.v1.task_pb2 import ServerOptimizer

Parameters = Mapping[str, NDArray[Any]]
"""Global parameters by name, `[...] float32`."""

Updates = Mapping[str, NDArray[np.float64]]
"""Mean updates (after - before) by the parameter's name, in its shape."""

State = Mapping[str, NDArray[Any]]
"""What an optimizer remembers, `[...] float32`, named `first_moment/PARAMETER` and `second_moment/PARAMETER`."""

FIRST_MOMENT = "first_moment/"
SECOND_MOMENT = "second_moment/"
REMAINDER = "remainder/"

_LARGEST = float(np.finfo(np.float32).max)
"""Of a number that a rule is given: what is kept has 32 bits."""

_SecondMoment = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class OptimizerStateMismatchError(ValueError):
    """The remembered state is not of this optimizer over these parameters."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A server optimizer.

    Attributes:
        init: gives the state before the first round, for the parameters that will be updated.
        update: takes mean updates, state and parameters; gives new parameters (all of them, those without an update
            as they were) and the new state. Raises `OptimizerStateMismatchError` if the state does not fit.
    """

    init: Callable[[Parameters], dict[str, NDArray[np.float32]]]
    update: Callable[[Updates, State, Parameters], tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]]


def sgd(rate: float, momentum: float = 0.0) -> Optimizer:
    """Returns gradient descent, with momentum where it is not 0 (FedAvgM).

    Raises:
        ValueError: the rate is not > 0 or the momentum not in [0, 1).

    Example:
        >>> optimizer = sgd(rate=0.5)
        >>> before = {"items": np.array([1.0, 2.0], np.float32)}
        >>> optimizer.update({"items": np.array([4.0, 0.0])}, optimizer.init(before), before)[0]["items"].tolist()
        [3.0, 2.0]
    """
    _check_positive("rate", rate)
    _check_share("momentum", momentum)

    def init(parameters: Parameters) -> dict[str, NDArray[np.float32]]:
        return _moments(FIRST_MOMENT, parameters, 0.0) if momentum else {}

    def update(
        updates: Updates, state: State, parameters: Parameters
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
        _check_state(init, updates, state, parameters)
        after, kept = dict(parameters), dict(state)
        for name, change in updates.items():
            step = change
            if momentum:
                kept[FIRST_MOMENT + name] = _rounded(momentum * _exact(state[FIRST_MOMENT + name]) + change)
                step = _exact(kept[FIRST_MOMENT + name])
            after[name] = _moved(parameters[name], rate * step)
        return after, kept

    return Optimizer(init, update)


def adagrad(rate: float, momentum: float, adaptivity: float, initial_accumulator: float) -> Optimizer:
    """Returns FedAdagrad: see `from_message` for the arguments and the module for the formulas."""
    return _adaptive(rate, momentum, adaptivity, initial_accumulator, lambda second, square: second + square)


def adam(
    rate: float, momentum: float, second_momentum: float, adaptivity: float, initial_accumulator: float
) -> Optimizer:
    """Returns FedAdam: see `from_message` for the arguments and the module for the formulas."""
    _check_share("second_momentum", second_momentum)

    def accumulate(second: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return second_momentum * second + (1.0 - second_momentum) * square

    return _adaptive(rate, momentum, adaptivity, initial_accumulator, accumulate)


def yogi(
    rate: float, momentum: float, second_momentum: float, adaptivity: float, initial_accumulator: float
) -> Optimizer:
    """Returns FedYogi: see `from_message` for the arguments and the module for the formulas."""
    _check_share("second_momentum", second_momentum)

    def accumulate(second: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        return second - (1.0 - second_momentum) * square * np.sign(second - square)

    return _adaptive(rate, momentum, adaptivity, initial_accumulator, accumulate)


def in_half_precision(optimizer: Optimizer) -> Optimizer:
    """Returns an optimizer whose parameters have 16 bits and whose steps do not.

    Args:
        optimizer: makes the steps.

    Example:
        >>> half, before = in_half_precision(sgd(rate=1.0)), {"items": np.float32([1.0])}
        >>> state = half.init(before)
        >>> for _ in range(10):  # each step is too small for 16 bits
        ...     before, state = half.update({"items": np.array([1e-4])}, state, before)
        >>> str(before["items"].dtype), float(before["items"][0])
        ('float16', 1.0009765625)
    """

    def init(parameters: Parameters) -> dict[str, NDArray[np.float32]]:
        remainders = {REMAINDER + name: _remainder(_single(array)) for name, array in parameters.items()}
        return optimizer.init(parameters) | remainders

    def update(
        updates: Updates, state: State, parameters: Parameters
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
        inner = {name: array for name, array in state.items() if not name.startswith(REMAINDER)}
        exact = dict(parameters)
        for name in updates:
            remainder = state.get(REMAINDER + name)
            if remainder is None or remainder.shape != parameters[name].shape:
                raise OptimizerStateMismatchError(
                    f"the optimizer's state has no remainder of {name} in its shape: it is one of 32-bit checkpoints"
                )
            exact[name] = _single(_half(_single(parameters[name]))) + remainder
        after, kept = optimizer.update(updates, inner, exact)
        remainders = {name: array for name, array in state.items() if name.startswith(REMAINDER)}
        for name in updates:
            remainders[REMAINDER + name] = _remainder(after[name])
            after[name] = _half(after[name])
        return after, kept | remainders

    return Optimizer(init, update)


def from_message(message: ServerOptimizer) -> Optimizer:
    """Returns the optimizer that a task asks for.

    Args:
        message: `rate` is the server learning rate, `momentum` b1, `second_momentum` b2, `adaptivity` tau,
            `initial_accumulator` the first v; sgd uses the first two, adagrad all but b2. `checkpoint_bits` says what
            devices fetch.

    Raises:
        ValueError: the rule is unknown, or a number is outside of what the rule allows.
    """
    match message.checkpoint_bits:
        case 0 | 32:
            return _rule_of(message)
        case 16:
            return in_half_precision(_rule_of(message))
        case _:
            raise ValueError(f"checkpoint_bits {message.checkpoint_bits}: 16 or 32 is needed")


def _rule_of(message: ServerOptimizer) -> Optimizer:
    first = (message.rate, message.momentum)
    last = (message.adaptivity, message.initial_accumulator)
    match message.rule:
        case task_pb2.OPTIMIZER_RULE_SGD:
            return sgd(*first)
        case task_pb2.OPTIMIZER_RULE_ADAGRAD:
            return adagrad(*first, *last)
        case task_pb2.OPTIMIZER_RULE_ADAM:
            return adam(*first, message.second_momentum, *last)
        case task_pb2.OPTIMIZER_RULE_YOGI:
            return yogi(*first, message.second_momentum, *last)
        case _:
            raise ValueError(f"optimizer rule {message.rule} is not known; use SGD, ADAGRAD, ADAM or YOGI")


def _adaptive(
    rate: float, momentum: float, adaptivity: float, initial_accumulator: float, accumulate: _SecondMoment
) -> Optimizer:
    _check_positive("rate", rate)
    _check_share("momentum", momentum)
    _check_positive("adaptivity", adaptivity)
    if not 0.0 <= initial_accumulator <= _LARGEST:
        raise ValueError(f"initial_accumulator {initial_accumulator} must be >= 0 and at most {_LARGEST:.3g}")

    def init(parameters: Parameters) -> dict[str, NDArray[np.float32]]:
        return _moments(FIRST_MOMENT, parameters, 0.0) | _moments(SECOND_MOMENT, parameters, initial_accumulator)

    def update(
        updates: Updates, state: State, parameters: Parameters
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
        _check_state(init, updates, state, parameters)
        after, kept = dict(parameters), dict(state)
        for name, change in updates.items():
            first = _rounded(momentum * _exact(state[FIRST_MOMENT + name]) + (1.0 - momentum) * change)
            second = _rounded(accumulate(_exact(state[SECOND_MOMENT + name]), np.square(change)))
            divisor = np.sqrt(_exact(second))
            divisor += adaptivity
            after[name] = _moved(parameters[name], rate * (_exact(first) / divisor))
            kept[FIRST_MOMENT + name], kept[SECOND_MOMENT + name] = first, second
        return after, kept

    return Optimizer(init, update)


def _moved(parameter: NDArray[Any], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns the parameter plus a step, which is overwritten."""
    step += parameter
    return _rounded(step)


def _exact(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinities are found, and refused, where the result is used
        return values.astype(np.float32)


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # infinities are found, and refused, where the result is used
        return values.astype(np.float16)


def _remainder(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        return values - _single(_half(values))


def _moments(prefix: str, parameters: Parameters, value: float) -> dict[str, NDArray[np.float32]]:
    return {prefix + name: np.full(array.shape, value, np.float32) for name, array in parameters.items()}


def _check_state(
    init: Callable[[Parameters], dict[str, NDArray[np.float32]]], updates: Updates, state: State, parameters: Parameters
) -> None:
    wanted = {name: array.shape for name, array in init({name: parameters[name] for name in updates}).items()}
    found = {name: array.shape for name, array in state.items()}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise OptimizerStateMismatchError(
            f"the optimizer's state has {found.get(name, 'nothing')} as {name}, but {wanted.get(name, 'nothing')} is "
            "needed: it is another optimizer's or another model's; go on with the one it was made by, or without state"
        )
    for name, change in updates.items():
        if change.shape != parameters[name].shape:
            raise ValueError(f"update of {name} is {list(change.shape)}, the parameter {list(parameters[name].shape)}")


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value <= _LARGEST:
        raise ValueError(f"{name} {value} must be > 0 and at most {_LARGEST:.3g}")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} {value} must be in [0, 1)")
