"""One client of a round in plain torch: what every plan, and the simulation of many clients, must agree with.

Algorithm 1 of Singhal et al. 2021 (arXiv 2102.03448): reconstruct the local parameters on the support set with the
global ones frozen, then update the global ones on the query set with the local ones frozen.

Rules: written to be read and trusted, not to be fast; it shares no code with the graphs that `planning` makes nor with
`simulation` (eager autograd and `torch.optim` here, traced functions and `client_optimizers` there; a direct solver
here, conjugate gradient there), so that agreement means something. No randomness: schedules and initial local
parameters are passed in. A step whose batch is all padding changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import Adagrad, Adam, ClientOptimizer, Sgd
from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.reconstruction import (
    RECONSTRUCT_RATE,
    RECONSTRUCT_RIDGE,
    UPDATE_LOCAL_RATE,
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
        local_parameters: the reconstructed local parameters, by name; after joint training as it left them.
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
    after, moved, update_losses = update(model, global_parameters, local_parameters, fields, query, hyperparameters)
    updates = {name: after[name] - before for name, before in global_parameters.items()}
    return ClientUpdate(moved, updates, reconstruct_losses, update_losses)


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
        case GradientSteps(optimizer=optimizer):
            variables = _variables(initial_locals)
            rates = hyperparameters[RECONSTRUCT_RATE]
            moves = [(_optimizer(optimizer, variables), rates)]

            def loss_of(batch: Tensors, mask: Tensor) -> tuple[Tensor, Tensor]:
                loss = _mean_loss(model, {**global_parameters, **variables}, batch, mask)
                return loss, loss

            return _descend(variables, moves, loss_of, fields, support)
        case Ridge(target=target):
            used = support.examples(fields[target].shape[0])
            ridge = hyperparameters[RECONSTRUCT_RIDGE]
            return solve_ridge(model, global_parameters, initial_locals, fields, used, ridge), torch.zeros(0)


def update(
    model: FederatedModel,
    global_parameters: Tensors,
    local_parameters: Tensors,
    fields: Tensors,
    query: Steps,
    hyperparameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Returns global and local parameters after the update, and the mean loss of every step.

    A global parameter from which local ones start also follows the gradient of the loss at the default.

    Args:
        model: what is learned.
        global_parameters: the checkpoint, by name.
        local_parameters: as reconstructed, by name; joint training moves them, otherwise they stay.
        fields: all examples of the client, each field `[examples, ...]`.
        query: batches that the global parameters are updated on.
        hyperparameters: by name, `[steps]` for rates.
    """
    variables = _variables(global_parameters)
    moves = [(_optimizer(model.update_optimizer, variables), hyperparameters[UPDATE_RATE])]
    locals_ = _variables(local_parameters)
    if model.joint_rate is not None:
        moves.append((_optimizer(model.joint_optimizer, locals_), hyperparameters[UPDATE_LOCAL_RATE]))

    def loss_of(batch: Tensors, mask: Tensor) -> tuple[Tensor, Tensor]:
        loss = _mean_loss(model, {**variables, **locals_}, batch, mask)
        if not model.defaults:
            return loss, loss
        constants = {name: value.detach() for name, value in variables.items()}
        at_default = _mean_loss(model, {**constants, **model.at_default(variables)}, batch, mask)
        return loss + at_default, loss

    moving = {**variables, **locals_}
    after, losses = _descend(moving, moves, loss_of, fields, query)
    return {name: after[name] for name in variables}, {name: after[name] for name in locals_}, losses


def _mean_loss(model: FederatedModel, parameters: Tensors, batch: Tensors, mask: Tensor) -> Tensor:
    return (model.losses(parameters, batch) * mask).sum() / mask.sum().clamp(min=1.0)


def _variables(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}


