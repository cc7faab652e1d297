"""Updates of a single step: the gradients of a cohort add up to one gradient, so no client needs its own parameters.

    sum over clients of weight * update  =  - rate * gradient of (sum over clients of weight * objective)

where every objective is taken at the checkpoint. For a model with a background, in which every row has a gradient,
copies of the table for each client cost five times as much as all else together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedrecon.learning.model import Tensors
from fedrecon.learning.simulation.descents import Reader
from fedrecon.learning.simulation.examples import Positions
from fedrecon.learning.simulation.steps import Descent, Named

CLIENTS_AT_ONCE = 128


def sum_single_steps(
    descent: Descent,
    global_parameters: Tensors,
    own: Named,
    reader: Reader,
    clients: Positions,
    weights: Tensor,
    rate: float,
) -> Named | None:
    """Returns the sum over clients of weight times update, by global parameter.

    Args:
        descent: what a client minimises; it takes one step of SGD, or none, with all global parameters.
        global_parameters: the checkpoint, by name.
        own: frozen parameters of the clients, `[clients, ...]`, by name.
        reader: the batches of all clients.
        clients: which, `[clients]`.
        weights: of the clients, `[clients] float32`.
        rate: of the step.

    Returns:
        None if a number is not finite: whose it is, only updates made one by one can tell.
    """
    sums = {name: torch.zeros_like(value) for name, value in global_parameters.items()}
    for chunk in np.split(np.arange(len(clients)), range(CLIENTS_AT_ONCE, len(clients), CLIENTS_AT_ONCE)):
        chosen, running = reader.batches.numbers(clients[chunk], 1)
        fields, mask = reader.pick(chosen[:, 0])
        rows = torch.from_numpy(chunk).to(mask.device)
        mask = mask * torch.from_numpy(running.astype(np.float32)).to(mask.device)
        frozen = {name: value[rows] for name, value in own.items()}
        gradients = _gradients(descent, dict(global_parameters), frozen, fields, mask, weights[rows])
        for name, gradient in gradients.items():
            sums[name] -= rate * gradient
    finite = all(bool(value.isfinite().all()) for value in (*sums.values(), *own.values()))
    return sums if finite else None


def _gradients(
    descent: Descent, global_parameters: Named, own: Named, fields: Named, mask: Tensor, weights: Tensor
) -> Named:
    """Returns the gradient of the weighted objectives of some clients, by global parameter."""

    def total(variables: Named) -> Tensor:
        objectives = vmap(descent.objective, in_dims=(None, 0 if own else None, 0, 0))(variables, own, fields, mask)
        return (objectives * weights).sum()

    gradients: Named = grad(total)(global_parameters)
    return gradients
