"""Many users in one run: the recommender of a ridge regression once more, with a leading axis of users.

The service runs it for those who ask at the same moment; it is never given away. Calling an operator costs the same
for one user and for sixteen, so a run of sixteen costs about as much as four runs of one.

Rules: users are padded to the longest among them. A padded example is row 0 under mask 0; a padded exclusion is row 0
with a limit of plus infinity, which limits nothing. Every user's own answer is that of the file, to 1e-6 of its largest
score: what one brings changes nothing for the others but the number of steps, and steps after one's own last move
nothing.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from fedrecon.inference.composing import Drawing
from fedrecon.inference.linear_drawing import MOST_STEPS, TINY, TOLERANCE, scales_of
from fedrecon.inference.linear_forms import LinearForm
from fedrecon.wire.vocabularies import Items

ITEMS, TARGETS, MASK, EXCLUDED, LIMITS, COUNT = "items", "targets", "mask", "excluded", "limits", "k"
SCORES, ROWS = "scores", "rows"
_OPSET, _IR_VERSION = 20, 10
_STEPS_AT_ONCE = 2


def draw_batch(form: LinearForm, vocabulary: Items) -> bytes:
    """Returns the graph that recommends to many users at once.

    Inputs: `items` `[users, examples] int64`, `targets` and `mask` `[users, examples] float32`; `excluded`
    `[users, excluded] int64` and `limits` `[users, excluded] float32`, minus infinity where a row is left out; `k`
    `[1] int64`, at most the number of rows. Outputs: `scores` and `rows` `[users, k]`, minus infinity where fewer are
    left.

    Args:
        form: of a ridge regression.
        vocabulary: whose retired rows are never returned.
    """
    if form.ridge is None:
        raise ValueError("many users at once are reconstructed by ridge alone")
    drawing, scales = Drawing(), scales_of(form)
    shown = form.offsets.copy()
    shown[list(vocabulary.retired)] = -np.inf
    drawing.hold("design", form.design * scales)
    drawing.hold("across", np.ascontiguousarray((form.design * scales).T))
    drawing.hold("offsets", form.offsets)
    drawing.hold("shown", shown)
    drawing.hold("last", np.array([2], dtype=np.int64))
    drawing.hold("middle", np.array([1], dtype=np.int64))
    drawing.add("Unsqueeze", [MASK, "last"], "mask_column")
    drawing.add("Gather", ["design", ITEMS], "all_rows", axis=0)
    rows = drawing.add("Mul", ["all_rows", "mask_column"], "rows_used")
    drawing.add("Gather", ["offsets", ITEMS], "before", axis=0)
    drawing.add("Sub", [TARGETS, "before"], "residual")
    drawing.add("Unsqueeze", ["residual", "middle"], "residual_row")
    right = drawing.add("MatMul", ["residual_row", rows], "own_right")
    drawing.hold("own_pull", np.diag(np.float32(form.ridge) * scales * scales)[None])
    pull = "own_pull"
    if form.background is not None:
        drawing.hold("background", (form.background * scales[:, None] * scales[None, :])[None])
        examples = drawing.add("ReduceSum", ["mask_column", "middle"], "examples", keepdims=1)
        drawing.add("Mul", [examples, "background"], "whole_background")
        pull = drawing.add("Add", ["whole_background", pull], "whole_pull")
        drawn = form.background.astype(np.float64) @ form.start * scales
        drawing.hold("drawn", drawn[None, None].astype(np.float32))
        drawing.add("Mul", [examples, "drawn"], "whole_drawn")
        right = drawing.add("Sub", [right, "whole_drawn"], "right")
    drawing.add("Transpose", [rows], "columns", perm=[0, 2, 1])
    drawing.add("MatMul", ["columns", rows], "gram")
    drawing.add("Add", ["gram", pull], "system")
    change = _draw_solution(drawing, right, scales.size)
    drawing.add("Squeeze", [change, "middle"], "changes")
    drawing.add("MatMul", ["changes", "across"], "products")
    drawing.add("Add", ["products", "shown"], "all_scores")
    drawing.add("ScatterElements", ["all_scores", EXCLUDED, LIMITS], "allowed", axis=1, reduction="min")
    drawing.nodes.append(helper.make_node("TopK", ["allowed", COUNT], [SCORES, ROWS], axis=1, largest=1, sorted=1))
    return _finished(drawing)


def _draw_solution(drawing: Drawing, right: str, width: int) -> str:
    """Draws conjugate gradient for all users, `[users, 1, width]`; it ends when the last of them is done."""
    drawing.hold("tiny", np.array(TINY, dtype=np.float32))
    drawing.hold("tolerance", np.array(TOLERANCE, dtype=np.float32))
    drawing.hold("nought", np.array(0.0, dtype=np.float32))
    drawing.number("most_turns", MOST_STEPS // _STEPS_AT_ONCE)
    drawing.add("ReduceSumSquare", [right, "last"], "own_product", keepdims=1)
    product = drawing.add("Add", ["own_product", "tiny"], "product")
    drawing.add("Mul", [product, "tolerance"], "smallest")
    drawing.add("Mul", [right, "nought"], "nothing")
    drawing.add("Sub", [product, "smallest"], "excess")
    drawing.add("ReduceMax", ["excess"], "largest_excess", keepdims=0)
    drawing.add("Greater", ["largest_excess", "nought"], "goes_on")
    inputs = ["most_turns", "goes_on", "nothing", right, right, product]
    outputs = ["change", "last_residual", "last_direction", "last_product"]
    drawing.nodes.append(helper.make_node("Loop", inputs, outputs, name="turns", body=_turn(width)))
    return "change"


def _turn(width: int) -> GraphProto:
    """Returns one turn of the loop: steps of conjugate gradient, for every user their own."""
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))  # type: ignore[arg-type]  # of any operator
        return output

    change, residual, direction, product = "turn/change", "turn/residual", "turn/direction", "turn/product"
    for step in range(_STEPS_AT_ONCE):
        at = f"step/{step}"
        image = add("MatMul", [direction, "system"], f"{at}/image")
        add("Mul", [direction, image], f"{at}/curvatures")
        add("ReduceSum", [f"{at}/curvatures", "last"], f"{at}/own_curvature", keepdims=1)
        add("Add", [f"{at}/own_curvature", "tiny"], f"{at}/curvature")
        # Who is done moves no more: far beyond the last step rounding errors would grow again.
        add("Relu", [add("Sub", [product, "smallest"], f"{at}/excess")], f"{at}/product_left")
        length = add("Div", [f"{at}/product_left", f"{at}/curvature"], f"{at}/length")
        change = add("Add", [change, add("Mul", [length, direction], f"{at}/move")], f"{at}/change")
        residual = add("Sub", [residual, add("Mul", [length, image], f"{at}/drop")], f"{at}/residual")
        add("ReduceSumSquare", [residual, "last"], f"{at}/own_product", keepdims=1)
        before, product = product, add("Add", [f"{at}/own_product", "tiny"], f"{at}/product")
        share = add("Div", [product, before], f"{at}/share")
        direction = add("Add", [residual, add("Mul", [share, direction], f"{at}/kept")], f"{at}/direction")
    add("ReduceMax", [add("Sub", [product, "smallest"], "turn/excess")], "turn/largest_excess", keepdims=0)
    add("Greater", ["turn/largest_excess", "nought"], "turn/goes_on_after")

    def vectors(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["users", 1, width])

    def numbers(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["users", 1, 1])

    return helper.make_graph(
        nodes,
        "turn",
        [
            helper.make_tensor_value_info("turn/number", TensorProto.INT64, []),
            helper.make_tensor_value_info("turn/goes_on", TensorProto.BOOL, []),
            *map(vectors, ("turn/change", "turn/residual", "turn/direction")),
            numbers("turn/product"),
        ],
        [
            helper.make_tensor_value_info("turn/goes_on_after", TensorProto.BOOL, []),
            *map(vectors, (change, residual, direction)),
            numbers(product),
        ],
    )


def _finished(drawing: Drawing) -> bytes:
    """Returns the drawing as an ONNX file."""
    whole, number = TensorProto.INT64, TensorProto.FLOAT
    examples, excluded, found = ["users", "examples"], ["users", "excluded"], ["users", "found"]
    inputs = [
        helper.make_tensor_value_info(ITEMS, whole, examples),
        helper.make_tensor_value_info(TARGETS, number, examples),
        helper.make_tensor_value_info(MASK, number, examples),
        helper.make_tensor_value_info(EXCLUDED, whole, excluded),
        helper.make_tensor_value_info(LIMITS, number, excluded),
        helper.make_tensor_value_info(COUNT, whole, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info(SCORES, number, found),
        helper.make_tensor_value_info(ROWS, whole, found),
    ]
    graph = helper.make_graph(drawing.nodes, "recommender of many", inputs, outputs, drawing.initialisers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="fedrecon"
    )
    return model.SerializeToString(deterministic=True)
