"""One gradient step of a plan: what it moves, the state it carries on, and the torch function that becomes a graph.

A step moves parameters by one or two `Move`s: reconstruction the local ones; the update the global ones, and in joint
training the local ones as well, each group by an optimizer and a rate of its own.

Rules: everything a step needs is an argument; state of optimizers begins at numbers that are known beforehand, so
that no graph takes it from outside; a step whose batch is all padding changes neither parameters nor state (without
state that is so anyway: the gradient of nothing is 0).

Source: Algorithm 1 of Singhal et al. 2021 (arXiv 2102.03448).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

from fedrecon.learning import client_optimizers
from fedrecon.learning.client_optimizers import ClientOptimizer
from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.planning import values
from fedrecon.learning.planning.values import Function, Value
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, UPDATE_LOCAL_RATE, UPDATE_RATE, GradientSteps


@dataclass(frozen=True, slots=True)
class Move:
    """Parameters that an optimizer moves in every step.

    Attributes:
        parameters: their names.
        optimizer: how they follow their gradients.
        rate: name of the hyperparameter that gives the rate of every step.
    """

    parameters: tuple[str, ...]
    optimizer: ClientOptimizer
    rate: str


@dataclass(frozen=True, slots=True)
class State:
    """A part of an optimizer's state.

    Attributes:
        name: as the optimizer calls it.
        value: its name and shape in the graph.
        like: the parameter whose shape it has; None for a scalar.
        start: what it is everywhere before the first step.
    """

    name: str
    value: Value
    like: str | None
    start: float


def of_reconstruction(model: FederatedModel, algorithm: GradientSteps) -> tuple[Move, ...]:
    """Returns what the steps of reconstruction move: the local parameters."""
    return (Move(tuple(model.local_parameters), algorithm.optimizer, RECONSTRUCT_RATE),)


def of_update(model: FederatedModel) -> tuple[Move, ...]:
    """Returns what the steps of the update move: the global parameters; in joint training the local ones, too."""
    moves = (Move(tuple(model.global_parameters), model.update_optimizer, UPDATE_RATE),)
    if model.joint_rate is None:
        return moves
    return (*moves, Move(tuple(model.local_parameters), model.joint_optimizer, UPDATE_LOCAL_RATE))


def state_of(model: FederatedModel, move: Move) -> tuple[State, ...]:
    """Returns the state that a move carries from step to step; empty for plain gradient descent."""
    alone = {name: torch.zeros(()) for name in move.parameters}
    states: list[State] = []
    for name, start in client_optimizers.initial_state(move.optimizer, alone).items():
        like = next((parameter for parameter in move.parameters if name.endswith(f"/{parameter}")), None)
        shape = () if like is None else values.parameter_shape(model, like)
        states.append(State(name, values.state(f"{move.rate}/{name}", shape), like, float(start)))
    return tuple(states)


def step(model: FederatedModel, moves: Sequence[Move], *, at_default: bool) -> Function:
    """Returns one step: `order` and `mask` `[batch]`, a scalar `rate.NAME` per move -> `after.NAME` and `loss`.

    Args:
        model: what is learned.
        moves: what changes; all other parameters are frozen.
        at_default: whether the loss of a user without examples is minimised as well, over the defaults alone.
    """
    # Outside the function: the numbers that state starts at would become values of the trace.
    states = [state_of(model, move) for move in moves]

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = {name: tensors[values.parameter(model, name).name] for name in model.parameters}
        # `index_select` becomes a single Gather; indexing becomes seven operators.
        batch = {each.name: tensors[f"field.{each.name}"].index_select(0, tensors["order"]) for each in model.fields}
        mask = tensors["mask"]

        def mean_loss(parameters: Tensors) -> Tensor:
            return (model.losses(parameters, batch) * mask).sum() / mask.sum().clamp(min=1.0)

        def objective(variables: Tensors) -> tuple[Tensor, Tensor]:
            loss = mean_loss({**parameters, **variables})
            if not at_default:
                return loss, loss
            # `parameters` are constants here: of the second loss only the defaults see a gradient.
            defaults = model.at_default({**parameters, **variables})
            return loss + mean_loss({**parameters, **defaults}), loss

        variables = {name: parameters[name] for move in moves for name in move.parameters}
        gradients, (_, loss) = grad_and_value(objective, has_aux=True)(variables)
        results = {"loss": loss}
        for move, carried in zip(moves, states, strict=True):
            results |= _moved(model, move, carried, variables, gradients, tensors)
        return results

    return function


def _moved(
    model: FederatedModel,
    move: Move,
    states: Sequence[State],
    variables: Tensors,
    gradients: Tensors,
    tensors: Tensors,
) -> dict[str, Tensor]:
    """Returns parameters and state after a step of one optimizer, by the names of their values.

    Args:
        model: what is learned.
        move: the parameters and their optimizer.
        states: the state that the optimizer carries on.
        variables: parameters before the step, by name.
        gradients: of the objective, by the parameter's name.
        tensors: by value: the state before the step, the rate, and the mask of the batch.
    """
    own = {name: variables[name] for name in move.parameters}
    before = {state.name: tensors[state.value.name] for state in states}
    after, kept = client_optimizers.step(move.optimizer, own, gradients, before, tensors[f"rate.{move.rate}"])
    if states:
        real = tensors["mask"].sum() > 0
        after = {name: torch.where(real, value, own[name]) for name, value in after.items()}
        kept = {name: torch.where(real, value, before[name]) for name, value in kept.items()}
    results = {values.after(values.parameter(model, name)).name: value for name, value in after.items()}
    return results | {values.after(state.value).name: kept[state.name] for state in states}
