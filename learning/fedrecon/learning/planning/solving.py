"""Conjugate gradient as a loop of a graph: as many steps as the system needs, and no more.

The system is symmetric and positive definite, scaled so that its diagonal is 1 (Jacobi's preconditioner, applied once
from both sides), and vectors are rows. A step is ten operators: ONNX Runtime takes longer to call one than to compute
it on so few numbers. The loop ends when the squared residual is `TOLERANCE` of what it was, which also keeps every
division from 0 by 0: without anything to solve there is no step.

Source: Hestenes and Stiefel 1952.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

SYSTEM, RIGHT, SCALE, SOLUTION = "system", "right", "scale", "solution"

TOLERANCE = 1e-16
"""Of the squared residual. Where float32 ends, the recurrence's residual goes on falling: the loop ends there, too."""

_STATE = ("solution", "residual", "direction")


def solve(width: int, most: int) -> list[NodeProto]:
    """Returns the nodes that give `solution` `[1, width]` of `solution @ system = right`.

    Args:
        width: of `system` `[width, width]` and `right` `[1, width]`.
        most: steps at most.
    """
    body = [
        helper.make_node("MatMul", ["step.direction", SYSTEM], ["step.image"]),
        helper.make_node("Gemm", ["step.direction", "step.image"], ["step.curvature"], transB=1),
        helper.make_node("Div", ["step.product", "step.curvature"], ["step.length"]),
        helper.make_node("Gemm", ["step.length", "step.direction", "step.solution"], ["next.solution"]),
        helper.make_node("Gemm", ["step.length", "step.image", "step.residual"], ["next.residual"], alpha=-1.0),
        helper.make_node("ReduceSumSquare", ["next.residual"], ["next.product"], keepdims=0),
        helper.make_node("Div", ["next.product", "step.product"], ["step.share"]),
        helper.make_node("Mul", ["step.share", "step.direction"], ["step.kept"]),
        helper.make_node("Add", ["next.residual", "step.kept"], ["next.direction"]),
        helper.make_node("Greater", ["next.product", "smallest_product"], ["next.goes_on"]),
    ]
    inputs = [
        helper.make_tensor_value_info("step.number", TensorProto.INT64, []),
        helper.make_tensor_value_info("step.goes_on", TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(f"step.{name}", TensorProto.FLOAT, [1, width]) for name in _STATE),
        helper.make_tensor_value_info("step.product", TensorProto.FLOAT, []),
    ]
    outputs = [
        helper.make_tensor_value_info("next.goes_on", TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(f"next.{name}", TensorProto.FLOAT, [1, width]) for name in _STATE),
        helper.make_tensor_value_info("next.product", TensorProto.FLOAT, []),
    ]
    return [
        _constant("most_steps", np.array(most, dtype=np.int64)),
        _constant("tolerance", np.array(TOLERANCE, dtype=np.float32)),
        _constant("nothing", np.zeros((1, width), dtype=np.float32)),
        helper.make_node("ReduceSumSquare", [RIGHT], ["first_product"], keepdims=0),
        helper.make_node("Mul", ["first_product", "tolerance"], ["smallest_product"]),
        helper.make_node("Greater", ["first_product", "smallest_product"], ["goes_on"]),
        helper.make_node(
            "Loop",
            ["most_steps", "goes_on", "nothing", RIGHT, RIGHT, "first_product"],
            [SOLUTION, "last_residual", "last_direction", "last_product"],
            body=helper.make_graph(body, "step", inputs, outputs),
        ),
    ]


def _constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
