"""A plan and a checkpoint become one ONNX file that recommends: `recommender.onnx`.

The file holds the plan's reconstruction and its scoring, one after the other, with the global parameters inside, so
any ONNX runtime serves a user whom nobody has ever seen:

- inputs: one for every field that reconstruction reads, named like it (`[examples]`; row numbers int64 for the field
  with the vocabulary, float32 for numbers), `excluded` (`[excluded] int64`, rows not wanted) and `k` (`[1] int64`);
- outputs: `rows` (`[found] int64`) and `scores` (`[found] float32`), best first, equal scores by the lower row;
  `local/NAME` for every local parameter, as reconstructed.

Rules: the file needs nothing beside itself and its vocabulary, and says in its metadata where it comes from
(`fedrecon.task`, `.round`, `.plan`, `.checkpoint`, `.vocabulary`) and what it takes (`fedrecon.fields`, JSON). Equal
parts give equal bytes. How a user is reconstructed is in `reconstructing`, what is returned in `ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from fedrecon.inference.bundles import Arrays, Bundle, NotExportableError
from fedrecon.inference.composing import CompositionError, Drawing
from fedrecon.inference.linear_drawing import LOCAL, draw_linear
from fedrecon.inference.linear_forms import LinearForm
from fedrecon.inference.ranking import (
    COUNT,
    EXCLUDED,
    ROWS,
    SCORES,
    draw_ranking,
    draw_retirement,
    draw_scores,
    reserved_names,
)
from fedrecon.inference.reconstructing import ReconstructionDrawing, onnx_types
from fedrecon.inference.taken_fields import FIELDS_KEY, TakenField, write_fields
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Field, FieldRole, Graph, GraphRole
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.manifests import local_parameters
from fedrecon.wire.vocabularies import Items

RECOMMENDER_FORMAT = "1"
GRAPHS = (plan_pb2.GRAPH_ROLE_RECONSTRUCT, plan_pb2.GRAPH_ROLE_PREDICT)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a recommender comes from: written into the file.

    Attributes:
        task: name of the task; empty for one that was exported without a task.
        round: the round that made the checkpoint; 0 for the plan's initial one.
        checkpoint_digest: SHA-256 of the checkpoint.
        vocabulary_digest: SHA-256 of the vocabulary's stored bytes.
    """

    task: str
    round: int
    checkpoint_digest: bytes
    vocabulary_digest: bytes


def export(
    bundle: Bundle,
    checkpoint: Arrays,
    vocabulary: Items,
    origin: Origin,
    work: LocalWork,
    form: LinearForm | None = None,
) -> bytes:
    """Returns the recommender of a checkpoint.

    Args:
        bundle: the plan.
        checkpoint: global parameters, as `read_checkpoint` gives them.
        vocabulary: what is recommended, as `read_items` gives it.
        origin: what the file says of itself.
        work: the task's choice of schedule and hyperparameters; empty for the plan's own.
        form: what `find_linear_form` found for these: a smaller and faster file is drawn from it. None: the plan's own
            graphs are laid in.

    Raises:
        NotExportableError: the plan is none that recommends, or the parts do not belong together.
    """
    item = bundle.item_field()
    reconstruct, predict = (bundle.graph(role) for role in GRAPHS)
    _refuse_other_rows(bundle, checkpoint, vocabulary)
    fields = _fields_read(bundle, reconstruct, item)
    models = [_load(bundle, graph) for graph in (reconstruct, predict)]
    drawing = Drawing()
    if form is not None:
        scores = draw_linear(drawing, form, bundle, work, vocabulary, item)
    else:
        try:
            scores = _lay_graphs(drawing, bundle, checkpoint, vocabulary, work, fields, models)
        except CompositionError as error:
            raise NotExportableError(f"plan {bundle.manifest.name!r}: {error}") from error
    draw_ranking(drawing, scores, len(vocabulary.keys))
    graph = helper.make_graph(drawing.nodes, "recommender", _inputs(fields), _outputs(bundle), drawing.initialisers)
    model = helper.make_model(
        graph,
        opset_imports=_shared_opsets(models),
        ir_version=max(model.ir_version for model in models),
        producer_name="fedrecon",
    )
    helper.set_model_props(model, _metadata(bundle, origin, fields))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _lay_graphs(
    drawing: Drawing,
    bundle: Bundle,
    checkpoint: Arrays,
    vocabulary: Items,
    work: LocalWork,
    fields: list[Field],
    models: list[ModelProto],
) -> str:
    """Lays a plan's own graphs in, and returns the value of the scores; `LOCAL`NAME for every local parameter."""
    for name, values in checkpoint.items():
        drawing.hold(f"global/{name}", values)
    reconstruct, predict = (bundle.graph(role) for role in GRAPHS)
    reconstruction = ReconstructionDrawing(drawing, bundle, reconstruct, work)
    local = reconstruction.draw(models[0], checkpoint, fields)
    for name, value in local.items():
        drawing.add("Identity", [value], f"{LOCAL}{name}")
    scores = draw_scores(drawing, bundle, predict, models[1], local, len(vocabulary.keys))
    return draw_retirement(drawing, scores, vocabulary)


