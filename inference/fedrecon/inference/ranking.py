"""The second half of a recommender: scores of all items, and the best of those that may be recommended.

Rules: retired and excluded rows are never returned; where more are wanted than are left, there are fewer. Equal
scores are ranked by the lower row, as the operator TopK promises.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper, numpy_helper

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
    drawing.number("ranking/end", rows)
    every = drawing.add("Range", ["ranking/zero", "ranking/end", "ranking/one"], "ranking/rows")
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


def draw_retirement(drawing: Drawing, scores: str, vocabulary: Items) -> str:
    """Draws the scores with those of retired rows taken down to minus infinity, and returns their value."""
    if not vocabulary.retired:
        return scores
    retired = np.zeros(len(vocabulary.keys), dtype=np.bool_)
    retired[list(vocabulary.retired)] = True
    drawing.hold("ranking/retired", retired)
    drawing.hold("ranking/last", np.array(-np.inf, dtype=np.float32))
    return drawing.add("Where", ["ranking/retired", "ranking/last", scores], "ranking/shown_scores")


def draw_ranking(drawing: Drawing, scores: str, rows: int) -> None:
    """Draws the choice of the best rows that are neither retired nor excluded.

    Args:
        drawing: the recommender.
        scores: `[rows] float32`; minus infinity for those that are never returned.
        rows: how many there are.
    """
    last = numpy_helper.from_array(np.array([-np.inf], dtype=np.float32))
    shape = drawing.add("Shape", [EXCLUDED], "ranking/excluded_shape")
    marks = drawing.add("ConstantOfShape", [shape], "ranking/marks", value=last)
    allowed = drawing.add("ScatterElements", [scores, EXCLUDED, marks], "ranking/allowed_scores", axis=0)
    drawing.hold("ranking/row_count", np.array([rows], dtype=np.int64))
    count = drawing.add("Min", [COUNT, "ranking/row_count"], "ranking/count")
    best = ["ranking/best_scores", "ranking/best_rows"]
    drawing.nodes.append(
        helper.make_node("TopK", [allowed, count], best, name="ranking/best", axis=0, largest=1, sorted=1)
    )
    # Where more are wanted than are left, the rows that are left out come last. NaN is none of them: it is shown, so
    # that a reconstruction that diverged is seen.
    drawing.add("IsInf", [best[0]], "ranking/is_out", detect_positive=0)
    drawing.add("Not", ["ranking/is_out"], "ranking/is_in")
    for value, output in zip(best, (SCORES, ROWS), strict=True):
        drawing.add("Compress", [value, "ranking/is_in"], output, axis=0)
