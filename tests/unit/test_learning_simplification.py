"""The passes over exported graphs change no number, and leave nothing that is not needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fedrecon.learning.planning.simplification import simplify
from fedrecon.learning.planning.values import PlanError
from fedrecon.learning.planning.verification import levels, open_graph


def constant(name: str, values: object, dtype: type = np.int64) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype=dtype)))


def model_of(
    nodes: Sequence[NodeProto], shape: Sequence[int | str], outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def operators(nodes: Sequence[NodeProto]) -> list[str]:
    return [node.op_type for node in nodes if node.op_type != "Constant"]


def test_what_does_nothing_is_dropped() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 1]),
        helper.make_node("CastLike", ["a", "x"], ["b"]),
        constant("one", 1.0, np.float32),
        helper.make_node("Pow", ["b", "one"], ["c"]),
        helper.make_node("Concat", ["c"], ["d"], axis=0),
        helper.make_node("Neg", ["d"], ["y"]),
    ]
    simple = simplify("g", model_of(nodes, [2, 3]), ["in"], ["out"])
    assert [(node.op_type, list(node.input), list(node.output)) for node in simple] == [("Neg", ["in"], ["out"])]


def test_what_changes_the_order_or_the_power_stays() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        constant("two", 2.0, np.float32),
        helper.make_node("Pow", ["a", "two"], ["y"]),
    ]
    assert operators(simplify("g", model_of(nodes, [2, 3]), ["in"], ["out"])) == ["Transpose", "Pow"]


def test_extents_of_a_scalar_are_known() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["a"], keepdims=0),
        helper.make_node("Shape", ["a"], ["extents"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Expand", ["b", "extents"], ["y"]),
    ]
    assert operators(simplify("g", model_of(nodes, [2, 3]), ["in"], ["out"])) == ["ReduceSum", "Neg"]


@pytest.mark.parametrize(("shape", "expected"), [([5], ["Neg"]), ([5, 2], ["Reshape", "Neg"])])
def test_only_what_is_flat_already_is_not_flattened(shape: list[int | str], expected: list[str]) -> None:
    nodes = [
        constant("flat", [-1]),
        helper.make_node("Reshape", ["x", "flat"], ["a"]),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    assert operators(simplify("g", model_of(nodes, shape), ["in"], ["out"])) == expected


def test_equal_computations_are_merged_and_unread_ones_dropped() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("Abs", ["x"], ["unread"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    simple = simplify("g", model_of(nodes, [2]), ["in"], ["out"])
    assert operators(simple) == ["Neg", "Add"]
    assert simple[1].input[0] == simple[1].input[1]


def test_small_constants_are_folded() -> None:
    nodes = [
        constant("a", [2]),
        constant("b", [-1]),
        helper.make_node("Concat", ["a", "b"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    simple = simplify("g", model_of(nodes, [2, 3]), ["in"], ["out"])
    assert [node.op_type for node in simple] == ["Constant", "Reshape"]
    assert numpy_helper.to_array(simple[0].attribute[0].t).tolist() == [2, -1]


@pytest.mark.parametrize("epsilon", [1e-7, 1e-8, 1e-30])
def test_a_number_that_only_keeps_a_divisor_from_zero_stays(epsilon: float) -> None:
    """torch's own optimiser drops the epsilon of Adam, which makes 0 / 0 of a gradient of 0."""
    nodes = [
        constant("epsilon", epsilon, np.float32),
        helper.make_node("Sqrt", ["x"], ["a"]),
        helper.make_node("Add", ["a", "epsilon"], ["b"]),
        helper.make_node("Div", ["x", "b"], ["y"]),
    ]
    simple = simplify("g", model_of(nodes, [2]), ["x"], ["y"])
    assert operators(simple) == ["Sqrt", "Add", "Div"]
    content = model_of(simple, [2]).SerializeToString()
    for _, level in levels:
        found = open_graph("g", content, level)("g", {"x": np.array([0, 4], dtype=np.float32)})["y"]
        assert found.tolist() == [0, 2]


def test_an_output_that_is_an_input_is_passed_on() -> None:
    simple = simplify("g", model_of([helper.make_node("Identity", ["x"], ["y"])], [2]), ["in"], ["out"])
    assert [(node.op_type, list(node.input), list(node.output)) for node in simple] == [("Identity", ["in"], ["out"])]


def test_names_and_notes_of_the_exporter_are_gone() -> None:
    node = helper.make_node("Neg", ["x"], ["secret"], name="node_secret", doc_string="/home/author/model.py:12")
    node.metadata_props.append(onnx.StringStringEntryProto(key="trace", value="/home/author/model.py"))
    last = helper.make_node("Abs", ["secret"], ["y"], name="node_y")
    simple = simplify("g", model_of([node, last], [2]), ["in"], ["out"])
    assert b"secret" not in b"".join(each.SerializeToString() for each in simple)
    assert b"author" not in b"".join(each.SerializeToString() for each in simple)


def test_a_table_as_a_constant_is_refused() -> None:
    nodes = [constant("table", np.arange(5000), np.float32), helper.make_node("Add", ["x", "table"], ["y"])]
    with pytest.raises(PlanError, match=r"graph g: a constant of shape \[5000\]"):
        simplify("g", model_of(nodes, [5000]), ["in"], ["out"])


def test_operators_outside_onnx_are_refused() -> None:
    node = helper.make_node("FusedGemm", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(PlanError, match=r"com\.microsoft::FusedGemm"):
        simplify("g", model_of([node], [2, 2]), ["in"], ["out"])


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_sum_over_the_last_axis_is_right_for_any_number_of_rows(rows: int) -> None:
    """ONNX Runtime gives an empty tensor back unreduced where the axis is negative."""
    nodes = [constant("last", [-1]), helper.make_node("ReduceSum", ["x", "last"], ["y"], keepdims=0)]
    simple = simplify("g", model_of(nodes, ["rows", 3]), ["x"], ["y"])
    content = model_of(simple, ["rows", 3]).SerializeToString()
    table = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    for _, level in levels:
        found = open_graph("g", content, level)("g", {"x": table})["y"]
        assert np.array_equal(found, table.sum(axis=-1))


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_the_largest_along_the_last_axis_is_right_for_any_number_of_rows(rows: int) -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["a"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    simple = simplify("g", model_of(nodes, ["rows", 3]), ["x"], ["y"])
    content = model_of(simple, ["rows", 3]).SerializeToString()
    table = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    for _, level in levels:
        assert open_graph("g", content, level)("g", {"x": table})["y"].tolist() == [2.0] * rows


def test_simplified_graphs_compute_what_they_computed() -> None:
    nodes = [
        constant("axes", [-1]),
        constant("two", 2.0, np.float32),
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        helper.make_node("Transpose", ["x"], ["b"], perm=[1, 0]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Pow", ["c", "two"], ["d"]),
        helper.make_node("ReduceSum", ["d", "axes"], ["y"], keepdims=1),
    ]
    before = model_of(nodes, [2, 3])
    after = model_of(simplify("g", before, ["x"], ["y"]), [2, 3])
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    results = [
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"x": x})[0] for each in (before, after)
    ]
    assert np.array_equal(results[0], results[1])
