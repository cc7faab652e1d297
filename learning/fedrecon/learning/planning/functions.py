"""The torch functions that become graphs; gradient steps are in `steps`.

Each takes tensors by the name of their graph value (see `values`) and returns tensors by name. Weights, examples,
numbers and masks are all arguments, nothing is drawn at random, and the number of rows of row-sparse parameters is
whatever comes in.

Source of the ridge solver: Hestenes and Stiefel 1952, Methods of Conjugate Gradients, with the diagonal as
preconditioner (Saad 2003, Iterative Methods, 9.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad, vmap

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.planning.solving import RIGHT, SCALE, SYSTEM
from fedrecon.learning.planning.values import Function
from fedrecon.learning.reconstruction import RECONSTRUCT_RIDGE, Ridge


def _parameters(model: FederatedModel, tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensors[f"parameter.{name}"] for name in model.parameters}


def _fields(model: FederatedModel, tensors: Tensors) -> dict[str, Tensor]:
    return {each.name: tensors[f"field.{each.name}"] for each in model.fields}


def normal_equations(model: FederatedModel) -> Function:
    """Returns the system whose solution is the change of the local parameters by ridge: see `solving`.

    `mask` `[examples]` -> `system` `[width, width]`, of diagonal 1, `right` and `scale` `[1, width]`: the change is
    `solution * scale`. The design matrix is read off the model: row i is the gradient of score i with respect to the
    local parameters, which for a linear model is the same everywhere.

    Args:
        model: whose reconstruction is `Ridge`.
    """
    if not isinstance(model.reconstruction, Ridge):
        raise TypeError(f"model {model.name!r} is not reconstructed by ridge")
    algorithm = model.reconstruction
    input_names = [each.name for each in model.inputs]
    shapes = {name: value.shape for name, value in model.local_parameters.items()}
    widths = [math.prod(shape) for shape in shapes.values()]

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = _parameters(model, tensors)
        fields = _fields(model, tensors)
        start = {name: value for name, value in parameters.items() if name in model.local}
        frozen = {name: value for name, value in parameters.items() if name not in model.local}

        def score_one(variables: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
            alone = {name: value.unsqueeze(0) for name, value in example.items()}
            return model.scores({**frozen, **variables}, alone).reshape(())

        inputs = {name: fields[name] for name in input_names}
        gradients = vmap(grad(score_one), in_dims=(None, 0))(start, inputs)
        design = torch.cat(
            [gradients[name].reshape(-1, width) for name, width in zip(shapes, widths, strict=True)], dim=1
        )
        masked = design * tensors["mask"].unsqueeze(1)
        residual = fields[algorithm.target] - model.scores(parameters, fields)
        # Vectors are kept as columns: ONNX Runtime computes wrong numbers for a transposed matrix times a 1-D vector.
        gram, right = masked.T @ design, masked.T @ residual.unsqueeze(1)
        if algorithm.background is not None:
            pull = tensors["mask"].sum() * algorithm.background.precision(
                frozen, dict(zip(shapes, widths, strict=True))
            )
            origin = torch.cat([value.reshape(-1, 1) for value in start.values()])
            gram, right = gram + pull, right - pull @ origin
        system = gram + tensors[f"hyperparameter.{RECONSTRUCT_RIDGE}"] * torch.eye(sum(widths))
        scale = torch.diagonal(system).rsqrt().unsqueeze(0)
        return {SYSTEM: scale * system * scale.T, RIGHT: right.T * scale, SCALE: scale}

    return function


def predict(model: FederatedModel) -> Function:
    """Returns prediction: input fields -> `scores`."""

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        fields = {each.name: tensors[f"field.{each.name}"] for each in model.inputs}
        return {"scores": model.scores(_parameters(model, tensors), fields)}

    return function


def evaluate(model: FederatedModel) -> Function:
    """Returns evaluation: all fields and `mask` `[examples]` -> `metric.NAME`, sums over the masked examples."""

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        fields = _fields(model, tensors)
        prediction = model.predict(_parameters(model, tensors), fields)
        targets = model.only_targets(fields)
        return {
            f"metric.{name}": (metric.function(prediction, targets) * tensors["mask"]).sum()
            for name, metric in model.metrics.items()
        }

    return function
