"""What a modeller declares: a PyTorch model, and which part of it never leaves the device.

A `FederatedModel` says of an ordinary `torch.nn.Module` which parameters are local, which parameters have one row for
every entry of a vocabulary, what an example looks like, what is minimised and what is measured. Everything else
(simulation, plans, tasks) follows from it.

Rules:
- `module.forward` takes the input fields by keyword, each `[examples, ...]`, and gives one prediction per example;
  no example may influence the prediction of another.
- Parameters are float32. A row-sparse parameter is global and is used only through embedding lookups by input fields
  of its own vocabulary (`planning.inspection` checks this on the graph).
- A declaration that cannot work is refused when it is made, naming the parameter or field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedrecon.learning.background import Background
from fedrecon.learning.client_optimizers import ClientOptimizer, Sgd
from fedrecon.learning.reconstruction import (
    RECONSTRUCT_RATE,
    RECONSTRUCT_RIDGE,
    UPDATE_LOCAL_RATE,
    UPDATE_RATE,
    GradientSteps,
    Hyperparameter,
    Reconstruction,
    Ridge,
    Schedule,
)

Tensors = Mapping[str, Tensor]

field_types = (torch.float32, torch.int64, torch.int32, torch.bool)


class ModelError(ValueError):
    """A model is declared in a way that cannot be learned or compiled."""


class Role(Enum):
    """What a field of an example means."""

    INPUT = "input"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the examples.

    Attributes:
        name: the keyword under which `forward`, the loss and the metrics know it.
        role: whether the model sees it, or only the loss and the metrics.
        dtype: element type in the graphs: float32, int64, int32 or bool.
        shape: extent of one example's value; empty for a scalar.
        vocabulary: name of the vocabulary whose row numbers it holds; None for a plain number.
        minimum: smallest value allowed; None for no limit.
        maximum: largest value allowed; stated exactly where `minimum` is.
    """

    name: str
    role: Role = Role.INPUT
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()
    vocabulary: str | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """A local parameter starts with this value everywhere."""

    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Uniform:
    """A local parameter is drawn anew for every session, uniformly from [-bound, bound)."""

    bound: float


@dataclass(frozen=True, slots=True)
class FromGlobal:
    """A local parameter starts as a copy of this global parameter: a learned default.

    The update moves the global parameter by the gradient of the loss *at the default*: of the model in which every
    local parameter stands where it starts. It never sees reconstructed local parameters: their mean over a small group
    would be somebody's local vector.
    """

    parameter: str


Initial = Constant | Uniform | FromGlobal


@dataclass(frozen=True, slots=True)
class Metric:
    """A sum that an evaluation gives.

    Attributes:
        function: (prediction, target fields) -> `[examples] float32`, the value of every example.
        bound: largest absolute value that one example can add; larger ones are clipped by the device.
    """

    function: Callable[[Tensor, Tensors], Tensor]
    bound: float


