"""The five graphs of a plan, as ONNX files.

Rules:
- The gradient steps of `reconstruct` and `update` are one `Scan` over the leading axis of order, mask and rates. It
  stands in an `If`, because ONNX Runtime refuses a Scan over nothing; without steps parameters pass unchanged.
- A graph takes only the inputs that it uses.
- Row-sparse parameters come as any number of rows, with fields numbered accordingly: with all rows and plain row
  numbers the graphs are dense, with the rows of `touch` they are sparse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning import functions, values
from fedrecon.learning.planning.export import IR_VERSION, OPSET, element_types, export
from fedrecon.learning.planning.loops import split_loop
from fedrecon.learning.planning.values import Value
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, RECONSTRUCT_RIDGE, UPDATE_RATE, Ridge
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import GraphRole
from fedrecon.wire.manifests import role_names


@dataclass(frozen=True, slots=True)
class PlanGraph:
    """One graph of a plan.

    Attributes:
        role: what it is for.
        inputs: its inputs, in order.
        outputs: its outputs, in order.
        content: the ONNX file.
    """

    role: GraphRole.ValueType
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    content: bytes

    @property
    def name(self) -> str:
        """The graph's name in files and errors, for example `reconstruct`."""
        return role_names[self.role]


def compile_graphs(model: FederatedModel) -> tuple[PlanGraph, ...]:
    """Returns the graphs of a model: `touch` where a parameter is row-sparse, then the other four.

    Raises:
        PlanError: torch cannot translate the model.
    """
    return (
        *([touch(model)] if model.vocabularies else []),
        reconstruct(model),
        update(model),
        predict(model),
        evaluate(model),
    )


def touch(model: FederatedModel) -> PlanGraph:
    """Returns the graph that finds the rows a device needs: sorted unique rows, and fields renumbered into them."""
    chosen = [each for each in model.fields if each.vocabulary is not None]
    inputs = values.fields(chosen)
    row_values: list[Value] = []
    field_values: list[Value] = []
    nodes: list[NodeProto] = [_constant("flat", [-1])]
    for vocabulary in dict.fromkeys(each.vocabulary for each in chosen if each.vocabulary is not None):
        members = [each for each in chosen if each.vocabulary == vocabulary]
        flat = [f"flat.{each.name}" for each in members]
        nodes += [
            helper.make_node("Reshape", [f"field.{each.name}", "flat"], [name])
            for each, name in zip(members, flat, strict=True)
        ]
        nodes += [
            helper.make_node("Concat", flat, [f"all.{vocabulary}"], axis=0),
            helper.make_node(
                "Unique", [f"all.{vocabulary}"], [f"rows.{vocabulary}", "", f"numbers.all.{vocabulary}"], sorted=1
            ),
            *(helper.make_node("Shape", [name], [f"count.{name}"]) for name in flat),
            helper.make_node("Concat", [f"count.{name}" for name in flat], [f"counts.all.{vocabulary}"], axis=0),
            helper.make_node(
                "Split",
                [f"numbers.all.{vocabulary}", f"counts.all.{vocabulary}"],
                [f"numbers.{name}" for name in flat],
                axis=0,
            ),
        ]
        for each, name in zip(members, flat, strict=True):
            # allowzero: an extent of 0 means no examples, not "as in the input".
            nodes += [
                helper.make_node("Shape", [f"field.{each.name}"], [f"shape.{each.name}"]),
                helper.make_node(
                    "Reshape",
                    [f"numbers.{name}", f"shape.{each.name}"],
                    [f"renumbered.{each.name}"],
                    allowzero=1,
                ),
            ]
        row_values.append(values.rows(vocabulary))
        field_values += [values.renumbered(each) for each in members]
    return _finish(plan_pb2.GRAPH_ROLE_TOUCH, inputs, (*row_values, *field_values), nodes)


def reconstruct(model: FederatedModel) -> PlanGraph:
    """Returns the graph that finds the local parameters."""
    outputs = tuple(values.reconstructed(model, name) for name in model.local_parameters)
    if not isinstance(model.reconstruction, Ridge):
        moving = tuple(model.local_parameters)
        nodes, inputs = _steps(model, "reconstruct", moving, RECONSTRUCT_RATE)
        nodes += [
            helper.make_node("Identity", [f"after.{name}"], [value.name])
            for name, value in zip(moving, outputs, strict=True)
        ]
        return _finish(plan_pb2.GRAPH_ROLE_RECONSTRUCT, inputs, (*outputs, values.losses), nodes)
    inputs = (
        *values.parameters(model),
        *values.fields(model.fields),
        values.example_mask,
        values.hyperparameter(RECONSTRUCT_RIDGE),
    )
    nodes = export("reconstruct", functions.ridge(model), inputs, outputs)
    return _finish(plan_pb2.GRAPH_ROLE_RECONSTRUCT, inputs, outputs, nodes)


