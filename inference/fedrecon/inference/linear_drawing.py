"""The recommender of a linear plan: a few dozen operators, where the plan's own graphs laid in are more than a hundred.

Of so few numbers ONNX Runtime takes longer to call an operator than to compute it, so as little as possible is left to
the moment of asking:

- the design's columns are scaled by powers of two, which is exact, so that their mean squares are near 1: conjugate
  gradient then needs no preconditioner of its own;
- offsets hold whatever does not depend on the user; of items that are retired they are minus infinity;
- ridge: the Gram matrix of the user's rows, and conjugate gradient on it (`draw_ridge`);
- steps: everything but the local parameters is laid out for all steps at once, and a step is two operators.

Source of conjugate gradient: Hestenes and Stiefel 1952.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from fedrecon.inference.bundles import Bundle
from fedrecon.inference.composing import Drawing
from fedrecon.inference.linear_forms import LinearForm
from fedrecon.inference.reconstructing import draw_number_of_examples, draw_schedule
from fedrecon.v1.plan_pb2 import Field
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.vocabularies import Items

LOCAL = "local/"
_TYPICAL_EXAMPLES = 30
MOST_STEPS = 200
_STEPS_AT_ONCE = 2
"""Steps of conjugate gradient in one turn of the loop: a turn costs as much as three operators."""

TOLERANCE = 1e-14
"""Of the squared residual: where float32 ends, a smaller residual of the recurrence says nothing of the true one."""

TINY = 1e-30
"""Added to what is divided by: a step after the last one then moves nothing, instead of dividing 0 by 0."""


def scales_of(form: LinearForm) -> NDArray[np.float32]:
    """Returns a power of two for each column: of the system of a typical user, the diagonal is then about 1."""
    if form.rate is not None:
        return np.ones_like(form.start)
    squares = np.square(form.design, dtype=np.float64).mean(axis=0)
    if form.background is not None:
        squares += np.diag(form.background)
    diagonal = (form.ridge or 0.0) / _TYPICAL_EXAMPLES + squares
    return np.exp2(-np.rint(np.log2(np.where(diagonal > 0, diagonal, 1.0)) / 2)).astype(np.float32)


def draw_linear(
    drawing: Drawing, form: LinearForm, bundle: Bundle, work: LocalWork, vocabulary: Items, item: Field
) -> str:
    """Draws reconstruction and scores, and returns the value of the scores, `[rows] float32`.

    `LOCAL`NAME is drawn for every local parameter. Scores of retired rows are minus infinity.
    """
    scales = scales_of(form)
    drawing.hold("linear/design", form.design * scales)
    drawing.hold("linear/offsets", form.offsets)
    drawing.add("Gather", ["linear/design", item.name], "linear/rows", axis=0)
    drawing.add("Gather", ["linear/offsets", item.name], "linear/before", axis=0)
    change = _draw_ridge(drawing, form, scales) if form.rate is None else _draw_steps(drawing, form, bundle, work)
    _draw_locals(drawing, form, scales, change)
    shown = form.offsets.copy()
    shown[list(vocabulary.retired)] = -np.inf
    drawing.hold("linear/shown", shown[None, :])
    drawing.add("Gemm", [change, "linear/design", "linear/shown"], "linear/scores_row", transB=1)
    drawing.hold("linear/front", np.array([0], dtype=np.int64))
    return drawing.add("Squeeze", ["linear/scores_row", "linear/front"], "linear/scores")


def _draw_locals(drawing: Drawing, form: LinearForm, scales: NDArray[np.float32], change: str) -> None:
    """Draws every local parameter: where it started, and its part of the change."""
    drawing.hold("linear/scales", scales[None, :])
    drawing.hold("linear/start", form.start[None, :])
    moved = drawing.add("Mul", [change, "linear/scales"], "linear/moved")
    found = drawing.add("Add", ["linear/start", moved], "linear/local")
    drawing.hold("linear/sizes", np.array([part.size for part in form.parts], dtype=np.int64))
    pieces = [f"linear/local/{part.name}" for part in form.parts]
    drawing.nodes.append(helper.make_node("Split", [found, "linear/sizes"], pieces, name="linear/pieces", axis=1))
    for piece, part in zip(pieces, form.parts, strict=True):
        shape = drawing.hold(f"linear/shape/{part.name}", np.array(part.shape, dtype=np.int64))
        drawing.add("Reshape", [piece, shape], f"{LOCAL}{part.name}")


def _draw_ridge(drawing: Drawing, form: LinearForm, scales: NDArray[np.float32]) -> str:
    """Draws the change of the scaled local parameters by ridge regression, `[1, width]`."""
    width = scales.size
    drawing.hold("ridge/pull", np.diag(np.float32(form.ridge or 0.0) * scales * scales))
    drawing.hold("ridge/front", np.array([0], dtype=np.int64))
    residual = drawing.add("Sub", [form.target, "linear/before"], "ridge/residual")
    drawing.add("Unsqueeze", [residual, "ridge/front"], "ridge/residual_row")
    pull = "ridge/pull"
    right = drawing.add("MatMul", ["ridge/residual_row", "linear/rows"], "ridge/own_right")
    if form.background is not None:
        background = form.background * scales[:, None] * scales[None, :]
        drawing.hold("ridge/background", background)
        shape = drawing.add("Shape", [form.target], "ridge/examples_shape")
        examples = drawing.add("Cast", [shape], "ridge/examples", to=TensorProto.FLOAT)
        all_background = drawing.add("Mul", [examples, "ridge/background"], "ridge/whole_background")
        pull = drawing.add("Add", [all_background, pull], "ridge/whole_pull")
        if form.start.any():
            drawing.hold(
                "ridge/drawn", (form.background.astype(np.float64) @ form.start * scales)[None].astype(np.float32)
            )
            drawn = drawing.add("Mul", [examples, "ridge/drawn"], "ridge/whole_drawn")
            right = drawing.add("Sub", [right, drawn], "ridge/right")
    drawing.add("Gemm", ["linear/rows", "linear/rows", pull], "ridge/system", transA=1)
    drawing.hold("ridge/tiny", np.full((1, 1), TINY, dtype=np.float32))
    drawing.hold("ridge/tolerance", np.full((1, 1), TOLERANCE, dtype=np.float32))
    drawing.hold("ridge/nothing", np.zeros((1, width), dtype=np.float32))
    drawing.number("ridge/most_turns", MOST_STEPS // _STEPS_AT_ONCE)
    product = drawing.add("Gemm", [right, right, "ridge/tiny"], "ridge/product", transB=1)
    drawing.add("Mul", [product, "ridge/tolerance"], "ridge/smallest")
    more = drawing.add("Greater", [product, "ridge/smallest"], "ridge/is_more")
    goes_on = drawing.add("Squeeze", [more], "ridge/goes_on")
    drawing.nodes.append(
        helper.make_node(
            "Loop",
            ["ridge/most_turns", goes_on, "ridge/nothing", right, right, product],
            ["ridge/change", "ridge/last_residual", "ridge/last_direction", "ridge/last_product"],
            name="ridge/turns",
            body=_turn(width),
        )
    )
    return "ridge/change"


def _turn(width: int) -> GraphProto:
    """Returns one turn of the loop: steps of conjugate gradient, vectors being rows."""
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: float) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))  # type: ignore[arg-type]  # of any operator
        return output

    change, residual, direction, product = "turn/change", "turn/residual", "turn/direction", "turn/product"
    for step in range(_STEPS_AT_ONCE):
        image = add("MatMul", [direction, "ridge/system"], f"step/{step}/image")
        curvature = add("Gemm", [direction, image, "ridge/tiny"], f"step/{step}/curvature", transB=1)
        length = add("Div", [product, curvature], f"step/{step}/length")
        change = add("Gemm", [length, direction, change], f"step/{step}/change")
        residual = add("Gemm", [length, image, residual], f"step/{step}/residual", alpha=-1.0)
        before, product = product, add("Gemm", [residual, residual, "ridge/tiny"], f"step/{step}/product", transB=1)
        share = add("Div", [product, before], f"step/{step}/share")
        direction = add("Gemm", [share, direction, residual], f"step/{step}/direction")
    add("Squeeze", [add("Greater", [product, "ridge/smallest"], "turn/is_more")], "turn/goes_on_after")
    vector, number, yes = [1, width], [1, 1], TensorProto.BOOL
    inputs = [
        helper.make_tensor_value_info("turn/number", TensorProto.INT64, []),
        helper.make_tensor_value_info("turn/goes_on", yes, []),
        *(
            helper.make_tensor_value_info(f"turn/{each}", TensorProto.FLOAT, vector)
            for each in ("change", "residual", "direction")
        ),
        helper.make_tensor_value_info("turn/product", TensorProto.FLOAT, number),
    ]
    outputs = [
        helper.make_tensor_value_info("turn/goes_on_after", yes, []),
        *(helper.make_tensor_value_info(each, TensorProto.FLOAT, vector) for each in (change, residual, direction)),
        helper.make_tensor_value_info(product, TensorProto.FLOAT, number),
    ]
    return helper.make_graph(nodes, "turn", inputs, outputs)


def _draw_steps(drawing: Drawing, form: LinearForm, bundle: Bundle, work: LocalWork) -> str:
    """Draws the change of the local parameters by gradient descent on the mean squared error, `[1, width]`.

    A step adds -2 rate / m * A' (A change - residual), A being the m rows of its batch.
    """
    width = form.start.size
    # One row more, of zeros: it is what steps read that have no example.
    drawing.hold("steps/no_row", np.zeros((1, width), dtype=np.float32))
    drawing.hold("steps/no_number", np.zeros(1, dtype=np.float32))
    rows = drawing.add("Concat", ["linear/rows", "steps/no_row"], "steps/rows", axis=0)
    error = drawing.add("Sub", ["linear/before", form.target], "steps/error")
    errors = drawing.add("Concat", [error, "steps/no_number"], "steps/errors", axis=0)
    draw_schedule(drawing, bundle, work, draw_number_of_examples(drawing, form.target), least_steps=1)
    drawing.add("Gather", [rows, "schedule/order"], "steps/all_rows", axis=0)
    batched = drawing.add("Gather", [errors, "schedule/order"], "steps/flat_errors", axis=0)
    drawing.hold("steps/last", np.array([2], dtype=np.int64))
    drawing.hold("steps/one", np.array(1.0, dtype=np.float32))
    drawing.hold("steps/within", np.array([1], dtype=np.int64))
    drawing.hold("steps/rate", np.array(2.0 * (form.rate or 0.0), dtype=np.float32))
    drawing.add("Unsqueeze", [batched, "steps/last"], "steps/all_errors")
    counted = drawing.add("ReduceSum", ["schedule/mask", "steps/within"], "steps/counted", keepdims=1)
    sizes = drawing.add("Max", [counted, "steps/one"], "steps/sizes")
    rates = drawing.add("Div", ["steps/rate", sizes], "steps/rates")
    weights = drawing.add("Mul", ["schedule/mask", rates], "steps/weights")
    columns = drawing.add("Unsqueeze", [weights, "steps/last"], "steps/weight_columns")
    drawing.add("Mul", ["steps/all_rows", columns], "steps/all_slopes")
    drawing.hold("steps/nothing", np.zeros((width, 1), dtype=np.float32))
    batch = None
    vector = [width, 1]
    step = helper.make_graph(
        [
            helper.make_node("Gemm", ["step/rows", "step/change", "step/errors"], ["step/found"], name="step/found"),
            helper.make_node(
                "Gemm",
                ["step/slopes", "step/found", "step/change"],
                ["step/changed"],
                name="step/changed",
                transA=1,
                alpha=-1.0,
            ),
        ],
        "step",
        [
            helper.make_tensor_value_info("step/change", TensorProto.FLOAT, vector),
            helper.make_tensor_value_info("step/rows", TensorProto.FLOAT, [batch, width]),
            helper.make_tensor_value_info("step/errors", TensorProto.FLOAT, [batch, 1]),
            helper.make_tensor_value_info("step/slopes", TensorProto.FLOAT, [batch, width]),
        ],
        [helper.make_tensor_value_info("step/changed", TensorProto.FLOAT, vector)],
    )
    drawing.nodes.append(
        helper.make_node(
            "Scan",
            ["steps/nothing", "steps/all_rows", "steps/all_errors", "steps/all_slopes"],
            ["steps/change_column"],
            name="steps/descent",
            num_scan_inputs=3,
            body=step,
        )
    )
    drawing.hold("steps/row", np.array([1, width], dtype=np.int64))
    return drawing.add("Reshape", ["steps/change_column", "steps/row"], "steps/change")
