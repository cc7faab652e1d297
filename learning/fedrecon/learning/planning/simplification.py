"""Safe passes over the nodes that torch's exporter writes: small graphs, equal every time.

torch's own optimiser is not used: it drops the 1e-8 of Adam and folds tables into constants. The passes here never
change a number that is computed from an input. They drop what does nothing (casts to the same type, transpositions
that keep the order, powers of one), count the axes of sums from the front, let Gemm transpose for itself, fold what is
constant and small, merge what is computed twice, drop what nobody reads, and rename what remains, so that nothing of
the author's machine (paths, source lines, torch's names) stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fedrecon.learning.planning.values import PlanError

# Shapes and scalars may be folded; anything larger must stay a computation.
FOLDED_ELEMENTS_LIMIT = 64
# A table that the module keeps as a constant does not belong into a graph.
CONSTANT_ELEMENTS_LIMIT = 4096

_MATRIX = 2

_foldable = frozenset({"Cast", "Concat", "Reshape", "Squeeze", "Unsqueeze", "Add", "Mul", "Sub", "Neg", "Gather"})
_single = frozenset({"Concat", "Max", "Min", "Sum", "Mean"})


def simplify(what: str, model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> list[NodeProto]:
    """Returns the nodes of a flat graph, simplified, between the given names.

    Args:
        what: name of the graph, for errors.
        model: what the exporter wrote.
        inputs: new names of its inputs, in order.
        outputs: new names of its outputs, in order.

    Raises:
        PlanError: the graph holds a table as a constant, or operators outside ONNX's own set.
    """
    foreign = next((node for node in model.graph.node if node.domain), None)
    if foreign is not None:
        raise PlanError(f"graph {what}: operator {foreign.domain}::{foreign.op_type} is outside ONNX's own set")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    renamed = dict(zip((value.name for value in graph.input), inputs, strict=True))
    types |= {renamed[value.name]: types[value.name] for value in graph.input}
    ranks = {
        renamed.get(value.name, value.name): len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }

    kept: list[NodeProto] = []
    constants: dict[str, TensorProto] = {}
    seen: dict[bytes, str] = {}
    transposed: dict[str, str] = {}
    for node in _with_axes_from_the_front(graph.node, ranks):
        plain = _plain(node, renamed)
        same = _does_nothing(plain, types, ranks, constants)
        if same is not None:
            renamed[node.output[0]] = same
            continue
        plain = _as_cast(plain, types)
        if plain.op_type == "Transpose" and ranks.get(plain.input[0]) == _MATRIX:
            transposed[plain.output[0]] = plain.input[0]
        plain = _transposing(plain, transposed)
        folded = _folded(plain, ranks, constants)
        if folded is not None:
            plain = helper.make_node("Constant", [], list(plain.output), value=folded)
        if plain.op_type == "Constant":
            tensor = _constant(plain)
            _check_constant(what, tensor)
            plain = helper.make_node("Constant", [], list(plain.output), value=tensor)
            constants[plain.output[0]] = tensor
            types[plain.output[0]] = tensor.data_type
        key = _key(plain)
        if key in seen and len(plain.output) == 1:
            renamed[node.output[0]] = seen[key]
            constants.pop(plain.output[0], None)
            continue
        seen[key] = plain.output[0]
        kept.append(plain)
    results = [renamed.get(value.name, value.name) for value in graph.output]
    return _named(_read(kept, results), inputs, results, outputs)


def _with_axes_from_the_front(nodes: Iterable[NodeProto], ranks: Mapping[str, int]) -> Iterator[NodeProto]:
    """Yields the nodes, sums and maxima with their axes counted from the front.

    ONNX Runtime 1.31 gives an *empty* tensor back unreduced where the axis is negative, so a client without examples
    would fail.
    """
    constants: dict[str, NodeProto] = {}
    for node in nodes:
        rank = ranks.get(node.input[0]) if node.input else None
        if node.op_type == "Constant":
            constants[node.output[0]] = node
            yield node
        elif node.op_type in {"ArgMax", "ArgMin"} and rank is not None:
            yield _with_axis_from_the_front(node, rank)
        elif node.op_type.startswith("Reduce") and rank and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(_constant(constants[node.input[1]]))
            counted = NodeProto()
            counted.CopyFrom(node)
            counted.input[1] = f"{node.output[0]}.axes"
            front = numpy_helper.from_array(np.where(axes < 0, axes + rank, axes))
            yield helper.make_node("Constant", [], [counted.input[1]], value=front)
            yield counted
        else:
            yield node


def _with_axis_from_the_front(node: NodeProto, rank: int) -> NodeProto:
    """Returns a node with its attribute `axis` counted from the front."""
    counted = NodeProto()
    counted.CopyFrom(node)
    for attribute in counted.attribute:
        if attribute.name == "axis" and attribute.i < 0:
            attribute.i += rank
    return counted


def _plain(node: NodeProto, renamed: Mapping[str, str]) -> NodeProto:
    """Returns a copy that has only operator, attributes and (renamed) inputs and outputs."""
    copy = NodeProto(op_type=node.op_type)
    copy.input.extend(renamed.get(name, name) for name in node.input)
    copy.output.extend(node.output)
    copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    for attribute in copy.attribute:
        attribute.doc_string = ""
    return copy


def _attributes(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _transposing(node: NodeProto, transposed: Mapping[str, str]) -> NodeProto:
    """Returns a Gemm that transposes its factors itself, where they are transpositions of matrices."""
    if node.op_type != "Gemm" or transposed.keys().isdisjoint(node.input[:2]):
        return node
    attributes = _attributes(node)
    inputs = list(node.input)
    for place, name in enumerate(("transA", "transB")):
        if inputs[place] in transposed:
            inputs[place] = transposed[inputs[place]]
            attributes[name] = 1 - int(str(attributes.get(name, 0)))
    return helper.make_node("Gemm", inputs, list(node.output), **attributes)  # type: ignore[arg-type]  # of any operator


def _does_nothing(
    node: NodeProto, types: Mapping[str, int], ranks: Mapping[str, int], constants: Mapping[str, TensorProto]
) -> str | None:
    """Returns the input that a node passes on unchanged, or None where it computes something."""
    match node.op_type:
        case "Identity":
            idle = True
        case "Transpose":
            axes = _attributes(node).get("perm")
            idle = isinstance(axes, list) and axes == list(range(len(axes)))
        case "CastLike":
            own, other = (types.get(name, 0) for name in node.input)
            idle = own == other != 0
        case "Cast":
            idle = types.get(node.input[0], 0) == _attributes(node)["to"]
        case "Pow" if node.input[1] in constants:
            exponent = numpy_helper.to_array(constants[node.input[1]])
            idle = exponent.ndim == 0 and bool(exponent == 1)
        case "Reshape" if node.input[1] in constants:
            flat = numpy_helper.to_array(constants[node.input[1]]).tolist() == [-1]
            idle = flat and ranks.get(node.input[0]) == 1
        case "Expand" if node.input[1] in constants:
            idle = numpy_helper.to_array(constants[node.input[1]]).size == 0
        case operator:
            idle = operator in _single and len(node.input) == 1
    return node.input[0] if idle else None


def _as_cast(node: NodeProto, types: Mapping[str, int]) -> NodeProto:
    """Returns CastLike as Cast, which needs no second input and can be folded."""
    target = types.get(node.input[1], 0) if node.op_type == "CastLike" else 0
    if not target:
        return node
    return helper.make_node("Cast", [node.input[0]], list(node.output), to=target)


def _folded(node: NodeProto, ranks: Mapping[str, int], constants: Mapping[str, TensorProto]) -> TensorProto | None:
    """Returns the value of a node whose inputs are all small constants, or that measures a scalar, or None."""
    if node.op_type == "Shape" and ranks.get(node.input[0]) == 0:
        return numpy_helper.from_array(np.zeros(0, dtype=np.int64))
    if node.op_type not in _foldable or not all(name in constants for name in node.input if name):
        return None
    feeds = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
    if sum(array.size for array in feeds.values()) > FOLDED_ELEMENTS_LIMIT:
        return None
    types = {name: helper.make_tensor_value_info(name, constants[name].data_type, None) for name in feeds}
    result = helper.make_tensor_value_info(node.output[0], TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], "fold", list(types.values()), [result])
    (array,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])).run(
        None, feeds
    )
    array = np.asarray(array)
    return numpy_helper.from_array(array) if array.size <= FOLDED_ELEMENTS_LIMIT else None


def _constant(node: NodeProto) -> TensorProto:
    """Returns the value of a Constant node as an unnamed tensor with raw bytes, however it was written."""
    ((name, value),) = _attributes(node).items()
    match name:
        case "value" if isinstance(value, TensorProto):
            array = numpy_helper.to_array(value)
        case "value_int" | "value_ints":
            array = np.array(value, dtype=np.int64)
        case "value_float" | "value_floats":
            array = np.array(value, dtype=np.float32)
        case _:
            raise PlanError(f"a constant is written as {name}, which graphs here do not use")
    return numpy_helper.from_array(array)


def _check_constant(what: str, tensor: TensorProto) -> None:
    """Refuses a table inside a graph."""
    elements = math.prod(tensor.dims)
    if elements > CONSTANT_ELEMENTS_LIMIT:
        raise PlanError(
            f"graph {what}: a constant of shape {list(tensor.dims)} would become part of the graph; make it a "
            "parameter of the model, or compute it from an input"
        )


def _key(node: NodeProto) -> bytes:
    """Returns bytes that are equal for nodes that compute the same."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.output[:]
    return copy.SerializeToString(deterministic=True)


def _read(nodes: Sequence[NodeProto], results: Sequence[str]) -> list[NodeProto]:
    """Returns the nodes whose outputs somebody reads."""
    wanted = set(results)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _named(
    nodes: Sequence[NodeProto], inputs: Sequence[str], results: Sequence[str], outputs: Sequence[str]
) -> list[NodeProto]:
    """Returns the nodes with outputs under their final names and everything between under running numbers."""
    final: dict[str, str] = {name: name for name in inputs}
    passed_on: list[NodeProto] = []
    for result, output in zip(results, outputs, strict=True):
        if result in final:
            passed_on.append(helper.make_node("Identity", [final[result]], [output]))
        else:
            final[result] = output
    for node in nodes:
        for name in node.output:
            if name:
                final.setdefault(name, f"value.{len(final) - len(inputs)}")
    for node in nodes:
        node.input[:] = [final[name] if name else "" for name in node.input]
        node.output[:] = [final[name] if name else "" for name in node.output]
    return [*nodes, *passed_on]