def update(model: FederatedModel) -> PlanGraph:
    """Returns the graph that improves the global parameters; its outputs are differences, after - before."""
    moving = tuple(model.global_parameters)
    outputs = tuple(values.update(model, name) for name in moving)
    nodes, inputs = _steps(model, "update", moving, UPDATE_RATE)
    nodes += [
        helper.make_node("Sub", [f"after.{name}", f"parameter.{name}"], [value.name])
        for name, value in zip(moving, outputs, strict=True)
    ]
    return _finish(plan_pb2.GRAPH_ROLE_UPDATE, inputs, (*outputs, values.losses), nodes)


def predict(model: FederatedModel) -> PlanGraph:
    """Returns the graph that scores examples without their targets."""
    inputs = (*values.parameters(model), *values.fields(model.inputs))
    nodes = export("predict", functions.predict(model), inputs, (values.scores,))
    return _finish(plan_pb2.GRAPH_ROLE_PREDICT, inputs, (values.scores,), nodes)


def evaluate(model: FederatedModel) -> PlanGraph:
    """Returns the graph that sums up the metrics of masked examples."""
    inputs = (*values.parameters(model), *values.fields(model.fields), values.example_mask)
    outputs = tuple(values.metric(name) for name in model.metrics)
    nodes = export("evaluate", functions.evaluate(model), inputs, outputs)
    return _finish(plan_pb2.GRAPH_ROLE_EVALUATE, inputs, outputs, nodes)


def _steps(
    model: FederatedModel, what: str, moving: Sequence[str], rate_name: str
) -> tuple[list[NodeProto], tuple[Value, ...]]:
    """Returns the nodes that take SGD steps, giving `after.NAME` and `losses`, and the inputs they know."""
    rates = values.hyperparameter(rate_name)
    order = Value("order", values.order.source, "", torch.int64, ("batch",))
    mask = Value("mask", values.step_mask.source, "", torch.float32, ("batch",))
    rate = Value("rate", rates.source, rate_name, torch.float32, ())
    loss = Value("loss", values.losses.source, "", torch.float32, ())
    fixed = (*values.parameters(model), *values.fields(model.fields))
    after = tuple(
        Value(
            f"after.{name}", plan_pb2.VALUE_SOURCE_PARAMETER, name, torch.float32, values.parameter_shape(model, name)
        )
        for name in moving
    )
    body = export(what, functions.step(model, moving), (*fixed, order, mask, rate), (*after, loss))
    states = tuple(values.parameter(model, name) for name in moving)
    scanned = {"order": "order", "mask": "mask", "rate": rates.name}
    constant, body = split_loop(
        body, {state.name for state in states}, scanned, [*(value.name for value in after), "loss"]
    )

    def inner(value: Value) -> ValueInfoProto:
        return _declare(value, f"step.{value.name}")

    loop = helper.make_graph(
        body,
        "step",
        [inner(value) for value in (*states, order, mask, rate)],
        [inner(value) for value in (*after, loss)],
    )
    scan = helper.make_node(
        "Scan",
        [*(state.name for state in states), "order", "mask", rates.name],
        [*(f"some.{value.name}" for value in after), "some.losses"],
        body=loop,
        num_scan_inputs=3,
    )
    results = (*after, values.losses)
    some = helper.make_graph([scan], "some", [], [_declare(value, f"some.{value.name}") for value in results])
    none = helper.make_graph(
        [
            helper.make_node("Identity", [source], [f"none.{value.name}"])
            for source, value in zip((*(state.name for state in states), rates.name), results, strict=True)
        ],
        "none",
        [],
        [_declare(value, f"none.{value.name}") for value in results],
    )
    nodes = [
        *constant,
        helper.make_node("Size", [rates.name], ["steps"]),
        helper.make_node("Cast", ["steps"], ["any"], to=TensorProto.BOOL),
        helper.make_node("If", ["any"], [value.name for value in results], then_branch=some, else_branch=none),
    ]
    return nodes, (*fixed, values.order, values.step_mask, rates)


def _finish(
    role: GraphRole.ValueType, inputs: Iterable[Value], outputs: tuple[Value, ...], nodes: Sequence[NodeProto]
) -> PlanGraph:
    """Returns the nodes as a checked ONNX file that takes only the inputs it uses."""
    used = _names_read(nodes)
    taken = tuple(value for value in inputs if value.name in used)
    graph = helper.make_graph(
        nodes, role_names[role], [_declare(value) for value in taken], [_declare(value) for value in outputs]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fedrecon"
    )
    onnx.checker.check_model(model, full_check=True)
    return PlanGraph(role, taken, outputs, model.SerializeToString(deterministic=True))


def _names_read(nodes: Iterable[NodeProto]) -> set[str]:
    """Returns every name that nodes read, those inside loops and branches included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if isinstance(value := helper.get_attribute_value(attribute), GraphProto):
                names |= _names_read(value.node)
    return names


def _declare(value: Value, name: str | None = None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name or value.name, element_types[value.dtype], list(value.shape))


def _constant(name: str, content: Sequence[int]) -> NodeProto:
    array = numpy_helper.from_array(torch.tensor(content, dtype=torch.int64).numpy())
    return helper.make_node("Constant", [], [name], value=array)
