"""The five graphs of a plan, as ONNX files.

Rules:
- The gradient steps of `reconstruct` and `update` are one loop (`loops`); without steps parameters pass unchanged.
- A ridge reconstruction is a loop that ends when it is exact (`solving`).
- A graph takes only the inputs that it uses.
- Row-sparse parameters come as any number of rows, with fields numbered accordingly: with all rows and plain row
  numbers the graphs are dense, with the rows of `touch` they are sparse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, helper, numpy_helper

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning import functions, solving, steps, values
from fedrecon.learning.planning.export import IR_VERSION, OPSET, declare, export
from fedrecon.learning.planning.loops import descend
from fedrecon.learning.planning.values import Value
from fedrecon.learning.reconstruction import RECONSTRUCT_RIDGE, GradientSteps, Ridge
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
        *([touch(model)] if model.row_sparse else []),
        reconstruct(model),
        update(model),
        predict(model),
        evaluate(model),
    )


def touch(model: FederatedModel) -> PlanGraph:
    """Returns the graph that finds the rows a device needs: sorted unique rows, and fields renumbered into them."""
    touched = set(model.row_sparse.values())
    chosen = [each for each in model.fields if each.vocabulary in touched]
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
    if isinstance(model.reconstruction, GradientSteps):
        moves = steps.of_reconstruction(model, model.reconstruction)
        nodes, inputs = descend(model, "reconstruct", moves, at_default=False)
        nodes += [
            helper.make_node("Identity", [values.after(values.parameter(model, value.reference)).name], [value.name])
            for value in outputs
        ]
        return _finish(plan_pb2.GRAPH_ROLE_RECONSTRUCT, inputs, (*outputs, values.losses), nodes)
    assert isinstance(model.reconstruction, Ridge)  # noqa: S101 - there are two kinds
    inputs = (
        *values.parameters(model),
        *values.fields(model.fields),
        values.example_mask,
        values.hyperparameter(RECONSTRUCT_RIDGE),
    )
    width = sum(value.numel() for value in model.local_parameters.values())
    found = tuple(
        Value(name, plan_pb2.VALUE_SOURCE_UNSPECIFIED, "", torch.float32, shape)
        for name, shape in (
            (solving.SYSTEM, (width, width)),
            (solving.RIGHT, (1, width)),
            (solving.SCALE, (1, width)),
        )
    )
    nodes = export("reconstruct", functions.normal_equations(model), inputs, found)
    nodes += solving.solve(width, model.reconstruction.most_steps)
    nodes += _changed(model, outputs)
    return _finish(plan_pb2.GRAPH_ROLE_RECONSTRUCT, inputs, outputs, nodes)


def _changed(model: FederatedModel, outputs: Sequence[Value]) -> list[NodeProto]:
    """Returns the nodes that change each local parameter by its part of the solution."""
    local = model.local_parameters
    widths = np.array([value.numel() for value in local.values()], dtype=np.int64)
    parts = [f"change.{name}" for name in local]
    nodes = [
        helper.make_node("Mul", [solving.SOLUTION, solving.SCALE], ["change"]),
        helper.make_node("Constant", [], ["widths"], value=numpy_helper.from_array(widths)),
        helper.make_node("Split", ["change", "widths"], parts, axis=1),
    ]
    for part, output, value in zip(parts, outputs, local.values(), strict=True):
        extents = numpy_helper.from_array(np.array(value.shape, dtype=np.int64))
        nodes += [
            helper.make_node("Constant", [], [f"extents.{part}"], value=extents),
            helper.make_node("Reshape", [part, f"extents.{part}"], [f"shaped.{part}"]),
            helper.make_node("Add", [values.parameter(model, output.reference).name, f"shaped.{part}"], [output.name]),
        ]
    return nodes


def update(model: FederatedModel) -> PlanGraph:
    """Returns the graph that improves the global parameters; its outputs are differences, after - before.

    Joint training moves local parameters as well; they are no output, since nobody may have them.
    """
    outputs = tuple(values.update(model, name) for name in model.global_parameters)
    nodes, inputs = descend(model, "update", steps.of_update(model), at_default=bool(model.defaults))
    for value in outputs:
        before = values.parameter(model, value.reference)
        nodes.append(helper.make_node("Sub", [values.after(before).name, before.name], [value.name]))
    return _finish(plan_pb2.GRAPH_ROLE_UPDATE, inputs, (*outputs, values.losses), nodes)


def predict(model: FederatedModel) -> PlanGraph:
    """Returns the graph that scores examples without their targets."""
    inputs = (*values.parameters(model), *values.fields(model.inputs))
    scores = values.scores(model)
    nodes = export("predict", functions.predict(model), inputs, (scores,))
    return _finish(plan_pb2.GRAPH_ROLE_PREDICT, inputs, (scores,), nodes)


def evaluate(model: FederatedModel) -> PlanGraph:
    """Returns the graph that sums up the metrics of masked examples."""
    inputs = (*values.parameters(model), *values.fields(model.fields), values.example_mask)
    outputs = tuple(values.metric(name) for name in model.metrics)
    nodes = export("evaluate", functions.evaluate(model), inputs, outputs)
    return _finish(plan_pb2.GRAPH_ROLE_EVALUATE, inputs, outputs, nodes)


def _finish(
    role: GraphRole.ValueType, inputs: Iterable[Value], outputs: tuple[Value, ...], nodes: Sequence[NodeProto]
) -> PlanGraph:
    """Returns the nodes as a checked ONNX file that takes only the inputs it uses."""
    used = _names_read(nodes)
    taken = tuple(value for value in inputs if value.name in used)
    graph = helper.make_graph(
        nodes, role_names[role], [declare(value) for value in taken], [declare(value) for value in outputs]
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


def _constant(name: str, content: Sequence[int]) -> NodeProto:
    array = numpy_helper.from_array(torch.tensor(content, dtype=torch.int64).numpy())
    return helper.make_node("Constant", [], [name], value=array)