def _inputs(fields: list[Field]) -> list[ValueInfoProto]:
    return [
        *(
            helper.make_tensor_value_info(
                field.name, TensorProto.INT64 if field.vocabulary else TensorProto.FLOAT, ["examples"]
            )
            for field in fields
        ),
        helper.make_tensor_value_info(EXCLUDED, TensorProto.INT64, ["excluded"]),
        helper.make_tensor_value_info(COUNT, TensorProto.INT64, [1]),
    ]


def _outputs(bundle: Bundle) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(ROWS, TensorProto.INT64, ["found"]),
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["found"]),
        *(
            helper.make_tensor_value_info(f"{LOCAL}{each.name}", onnx_types[each.dtype], list(each.shape))
            for each in local_parameters(bundle.manifest)
        ),
    ]


def _load(bundle: Bundle, graph: Graph) -> ModelProto:
    try:
        return onnx.load_from_string(bundle.graphs[graph.role])
    except DecodeError as error:
        raise NotExportableError(
            f"plan {bundle.manifest.name!r}: the graph {GraphRole.Name(graph.role)} is no ONNX file"
        ) from error


def _refuse_other_rows(bundle: Bundle, checkpoint: Arrays, vocabulary: Items) -> None:
    """Refuses a checkpoint whose rows are not the entries of the vocabulary."""
    for parameter in bundle.manifest.parameters:
        if not parameter.vocabulary or parameter.name not in checkpoint:
            continue
        if parameter.vocabulary != vocabulary.name:
            raise NotExportableError(
                f"parameter {parameter.name!r} has rows of {parameter.vocabulary!r}, but {vocabulary.name!r} is what "
                "is recommended: no input field names its rows"
            )
        rows = checkpoint[parameter.name].shape[0]
        if rows != len(vocabulary.keys):
            raise NotExportableError(
                f"parameter {parameter.name!r} has {rows} rows, the vocabulary {vocabulary.name!r} (version "
                f"{vocabulary.version}) has {len(vocabulary.keys)} entries: export with the checkpoint's own vocabulary"
            )


def _fields_read(bundle: Bundle, reconstruct: Graph, item: Field) -> list[Field]:
    """Returns the fields that the recommender takes, in manifest order."""
    read = {value.reference for value in reconstruct.inputs if value.source == plan_pb2.VALUE_SOURCE_FIELD}
    by_row = any(
        bundle.parameter(value.reference).vocabulary
        for value in reconstruct.inputs
        if value.source == plan_pb2.VALUE_SOURCE_PARAMETER
    )
    if by_row:
        read.add(item.name)
    if not read:
        raise NotExportableError(f"plan {bundle.manifest.name!r}: its reconstruction reads no field of the examples")
    for name in read:
        if name in reserved_names or "/" in name:
            raise NotExportableError(
                f"field {name!r} is named like a value of the recommender itself: rename it "
                f"(it must not be one of {', '.join(sorted(reserved_names))}, nor hold a '/')"
            )
    fields = [field for field in bundle.manifest.fields if field.name in read]
    for field in fields:
        if field.shape:
            raise NotExportableError(
                f"field {field.name!r} has {list(field.shape)} numbers for each example; a recommender takes one"
            )
    return fields


def _shared_opsets(models: Iterable[ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """Returns the operator sets that both graphs are written in."""
    versions = [{(opset.domain, opset.version) for opset in model.opset_import} for model in models]
    if versions[0] != versions[1] or {domain for domain, _ in versions[0]} - {"", "ai.onnx"}:
        raise NotExportableError(
            f"the graphs are written in different operator sets, or in others than ONNX's own: {versions}"
        )
    return [helper.make_opsetid(domain, version) for domain, version in sorted(versions[0])]


def _metadata(bundle: Bundle, origin: Origin, fields: list[Field]) -> dict[str, str]:
    """Returns what the file says of itself."""
    taken = [
        TakenField(
            name=field.name,
            vocabulary=field.vocabulary,
            minimum=field.minimum if field.limited else None,
            maximum=field.maximum if field.limited else None,
            role=FieldRole.Name(field.role).removeprefix("FIELD_ROLE_").lower(),
        )
        for field in fields
    ]
    return {
        "fedrecon.checkpoint": origin.checkpoint_digest.hex(),
        FIELDS_KEY: write_fields(taken),
        "fedrecon.format": RECOMMENDER_FORMAT,
        "fedrecon.plan": bundle.digest.hex(),
        "fedrecon.round": str(origin.round),
        "fedrecon.task": origin.task,
        "fedrecon.vocabulary": origin.vocabulary_digest.hex(),
    }
