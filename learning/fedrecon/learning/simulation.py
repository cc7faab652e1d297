"""One client of a round in plain torch: what every plan must agree with.

Algorithm 1 of Singhal et al. 2021 (arXiv 2102.03448): reconstruct the local parameters on the support set with the
global ones frozen, then update the global ones on the query set with the local ones frozen.

Rules: written to be read and trusted, not to be fast; it shares no code with the graphs that `planning` makes (eager
autograd here, traced functions there; a direct solver here, conjugate gradient there), so that agreement means
something. No randomness: schedules and initial local parameters are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.reconstruction import (
    RECONSTRUCT_RATE,
    RECONSTRUCT_RIDGE,
    UPDATE_RATE,
    GradientSteps,
    Ridge,
)


@dataclass(frozen=True, slots=True)
class Steps:
    """A schedule laid out: which examples each step sees.

    Attributes:
        order: positions of examples, `[steps, batch] int64`.
        mask: 1 for a real position and 0 for padding, `[steps, batch] float32`.
    """

    order: Tensor
    mask: Tensor

    def examples(self, count: int) -> Tensor:
        """Returns 1 for each of `count` examples that some step uses and 0 for the others, `[count] float32`."""
        used = torch.zeros(count)
        used[self.order[self.mask > 0]] = 1.0
        return used


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client's round gives.

    Attributes:
        local_parameters: the reconstructed local parameters, by name.
        updates: after - before of every global parameter, by name.
        reconstruct_losses: mean loss of every reconstruction step, `[steps] float32`; empty for ridge.
        update_losses: mean loss of every update step, `[steps] float32`.
    """

    local_parameters: dict[str, Tensor]
    updates: dict[str, Tensor]
    reconstruct_losses: Tensor
    update_losses: Tensor


def client_update(
    model: FederatedModel,
    global_parameters: Tensors,
    initial_locals: Tensors,
    fields: Tensors,
    support: Steps,
    query: Steps,
    hyperparameters: Mapping[str, Tensor],
) -> ClientUpdate:
    """Runs one client's part in a round.

    Args:
        model: what is learned.
        global_parameters: the checkpoint, by name; of row-sparse parameters all rows, or those that `fields` number.
        initial_locals: local parameters to start from, by name.
        fields: all examples of the client, each field `[examples, ...]`.
        support: batches that the local parameters are reconstructed on.
        query: batches that the global parameters are updated on.
        hyperparameters: by name, `[steps]` for rates and a scalar for the ridge.
    """
    local_parameters, reconstruct_losses = reconstruct(
        model, global_parameters, initial_locals, fields, support, hyperparameters
    )
    after, update_losses = descend(
        model, global_parameters, local_parameters, fields, query, hyperparameters[UPDATE_RATE]
    )
    updates = {name: after[name] - before for name, before in global_parameters.items()}
    return ClientUpdate(local_parameters, updates, reconstruct_losses, update_losses)


def reconstruct(
    model: FederatedModel,
    global_parameters: Tensors,
    initial_locals: Tensors,
    fields: Tensors,
    support: Steps,
    hyperparameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the local parameters found on the support set, and the mean loss of every step.

    The arguments are those of `client_update`.
    """
    match model.reconstruction:
        case GradientSteps():
            rates = hyperparameters[RECONSTRUCT_RATE]
            return descend(model, initial_locals, global_parameters, fields, support, rates)
        case Ridge(target=target):
            used = support.examples(fields[target].shape[0])
            ridge = hyperparameters[RECONSTRUCT_RIDGE]
            return solve_ridge(model, global_parameters, initial_locals, fields, used, ridge), torch.zeros(0)


def descend(
    model: FederatedModel, moving: Tensors, frozen: Tensors, fields: Tensors, steps: Steps, rates: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Takes steps of SGD on the mean loss of each batch.

    Args:
        model: what is learned.
        moving: the parameters that change, by name.
        frozen: the parameters that do not.
        fields: all examples.
        steps: which examples each step sees.
        rates: rate of every step, `[steps] float32`.

    Returns:
        The parameters after the last step, and the mean loss of every step, `[steps] float32`.
    """
    current = {name: value.clone() for name, value in moving.items()}
    losses: list[Tensor] = []
    for order, mask, rate in zip(steps.order, steps.mask, rates, strict=True):
        variables = {name: value.detach().requires_grad_() for name, value in current.items()}
        batch = {name: column[order] for name, column in fields.items()}
        loss = (model.losses({**frozen, **variables}, batch) * mask).sum() / mask.sum().clamp(min=1.0)
        gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True, materialize_grads=True)
        current = {
            name: (value - rate * gradient).detach()
            for (name, value), gradient in zip(variables.items(), gradients, strict=True)
        }
        losses.append(loss.detach())
    return current, torch.stack(losses) if losses else torch.zeros(0)


def solve_ridge(
    model: FederatedModel,
    global_parameters: Tensors,
    initial_locals: Tensors,
    fields: Tensors,
    used: Tensor,
    ridge: Tensor,
) -> dict[str, Tensor]:
    """Returns the minimiser of the squared error plus ridge times the squared distance from the initial locals.

    Args:
        model: whose reconstruction is `Ridge` and whose prediction is linear in its local parameters.
        global_parameters: frozen, by name.
        initial_locals: where the ridge pulls, by name.
        fields: all examples.
        used: 1 for the examples of the support set, `[examples] float32`.
        ridge: positive scalar.
    """
    if not isinstance(model.reconstruction, Ridge):
        raise TypeError(f"model {model.name!r} is not reconstructed by ridge")
    if not used.any():
        return {name: value.clone() for name, value in initial_locals.items()}
    names = list(initial_locals)
    start = tuple(initial_locals.values())

    def predict(*values: Tensor) -> Tensor:
        return model.predict({**global_parameters, **dict(zip(names, values, strict=True))}, fields)

    target = fields[model.reconstruction.target]
    jacobians = torch.autograd.functional.jacobian(predict, start)  # type: ignore[no-untyped-call]
    design = torch.cat([each.reshape(target.shape[0], -1) for each in jacobians], dim=1).double() * used[:, None]
    residual = (target - predict(*start)).detach().double() * used
    normal = design.T @ design + ridge.double() * torch.eye(design.shape[1], dtype=torch.float64)
    change = torch.linalg.solve(normal, design.T @ residual).float()
    pieces = change.split([math.prod(value.shape) for value in start])
    return {name: value + piece.reshape(value.shape) for name, value, piece in zip(names, start, pieces, strict=True)}
