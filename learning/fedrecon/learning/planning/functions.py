"""The torch functions that become graphs.

Each takes tensors by the name of their graph value (see `values`) and returns tensors by name. Weights, examples,
rates and masks are all arguments, nothing is drawn at random, and the number of rows of row-sparse parameters is
whatever comes in.

Source of the step: Algorithm 1 of Singhal et al. 2021 (arXiv 2102.03448). Of the ridge solver: Hestenes and Stiefel
1952, Methods of Conjugate Gradients, with the diagonal as preconditioner (Saad 2003, Iterative Methods, 9.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.reconstruction import RECONSTRUCT_RIDGE, Ridge

Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Smallest divisor of the conjugate gradient: once the residual is exactly 0 there is nothing left to do, and 0 / 0
# must not spoil the answer. Far below any residual that matters, far above the smallest float32.
SMALLEST_DIVISOR = 1e-30


def _parameters(model: FederatedModel, tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensors[f"parameter.{name}"] for name in model.parameters}


def _fields(model: FederatedModel, tensors: Tensors) -> dict[str, Tensor]:
    return {each.name: tensors[f"field.{each.name}"] for each in model.fields}


def step(model: FederatedModel, moving: Sequence[str]) -> Function:
    """Returns one step of SGD: `order` and `mask` `[batch]`, `rate` a scalar -> `after.NAME` and `loss`.

    Args:
        model: what is learned.
        moving: names of the parameters that change; the others are frozen.
    """

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = _parameters(model, tensors)
        frozen = {name: value for name, value in parameters.items() if name not in moving}
        variables = {name: parameters[name] for name in moving}
        # `index_select` becomes a single Gather; indexing becomes seven operators.
        batch = {name: column.index_select(0, tensors["order"]) for name, column in _fields(model, tensors).items()}
        mask = tensors["mask"]

        def mean_loss(variables: dict[str, Tensor]) -> Tensor:
            return (model.losses({**frozen, **variables}, batch) * mask).sum() / mask.sum().clamp(min=1.0)

        gradients, loss = grad_and_value(mean_loss)(variables)
        after = {f"after.{name}": value - tensors["rate"] * gradients[name] for name, value in variables.items()}
        return {**after, "loss": loss}

    return function


def ridge(model: FederatedModel) -> Function:
    """Returns reconstruction in closed form: `mask` `[examples]` -> `reconstructed.NAME`.

    The design matrix is read off the model: row i is the gradient of prediction i with respect to the local
    parameters, which for a linear model is the same everywhere.

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

        def predict_one(variables: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
            alone = {name: value.unsqueeze(0) for name, value in example.items()}
            return model.predict({**frozen, **variables}, alone).reshape(())

        inputs = {name: fields[name] for name in input_names}
        gradients = vmap(grad(predict_one), in_dims=(None, 0))(start, inputs)
        design = torch.cat(
            [gradients[name].reshape(-1, width) for name, width in zip(shapes, widths, strict=True)], dim=1
        )
        masked = design * tensors["mask"].unsqueeze(1)
        residual = fields[algorithm.target] - model.predict(parameters, fields)
        # Vectors are kept as columns: ONNX Runtime computes wrong numbers for a transposed matrix times a 1-D vector.
        change = conjugate_gradient(
            masked.T @ design,
            masked.T @ residual.unsqueeze(1),
            tensors[f"hyperparameter.{RECONSTRUCT_RIDGE}"],
            algorithm,
        )
        pieces = torch.split(change.squeeze(1), widths)
        return {
            f"reconstructed.{name}": start[name] + piece.reshape(shape)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }

    return function


def conjugate_gradient(gram: Tensor, right: Tensor, ridge_weight: Tensor, algorithm: Ridge) -> Tensor:
    """Returns x with (gram + ridge * identity) x = right, by unrolled preconditioned conjugate gradient.

    Args:
        gram: symmetric positive semi-definite `[width, width] float32`.
        right: `[width, 1] float32`.
        ridge_weight: positive scalar.
        algorithm: gives the number of iterations.
    """
    inverse_diagonal = 1.0 / (torch.diagonal(gram).unsqueeze(1) + ridge_weight)
    solution = torch.zeros_like(right)
    residual = right
    direction = inverse_diagonal * residual
    product = (residual * direction).sum()
    for _ in range(algorithm.iterations):
        image = gram @ direction + ridge_weight * direction
        length = product / (direction * image).sum().clamp(min=SMALLEST_DIVISOR)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = inverse_diagonal * residual
        next_product = (residual * preconditioned).sum()
        direction = preconditioned + next_product / product.clamp(min=SMALLEST_DIVISOR) * direction
        product = next_product
    return solution


def predict(model: FederatedModel) -> Function:
    """Returns prediction: input fields -> `scores`."""

    def function(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        fields = {each.name: tensors[f"field.{each.name}"] for each in model.inputs}
        prediction = model.predict(_parameters(model, tensors), fields)
        return {"scores": prediction if model.score is None else model.score(prediction)}

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