def _optimizer(optimizer: ClientOptimizer, variables: Tensors) -> torch.optim.Optimizer:
    """Returns torch's own optimizer; the rate is set before every step."""
    values = list(variables.values())
    match optimizer:
        case Sgd(momentum=momentum):
            return torch.optim.SGD(values, lr=0.0, momentum=momentum)
        case Adagrad(initial_accumulator=start, epsilon=epsilon):
            return torch.optim.Adagrad(values, lr=0.0, initial_accumulator_value=start, eps=epsilon)
        case Adam(momentum=first, second_momentum=second, epsilon=epsilon):
            return torch.optim.Adam(values, lr=0.0, betas=(first, second), eps=epsilon)


def _descend(
    variables: Mapping[str, Tensor],
    moves: Sequence[tuple[torch.optim.Optimizer, Tensor]],
    loss_of: Callable[[Tensors, Tensor], tuple[Tensor, Tensor]],
    fields: Tensors,
    steps: Steps,
) -> tuple[dict[str, Tensor], Tensor]:
    """Takes gradient steps.

    Args:
        variables: all parameters that gradients are wanted of, by name; only those of an optimizer move.
        moves: optimizers, and the rate of every step, `[steps] float32`.
        loss_of: (batch, mask) -> what is minimised, and the mean loss to report.
        fields: all examples.
        steps: which examples each step sees.

    Returns:
        The parameters after the last step, and the loss of every step, `[steps] float32`.
    """
    losses: list[Tensor] = []
    for number, (order, mask) in enumerate(zip(steps.order, steps.mask, strict=True)):
        objective, loss = loss_of({name: column[order] for name, column in fields.items()}, mask)
        gradients = torch.autograd.grad(objective, list(variables.values()), allow_unused=True, materialize_grads=True)
        for variable, gradient in zip(variables.values(), gradients, strict=True):
            variable.grad = gradient
        if mask.any():
            for optimizer, rates in moves:
                optimizer.param_groups[0]["lr"] = rates[number].item()
                optimizer.step()
        losses.append(loss.detach())
    after = {name: value.detach().clone() for name, value in variables.items()}
    return after, torch.stack(losses) if losses else torch.zeros(0)


def solve_ridge(
    model: FederatedModel,
    global_parameters: Tensors,
    initial_locals: Tensors,
    fields: Tensors,
    used: Tensor,
    ridge: Tensor,
) -> dict[str, Tensor]:
    """Returns the minimiser of the squared error plus ridge times the squared distance from the initial locals.

    Where the reconstruction has a background, every example of the support set adds its own.

    Args:
        model: whose reconstruction is `Ridge` and whose score is linear in its local parameters.
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

    def score(*values: Tensor) -> Tensor:
        return model.scores({**global_parameters, **dict(zip(names, values, strict=True))}, fields)

    target = fields[model.reconstruction.target]
    jacobians = torch.autograd.functional.jacobian(score, start)  # type: ignore[no-untyped-call]
    design = torch.cat([each.reshape(target.shape[0], -1) for each in jacobians], dim=1).double() * used[:, None]
    residual = (target - score(*start)).detach().double() * used
    if model.background is not None:
        # As so many more examples: all rows of the table, each with the target 0, once for every example.
        rows, local = global_parameters[model.background.rows].double(), model.background.local
        share = (used.sum().double() * model.background.weight / len(rows)).sqrt()
        others = {name: torch.zeros(len(rows), value.numel()).double() for name, value in initial_locals.items()}
        design = torch.cat([design, share * torch.cat(list((others | {local: rows}).values()), dim=1)])
        residual = torch.cat([residual, -share * (rows @ initial_locals[local].double())])
    normal = design.T @ design + ridge.double() * torch.eye(design.shape[1], dtype=torch.float64)
    change = torch.linalg.solve(normal, design.T @ residual).float()
    pieces = change.split([math.prod(value.shape) for value in start])
    return {name: value + piece.reshape(value.shape) for name, value, piece in zip(names, start, pieces, strict=True)}
