"""Names and shapes of what goes into a graph and comes out of it.

Rules: a name says where the value comes from, so that a graph can be read without its manifest: `parameter.NAME`,
`field.NAME`, `hyperparameter.NAME`, `order`, `mask`; and of outputs `reconstructed.NAME`, `update.NAME`,
`metric.NAME`, `rows.VOCABULARY`, `renumbered.NAME`, `losses`, `scores`. Extents that vary are words: `examples`,
`steps`, `batch`, `rows.VOCABULARY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrecon.learning.model import FederatedModel, Field
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, UPDATE_LOCAL_RATE, UPDATE_RATE
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import GraphValue, ValueSource

Extent = int | str

# A torch function that becomes a graph: tensors by the names of its inputs -> tensors by the names of its outputs.
Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]

PER_STEP = frozenset({RECONSTRUCT_RATE, UPDATE_RATE, UPDATE_LOCAL_RATE})


class PlanError(ValueError):
    """A model cannot be compiled, or a plan is damaged or wrong."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a graph.

    Attributes:
        name: name in the ONNX file.
        source: where it comes from, or what it is.
        reference: the parameter, field, hyperparameter, vocabulary or metric meant; empty for the others.
        dtype: element type.
        shape: extent of every axis, a word where it varies.
    """

    name: str
    source: ValueSource.ValueType
    reference: str
    dtype: torch.dtype
    shape: tuple[Extent, ...]

    def message(self) -> GraphValue:
        """Returns the value as the manifest writes it."""
        return GraphValue(name=self.name, source=self.source, reference=self.reference)


order = Value("order", plan_pb2.VALUE_SOURCE_ORDER, "", torch.int64, ("steps", "batch"))
step_mask = Value("mask", plan_pb2.VALUE_SOURCE_MASK, "", torch.float32, ("steps", "batch"))
example_mask = Value("mask", plan_pb2.VALUE_SOURCE_MASK, "", torch.float32, ("examples",))
losses = Value("losses", plan_pb2.VALUE_SOURCE_LOSSES, "", torch.float32, ("steps",))


def parameter_shape(model: FederatedModel, name: str) -> tuple[Extent, ...]:
    """Returns the shape of a parameter in the graphs: the rows of a row-sparse one vary."""
    shape: tuple[Extent, ...] = tuple(model.parameters[name].shape)
    if name in model.vocabularies:
        return (f"rows.{model.vocabularies[name]}", *shape[1:])
    return shape


def parameter(model: FederatedModel, name: str) -> Value:
    """Returns a parameter as an input."""
    shape = parameter_shape(model, name)
    return Value(f"parameter.{name}", plan_pb2.VALUE_SOURCE_PARAMETER, name, torch.float32, shape)


def parameters(model: FederatedModel) -> tuple[Value, ...]:
    """Returns every parameter as an input, in the order of the module."""
    return tuple(parameter(model, name) for name in model.parameters)


def state(name: str, shape: tuple[Extent, ...]) -> Value:
    """Returns a part of an optimizer's state, which begins and ends within a graph."""
    return Value(f"state.{name}", plan_pb2.VALUE_SOURCE_UNSPECIFIED, "", torch.float32, shape)


def after(value: Value) -> Value:
    """Returns a parameter or a part of the state as one step leaves it."""
    name = value.name.removeprefix("parameter.")
    return Value(f"after.{name}", value.source, value.reference, value.dtype, value.shape)


def reconstructed(model: FederatedModel, name: str) -> Value:
    """Returns a local parameter as the output of reconstruction."""
    shape = parameter_shape(model, name)
    return Value(f"reconstructed.{name}", plan_pb2.VALUE_SOURCE_PARAMETER, name, torch.float32, shape)


def update(model: FederatedModel, name: str) -> Value:
    """Returns the update of a global parameter, after - before."""
    shape = parameter_shape(model, name)
    return Value(f"update.{name}", plan_pb2.VALUE_SOURCE_UPDATE, name, torch.float32, shape)


def fields(chosen: Iterable[Field]) -> tuple[Value, ...]:
    """Returns fields of all examples as inputs."""
    return tuple(
        Value(f"field.{each.name}", plan_pb2.VALUE_SOURCE_FIELD, each.name, each.dtype, ("examples", *each.shape))
        for each in chosen
    )


def renumbered(field: Field) -> Value:
    """Returns a field with a vocabulary as `touch` gives it: numbered by the touched rows."""
    shape: tuple[Extent, ...] = ("examples", *field.shape)
    return Value(f"renumbered.{field.name}", plan_pb2.VALUE_SOURCE_FIELD, field.name, field.dtype, shape)


def rows(vocabulary: str) -> Value:
    """Returns the touched rows of a vocabulary."""
    shape = (f"rows.{vocabulary}",)
    return Value(f"rows.{vocabulary}", plan_pb2.VALUE_SOURCE_ROWS, vocabulary, torch.int64, shape)


def scores(model: FederatedModel) -> Value:
    """Returns the scores of examples, in the shape that the model gives them."""
    fields = {each.name: torch.zeros((1, *each.shape), dtype=each.dtype) for each in model.inputs}
    shape = model.scores({**model.global_parameters, **model.local_parameters}, fields).shape
    return Value("scores", plan_pb2.VALUE_SOURCE_SCORES, "", torch.float32, ("examples", *shape[1:]))


def metric(name: str) -> Value:
    """Returns the sum of a metric."""
    return Value(f"metric.{name}", plan_pb2.VALUE_SOURCE_METRIC, name, torch.float32, ())


def hyperparameter(name: str) -> Value:
    """Returns a hyperparameter as an input: `[steps]` for rates, otherwise a scalar."""
    shape: tuple[Extent, ...] = ("steps",) if name in PER_STEP else ()
    return Value(f"hyperparameter.{name}", plan_pb2.VALUE_SOURCE_HYPERPARAMETER, name, torch.float32, shape)