@dataclass(frozen=True, slots=True)
class FederatedModel:
    """A model of which a part never leaves the device.

    Attributes:
        name: for people.
        module: `forward` takes the input fields by keyword and gives one prediction per example.
        local: how each local parameter starts, by parameter name; every other parameter is global.
        fields: the columns of an example, in the order of the example store.
        loss: (prediction, target fields) -> `[examples] float32`, the loss of every example.
        metrics: what an evaluation sums up, by name.
        bounds: contribution bound of each global parameter: the largest absolute value of an element of an update.
        vocabularies: vocabulary of each row-sparse parameter, by parameter name. A parameter that is the background
            of a ridge reconstruction, and others of its vocabulary, have rows but are needed and reported whole.
        reconstruction: how the local parameters are found.
        update_rate: rate of the update's steps.
        update_schedule: schedule of the update: by default one pass over the query set in batches of 5, at most 50
            steps, as in the paper's MovieLens experiments.
        update_optimizer: how global parameters follow their gradients on the device.
        joint_rate: joint training: the rate at which the update's steps move the local parameters as well, by the
            reconstruction's optimizer (by SGD after ridge); None where they are frozen once reconstructed.
        score: prediction -> `[examples] float32` by which items are ranked, and which ridge brings close to its
            target; None where the prediction is the score. A model without vocabularies ranks nothing: its score may
            be of any shape, for example a number per class.

    Raises:
        ModelError: the declaration cannot work; the message names the parameter, field or metric.
    """

    name: str
    module: nn.Module
    local: Mapping[str, Initial]
    fields: tuple[Field, ...]
    loss: Callable[[Tensor, Tensors], Tensor]
    metrics: Mapping[str, Metric]
    bounds: Mapping[str, float]
    vocabularies: Mapping[str, str] = field(default_factory=dict)
    reconstruction: Reconstruction = field(default_factory=GradientSteps)
    update_rate: Hyperparameter = field(default_factory=lambda: Hyperparameter(0.5, 0.0, 1.0))
    update_schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=5, epochs=1, maximum_steps=50))
    update_optimizer: ClientOptimizer = field(default_factory=Sgd)
    joint_rate: Hyperparameter | None = None
    score: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_parameters(self)
        _check_fields(self)
        _check_measures(self)
        _check_background(self)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, in the order of the module."""
        return dict(self.module.named_parameters())

    @property
    def global_parameters(self) -> dict[str, Tensor]:
        """Present values of the global parameters, detached, in the order of the module."""
        return {name: value.detach() for name, value in self.parameters.items() if name not in self.local}

    @property
    def local_parameters(self) -> dict[str, Tensor]:
        """Present values of the local parameters, detached, in the order of the module."""
        return {name: value.detach() for name, value in self.parameters.items() if name in self.local}

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The fields that the model sees."""
        return tuple(each for each in self.fields if each.role is Role.INPUT)

    @property
    def targets(self) -> tuple[Field, ...]:
        """The fields that only the loss and the metrics see."""
        return tuple(each for each in self.fields if each.role is Role.TARGET)

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """The numbers that a task may set, by name."""
        match self.reconstruction:
            case GradientSteps(rate=rate):
                numbers = {RECONSTRUCT_RATE: rate, UPDATE_RATE: self.update_rate}
            case Ridge(ridge=ridge):
                numbers = {RECONSTRUCT_RIDGE: ridge, UPDATE_RATE: self.update_rate}
        return numbers if self.joint_rate is None else {**numbers, UPDATE_LOCAL_RATE: self.joint_rate}

    @property
    def joint_optimizer(self) -> ClientOptimizer:
        """How joint training moves the local parameters: by the reconstruction's optimizer, by SGD after ridge."""
        return self.reconstruction.optimizer if isinstance(self.reconstruction, GradientSteps) else Sgd()

    @property
    def defaults(self) -> dict[str, str]:
        """Local parameters that start from a global one -> the name of that one."""
        return {name: start.parameter for name, start in self.local.items() if isinstance(start, FromGlobal)}

    @property
    def background(self) -> Background | None:
        """What every example says of all rows of a table, in reconstruction and in the loss; None where nothing."""
        return self.reconstruction.background if isinstance(self.reconstruction, Ridge) else None

    @property
    def row_sparse(self) -> dict[str, str]:
        """Parameters of which a device needs only the rows that its examples name -> their vocabulary."""
        whole = None if self.background is None else self.vocabularies.get(self.background.rows)
        return {name: vocabulary for name, vocabulary in self.vocabularies.items() if vocabulary != whole}

    def at_default(self, global_parameters: Tensors) -> dict[str, Tensor]:
        """Returns the local parameters of a user without examples, by name.

        Args:
            global_parameters: by name; those that defaults are copied from are enough.

        Returns:
            Constants and copies as they start, and the mean of what is drawn: 0.
        """
        values: dict[str, Tensor] = {}
        for name, shape in ((name, value.shape) for name, value in self.parameters.items() if name in self.local):
            match self.local[name]:
                case Constant(value=value):
                    values[name] = torch.full(shape, value)
                case Uniform():
                    values[name] = torch.zeros(shape)
                case FromGlobal(parameter=source):
                    values[name] = global_parameters[source]
        return values

    def predict(self, parameters: Tensors, fields: Tensors) -> Tensor:
        """Returns the prediction for every example under these parameters, global and local together."""
        inputs = {each.name: fields[each.name] for each in self.inputs}
        prediction: Tensor = functional_call(self.module, dict(parameters), kwargs=inputs)
        return prediction

    def scores(self, parameters: Tensors, fields: Tensors) -> Tensor:
        """Returns the score of every example, `[examples, ...] float32`: what ranks items and ridge brings close."""
        prediction = self.predict(parameters, fields)
        return prediction if self.score is None else self.score(prediction)

    def losses(self, parameters: Tensors, fields: Tensors) -> Tensor:
        """Returns the loss of every example, `[examples] float32`, its background included."""
        losses = self.loss(self.predict(parameters, fields), self.only_targets(fields))
        return losses if self.background is None else losses + self.background.loss(parameters)

    def only_targets(self, fields: Tensors) -> dict[str, Tensor]:
        """Returns the target fields among `fields`."""
        return {each.name: fields[each.name] for each in self.targets}


def _check_parameters(model: FederatedModel) -> None:
    """Refuses parameters, locals, vocabularies and bounds that do not fit together."""
    parameters = model.parameters
    for what, names in (("local", model.local), ("vocabularies", model.vocabularies), ("bounds", model.bounds)):
        for name in names:
            if name not in parameters:
                raise ModelError(f"{what}: the model has no parameter {name!r}; it has {', '.join(parameters)}")
    for name, value in parameters.items():
        if value.dtype != torch.float32:
            raise ModelError(f"parameter {name!r} is {value.dtype}; parameters must be float32: call module.float()")
        if name in model.local:
            _check_local(model, name)
        else:
            _check_global(model, name)
    if len(model.local) == len(parameters):
        raise ModelError(f"model {model.name!r} has no global parameter: there is nothing to learn together")


