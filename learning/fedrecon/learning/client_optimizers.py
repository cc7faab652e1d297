"""How a client's parameters follow their gradients: SGD, momentum, Adagrad and Adam, as functions of tensors.

Reconstruction and update each have one (`GradientSteps.optimizer`, `FederatedModel.update_optimizer`). The same
functions run inside plans on devices and in the simulation; state begins anew for every session.

    sgd       x = x - rate d
    momentum  m = b m + d                                              x = x - rate m
    adagrad   v = v + d^2                                              x = x - rate d / (sqrt(v) + epsilon)
    adam      m = b1 m + (1 - b1) d    v = b2 v + (1 - b2) d^2         x = x - rate m' / (sqrt(v') + epsilon)
              with m' = m / w1, v' = v / w2, where w1 = b1 w1 + (1 - b1), w2 = b2 w2 + (1 - b2)

The weights of Adam, the same averages of ones, are 1 - b1^t and 1 - b2^t. Made of powers in 32 bits they put the
first steps off by 7e-6 of their length; as averages, by 2e-7.

Rules: pure, no in-place change, no control flow on values, so that they can be traced; state has names, the
parameter's own among them, and everything starts at a number (`initial_state`). The formulas are those of
`torch.optim`, which the tests compare with.

Source: Duchi et al. 2011 (Adagrad), Kingma and Ba 2015 (Adam, arXiv 1412.6980).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]

MOMENTUM = "momentum/"
SQUARES = "squares/"
MOMENTUM_WEIGHT = "momentum weight"
SQUARES_WEIGHT = "squares weight"


@dataclass(frozen=True, slots=True)
class Sgd:
    """Gradient descent.

    Attributes:
        momentum: share of the last direction that is kept; 0 for none.
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)


@dataclass(frozen=True, slots=True)
class Adagrad:
    """Rates shrink with the squares of all gradients so far.

    Attributes:
        initial_accumulator: the sum of squares before the first step.
        epsilon: keeps the divisor away from zero.
    """

    initial_accumulator: float = 0.0
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        if self.initial_accumulator < 0 or self.epsilon <= 0:
            raise ValueError(
                f"Adagrad needs initial_accumulator >= 0 and epsilon > 0, not {self.initial_accumulator} "
                f"and {self.epsilon}"
            )


@dataclass(frozen=True, slots=True)
class Adam:
    """Moving averages of gradients and of their squares, corrected for their start at zero.

    Attributes:
        momentum: b1, share of the last average of gradients.
        second_momentum: b2, share of the last average of squares.
        epsilon: keeps the divisor away from zero.
    """

    momentum: float = 0.9
    second_momentum: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)
        _check_share("second_momentum", self.second_momentum)
        if self.epsilon <= 0:
            raise ValueError(f"Adam needs epsilon > 0, not {self.epsilon}")


ClientOptimizer = Sgd | Adagrad | Adam


def initial_state(optimizer: ClientOptimizer, parameters: Tensors) -> dict[str, Tensor]:
    """Returns the state before the first step.

    Args:
        optimizer: the rule.
        parameters: those that will move, by name.

    Returns:
        `momentum/NAME` and `squares/NAME` in the parameter's shape, `momentum weight` and `squares weight` scalars: as
        many as the rule needs.
    """
    match optimizer:
        case Sgd(momentum=0.0):
            return {}
        case Sgd():
            return {f"{MOMENTUM}{name}": torch.zeros_like(value) for name, value in parameters.items()}
        case Adagrad(initial_accumulator=start):
            return {f"{SQUARES}{name}": torch.full_like(value, start) for name, value in parameters.items()}
        case Adam():
            first = {f"{MOMENTUM}{name}": torch.zeros_like(value) for name, value in parameters.items()}
            second = {f"{SQUARES}{name}": torch.zeros_like(value) for name, value in parameters.items()}
            none = torch.zeros((), device=next(iter(parameters.values())).device)
            return {**first, **second, MOMENTUM_WEIGHT: none, SQUARES_WEIGHT: none}


def step(
    optimizer: ClientOptimizer, parameters: Tensors, gradients: Tensors, state: Tensors, rate: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Takes one step.

    Args:
        optimizer: the rule.
        parameters: by name.
        gradients: of the loss, by the parameter's name, in its shape.
        state: as `initial_state` or the last step gave it.
        rate: of this step, a scalar.

    Returns:
        New parameters and new state.
    """
    moved: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    if isinstance(optimizer, Adam):
        first, second = optimizer.momentum, optimizer.second_momentum
        kept[MOMENTUM_WEIGHT] = first * state[MOMENTUM_WEIGHT] + (1.0 - first)
        kept[SQUARES_WEIGHT] = second * state[SQUARES_WEIGHT] + (1.0 - second)
    for name, value in parameters.items():
        gradient = gradients[name]
        match optimizer:
            case Sgd(momentum=0.0):
                direction = gradient
            case Sgd(momentum=momentum):
                direction = momentum * state[f"{MOMENTUM}{name}"] + gradient
                kept[f"{MOMENTUM}{name}"] = direction
            case Adagrad(epsilon=epsilon):
                squares = state[f"{SQUARES}{name}"] + gradient * gradient
                kept[f"{SQUARES}{name}"] = squares
                direction = gradient / (squares.sqrt() + epsilon)
            case Adam(momentum=first, second_momentum=second, epsilon=epsilon):
                mean = first * state[f"{MOMENTUM}{name}"] + (1.0 - first) * gradient
                squares = second * state[f"{SQUARES}{name}"] + (1.0 - second) * gradient * gradient
                kept |= {f"{MOMENTUM}{name}": mean, f"{SQUARES}{name}": squares}
                divisor = (squares / kept[SQUARES_WEIGHT]).sqrt() + epsilon
                direction = mean / kept[MOMENTUM_WEIGHT] / divisor
        moved[name] = value - rate * direction
    return moved, kept


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
