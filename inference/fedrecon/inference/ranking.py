"""The second half of a recommender: scores of all items, and the best of those that may be recommended.

Rules: retired and excluded rows are never returned; where more are wanted than are left, there are fewer. Equal
scores are ranked by the lower row, as the operator TopK promises.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper

from fedrecon.inference.bundles import Bundle, NotExportableError
from fedrecon.inference.composing import Drawing
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Graph
from fedrecon.wire.vocabularies import Items

EXCLUDED, COUNT, ROWS, SCORES = "excluded", "k", "rows", "scores"
reserved_names = frozenset({EXCLUDED, COUNT, ROWS, SCORES})


def draw_scores(
    drawing: Drawing, bundle: Bundle, graph: Graph, model: ModelProto, local: Mapping[str, str], rows: int
) -> str:
    """Draws the scores of all rows, and returns their value, `[rows] float32`."""
    drawing.number("ranking/zero", 0)
    drawing.number("ranking/one", 1)
    drawing.number("ranking/row_count", rows)
    every = drawing.add("Range", ["ranking/zero", "ranking/row_count", "ranking/one"], "ranking/rows")
    item = bundle.item_field().name
    connected: dict[str, str] = {}
    for value in graph.inputs:
        match value.source:
            case plan_pb2.VALUE_SOURCE_PARAMETER:
                connected[value.name] = local.get(value.reference, f"global/{value.reference}")
            case plan_pb2.VALUE_SOURCE_FIELD if value.reference == item:
                connected[value.name] = every
            case _:
                raise NotExportableError(
                    f"prediction reads {value.name!r}: a recommender knows of an item only its row"
                )
    laid = drawing.lay(model, "predict/", connected)
    for value, name in zip(graph.outputs, laid, strict=True):
        if value.source == plan_pb2.VALUE_SOURCE_SCORES:
            return name
    raise NotExportableError(f"plan {bundle.manifest.name!r}: its prediction gives no scores")


def draw_ranking(drawing: Drawing, scores: str, vocabulary: Items) -> None:
    """Draws the choice of the best rows that are neither retired nor excluded."""
    retired = np.zeros(len(vocabulary.keys), dtype=np.float32)
    retired[list(vocabulary.retired)] = 1.0
    drawing.hold("ranking/retired", retired)
    drawing.hold("ranking/out", np.array(1.0, dtype=np.float32))
    drawing.hold("ranking/last", np.array(-np.inf, dtype=np.float32))
    wanted = drawing.add("Shape", [EXCLUDED], "ranking/excluded_shape")
    marks = drawing.add("Expand", ["ranking/out", wanted], "ranking/marks")
    left_out = drawing.add("ScatterElements", ["ranking/retired", EXCLUDED, marks], "ranking/left_out", axis=0)
    is_out = drawing.add("Cast", [left_out], "ranking/is_out", to=TensorProto.BOOL)
    allowed = drawing.add("Where", [is_out, "ranking/last", scores], "ranking/allowed_scores")
    counted = drawing.add("Cast", [left_out], "ranking/left_out_counted", to=TensorProto.INT64)
    gone = drawing.add("ReduceSum", [counted], "ranking/gone", keepdims=0)
    left = drawing.add("Sub", ["ranking/row_count", gone], "ranking/left")
    clipped = drawing.add("Min", [COUNT, left], "ranking/clipped")
    count = drawing.add("Max", [clipped, "ranking/zero"], "ranking/count")
    drawing.nodes.append(
        helper.make_node("TopK", [allowed, count], [SCORES, ROWS], name="ranking/best", axis=0, largest=1, sorted=1)
    )
