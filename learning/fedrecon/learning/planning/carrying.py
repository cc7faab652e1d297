"""Refuses to sign a plan whose update carries the local parameters out.

An update is the gradient of a loss at global parameters, and always depends on the local ones: of a matrix
factorisation each row is the user vector times a residual. That is what secure sums and row sets are for. A model is
refused whose update is a copy: where moving the local parameters moves the update by the same amount whatever the
examples and the global parameters are, it says nothing of the examples and all of the local parameters. Whoever signs
plans can hide them better; this catches the coupling that a modeller adds without thinking of it, such as a penalty
that draws a global parameter to the user's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.planning.values import PlanError

_TOLERANCE = 1e-4

Draw = Callable[[], dict[str, Tensor]]


def check_carries_no_copy(model: FederatedModel, draw_examples: Draw, generator: torch.Generator) -> None:
    """Raises if the gradient of a global parameter moves with the local ones and with nothing else.

    Args:
        model: the model.
        draw_examples: gives random examples.
        generator: draws parameters.

    Raises:
        PlanError: it does; the message names the parameter.
    """
    first, second = (_near(model.local_parameters, generator) for _ in range(2))
    moved = []
    for _ in range(2):
        examples, globals_ = draw_examples(), _near(model.global_parameters, generator)
        one, other = _gradients(model, globals_, first, examples), _gradients(model, globals_, second, examples)
        moved.append({name: one[name] - other[name] for name in one})
    for name, here in moved[0].items():
        size = float(here.abs().max()) if here.numel() else 0.0
        if size > _TOLERANCE and float((here - moved[1][name]).abs().max()) < _TOLERANCE * size:
            raise PlanError(
                f"the update of {name!r} would be a copy of local parameters ({', '.join(model.local)}), whatever the "
                "examples: take what draws them together out of the loss, or declare the parameter local"
            )


def _near(parameters: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns parameters with noise, so that nothing is zero by initialisation."""
    return {name: value + 0.5 * torch.randn(value.shape, generator=generator) for name, value in parameters.items()}


def _gradients(
    model: FederatedModel, globals_: dict[str, Tensor], locals_: dict[str, Tensor], examples: dict[str, Tensor]
) -> dict[str, Tensor]:
    wanted = {name: value.clone().requires_grad_() for name, value in globals_.items()}
    loss = model.losses({**wanted, **locals_}, examples).mean()
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, found, strict=True))