def _check_global(model: FederatedModel, name: str) -> None:
    """Refuses a global parameter without a usable bound, or without rows where it needs them."""
    bound = model.bounds.get(name)
    if bound is None or not (math.isfinite(bound) and bound > 0):
        raise ModelError(f"global parameter {name!r} needs a positive contribution bound in `bounds`, not {bound}")
    if name in model.vocabularies and model.parameters[name].dim() == 0:
        raise ModelError(f"row-sparse parameter {name!r} is a scalar: it needs a row for every entry")


def _check_local(model: FederatedModel, name: str) -> None:
    """Refuses a local parameter that is row-sparse, bounded, or starts from something that does not exist."""
    if name in model.vocabularies:
        raise ModelError(f"parameter {name!r} is local and row-sparse; only global parameters can be row-sparse")
    if name in model.bounds:
        raise ModelError(f"parameter {name!r} is local: it is never reported, so it has no contribution bound")
    match model.local[name]:
        case Constant(value=value) if not math.isfinite(value):
            raise ModelError(f"local parameter {name!r} starts at {value}; it must be finite")
        case Uniform(bound=bound) if not (math.isfinite(bound) and bound > 0):
            raise ModelError(f"local parameter {name!r} is drawn from [-{bound}, {bound}); the bound must be positive")
        case FromGlobal(parameter=source):
            parameters = model.parameters
            if source not in parameters or source in model.local or source in model.vocabularies:
                raise ModelError(f"local parameter {name!r} starts as {source!r}, which is no dense global parameter")
            if parameters[source].shape != parameters[name].shape:
                raise ModelError(
                    f"local parameter {name!r} has shape {list(parameters[name].shape)}, but starts as {source!r} "
                    f"of shape {list(parameters[source].shape)}"
                )
        case _:
            pass


def _check_fields(model: FederatedModel) -> None:
    """Refuses fields that are doubled, of a wrong type, without limits where they need them, or unused by a role."""
    names = [each.name for each in model.fields]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"field {name!r} is declared twice")
    if not model.inputs or not model.targets:
        raise ModelError(f"model {model.name!r} needs at least one input field and one target field")
    for each in model.fields:
        _check_field(each, set(model.vocabularies.values()))
    if isinstance(model.reconstruction, Ridge):
        target = model.reconstruction.target
        if target not in {each.name for each in model.targets if each.dtype == torch.float32}:
            raise ModelError(f"ridge reconstruction aims at {target!r}, which is no float32 target field")


def _check_field(each: Field, vocabularies: set[str]) -> None:
    """Refuses one field."""
    if each.dtype not in field_types:
        raise ModelError(f"field {each.name!r} is {each.dtype}; use one of {', '.join(map(str, field_types))}")
    if (each.minimum is None) != (each.maximum is None):
        raise ModelError(f"field {each.name!r}: state both minimum and maximum, or neither")
    if (
        each.minimum is not None
        and each.maximum is not None
        and not -math.inf < each.minimum <= each.maximum < math.inf
    ):
        raise ModelError(f"field {each.name!r}: minimum {each.minimum} and maximum {each.maximum} are no finite range")
    if each.vocabulary is None:
        if each.dtype in {torch.int64, torch.int32} and each.minimum is None:
            raise ModelError(f"field {each.name!r} is an integer without vocabulary: state its minimum and maximum")
        return
    if each.vocabulary not in vocabularies:
        raise ModelError(f"field {each.name!r}: no row-sparse parameter has the vocabulary {each.vocabulary!r}")
    if each.dtype != torch.int64:
        raise ModelError(
            f"field {each.name!r} holds row numbers of {each.vocabulary!r} and must be int64, not {each.dtype}"
        )
    if each.role is Role.TARGET:
        raise ModelError(
            f"field {each.name!r} is a target with the vocabulary {each.vocabulary!r}; "
            "row numbers can only be looked up"
        )
    if each.minimum is not None:
        raise ModelError(f"field {each.name!r} has a vocabulary, which is its limit: leave out minimum and maximum")


def _check_measures(model: FederatedModel) -> None:
    """Refuses metrics without a usable bound."""
    if not model.metrics:
        raise ModelError(f"model {model.name!r} has no metric: an evaluation would say nothing")
    for name, metric in model.metrics.items():
        if not (math.isfinite(metric.bound) and metric.bound > 0):
            raise ModelError(f"metric {name!r} needs a positive finite bound, not {metric.bound}")


def _check_background(model: FederatedModel) -> None:
    """Refuses a background whose rows cannot be multiplied with its local parameter."""
    background = model.background
    if background is None:
        return
    if background.rows not in model.global_parameters:
        raise ModelError(f"the background's rows {background.rows!r} are no global parameter")
    if background.local not in model.local:
        raise ModelError(f"the background's {background.local!r} is no local parameter")
    rows, local = (list(model.parameters[name].shape) for name in (background.rows, background.local))
    if len(rows) != 2 or local != rows[1:]:  # noqa: PLR2004 a table has rows and columns
        raise ModelError(f"the background multiplies rows {rows} with {local}: that must be [rows, width] and [width]")
