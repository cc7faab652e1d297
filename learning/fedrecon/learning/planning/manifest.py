"""From a model and its compiled graphs to the manifest and the blobs that it names.

Rules: the manifest says everything that a device must know to run the graphs; whatever is large lies in blobs, each
under its own digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrecon.learning.model import Constant, FederatedModel, Field, FromGlobal, Role, Uniform
from fedrecon.learning.planning.graphs import PlanGraph
from fedrecon.learning.planning.values import PER_STEP, PlanError
from fedrecon.learning.planning.verification import Answer
from fedrecon.learning.reconstruction import GradientSteps, Schedule
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import PLAN_FORMATS
from fedrecon.wire.tensors import write_safetensors

wire_types = {
    torch.float32: common_pb2.DTYPE_FLOAT32,
    torch.int64: common_pb2.DTYPE_INT64,
    torch.int32: common_pb2.DTYPE_INT32,
    torch.bool: common_pb2.DTYPE_BOOL,
}


@dataclass(slots=True)
class Blobs:
    """Blobs of one plan, by digest.

    Attributes:
        contents: bytes by their digest.
    """

    contents: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, content: bytes) -> common_pb2.BlobReference:
        """Keeps a blob and returns its reference."""
        digest = digest_of(content)
        self.contents[digest] = content
        return common_pb2.BlobReference(digest=digest, size=len(content))


def build_manifest(
    model: FederatedModel,
    graphs: Sequence[PlanGraph],
    vocabularies: Mapping[str, plan_pb2.Vocabulary],
    answers: Sequence[Answer],
    blobs: Blobs,
) -> plan_pb2.Manifest:
    """Returns the manifest of a compiled model, and adds every blob that it names to `blobs`.

    Args:
        model: what was compiled; its present global parameters become the initial checkpoint.
        graphs: what it became.
        vocabularies: entries of the rows of row-sparse parameters, by name.
        answers: torch's own answers; those to be recorded go into the plan.
        blobs: where blobs are kept.

    Raises:
        PlanError: a vocabulary is missing, unused or malformed, or has another number of entries than a parameter
            has rows.
    """
    _check_vocabularies(model, vocabularies)
    checkpoint = {name: _array(value) for name, value in model.global_parameters.items()}
    return plan_pb2.Manifest(
        format=PLAN_FORMATS[-1],
        name=model.name,
        parameters=[_parameter(model, name) for name in model.parameters],
        fields=[_field(each) for each in model.fields],
        graphs=[
            plan_pb2.Graph(
                role=graph.role,
                blob=blobs.add(graph.content),
                inputs=[value.message() for value in graph.inputs],
                outputs=[value.message() for value in graph.outputs],
            )
            for graph in graphs
        ],
        layout=plan_pb2.Layout(segments=[_segment(model, name) for name in model.global_parameters]),
        hyperparameters={
            name: plan_pb2.Hyperparameter(
                default_value=each.default, minimum=each.minimum, maximum=each.maximum, per_step=name in PER_STEP
            )
            for name, each in model.hyperparameters.items()
        },
        reconstruct_schedule=_reconstruct_schedule(model),
        update_schedule=_schedule(model.update_schedule),
        metrics=[plan_pb2.MetricSum(name=name, bound=metric.bound) for name, metric in model.metrics.items()],
        initial_checkpoint=blobs.add(write_safetensors(checkpoint)),
        vocabularies={
            name: blobs.add(vocabulary.SerializeToString(deterministic=True))
            for name, vocabulary in sorted(vocabularies.items())
        },
        recorded_answers=blobs.add(write_safetensors(_recorded(answers))),
        compiled_with={
            name: metadata.version(name) for name in ("fedrecon", "onnx", "onnxruntime", "onnxscript", "torch")
        },
    )


def _check_vocabularies(model: FederatedModel, vocabularies: Mapping[str, plan_pb2.Vocabulary]) -> None:
    wanted = set(model.vocabularies.values())
    if wanted != set(vocabularies):
        raise PlanError(f"the model needs the vocabularies {sorted(wanted)}, but was given {sorted(vocabularies)}")
    for name, vocabulary in vocabularies.items():
        if vocabulary.name != name:
            raise PlanError(f"vocabulary {name!r} calls itself {vocabulary.name!r}")
        if vocabulary.version < 1:
            raise PlanError(f"vocabulary {name!r} has version {vocabulary.version}; versions start at 1")
        if len(set(vocabulary.keys)) != len(vocabulary.keys):
            twice = next(key for key in vocabulary.keys if list(vocabulary.keys).count(key) > 1)
            raise PlanError(f"vocabulary {name!r} has the key {twice!r} more than once")
        if vocabulary.titles and len(vocabulary.titles) != len(vocabulary.keys):
            raise PlanError(f"vocabulary {name!r} has {len(vocabulary.keys)} keys and {len(vocabulary.titles)} titles")
    for parameter, name in model.vocabularies.items():
        rows = model.parameters[parameter].shape[0]
        if rows != len(vocabularies[name].keys):
            raise PlanError(
                f"parameter {parameter!r} has {rows} rows, but vocabulary {name!r} has "
                f"{len(vocabularies[name].keys)} keys"
            )


def _parameter(model: FederatedModel, name: str) -> plan_pb2.Parameter:
    is_local = name in model.local
    return plan_pb2.Parameter(
        name=name,
        placement=plan_pb2.PLACEMENT_LOCAL if is_local else plan_pb2.PLACEMENT_GLOBAL,
        dtype=common_pb2.DTYPE_FLOAT32,
        shape=list(model.parameters[name].shape),
        vocabulary=model.vocabularies.get(name, ""),
        initial=_initial(model, name) if is_local else None,
    )


def _initial(model: FederatedModel, name: str) -> plan_pb2.Initial:
    match model.local[name]:
        case Constant(value=value):
            return plan_pb2.Initial(constant=value)
        case Uniform(bound=bound):
            return plan_pb2.Initial(uniform_bound=bound)
        case FromGlobal(parameter=parameter):
            return plan_pb2.Initial(global_parameter=parameter)


def _field(each: Field) -> plan_pb2.Field:
    return plan_pb2.Field(
        name=each.name,
        role=plan_pb2.FIELD_ROLE_INPUT if each.role is Role.INPUT else plan_pb2.FIELD_ROLE_TARGET,
        dtype=wire_types[each.dtype],
        shape=list(each.shape),
        vocabulary=each.vocabulary or "",
        minimum=each.minimum or 0.0,
        maximum=each.maximum or 0.0,
        limited=each.minimum is not None,
    )


def _segment(model: FederatedModel, name: str) -> plan_pb2.Segment:
    shape = model.parameters[name].shape
    width = math.prod(shape[1:] if name in model.vocabularies else shape)
    return plan_pb2.Segment(parameter=name, all_rows=True, bound=model.bounds[name], width=width)


def _reconstruct_schedule(model: FederatedModel) -> plan_pb2.Schedule | None:
    """Returns the schedule of the reconstruction; ridge has none: it takes all examples at once."""
    if isinstance(model.reconstruction, GradientSteps):
        return _schedule(model.reconstruction.schedule)
    return None


def _schedule(schedule: Schedule) -> plan_pb2.Schedule:
    return plan_pb2.Schedule(
        batch_size=schedule.batch_size, epochs=schedule.epochs, maximum_steps=schedule.maximum_steps
    )


def _recorded(answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """Returns the recorded answers by `CASE/GRAPH/input/NAME` and `CASE/GRAPH/output/NAME`."""
    arrays: dict[str, NDArray[Any]] = {}
    for answer in answers:
        if answer.recorded:
            arrays |= {f"{answer.case}/{answer.graph}/input/{name}": array for name, array in answer.inputs.items()}
            arrays |= {f"{answer.case}/{answer.graph}/output/{name}": array for name, array in answer.outputs.items()}
    return arrays


def _array(value: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(value.numpy(), dtype=np.float32)
