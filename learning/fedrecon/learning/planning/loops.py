"""Gradient steps as one loop of a graph.

The loop is a `Scan` over the leading axis of order, mask and rates: parameters and the state of optimizers go from
step to step, and every step gives its loss. It stands in an `If`, because ONNX Runtime refuses a Scan over nothing;
without steps parameters pass unchanged.

What the steps share is computed once, before the loop. Half of the operators of an exported SGD step only work out
extents, or fill a table with zeros. None of that depends on the step: extents of the state are those of its initial
value, and extents of a scanned row are those of the whole less its first axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning import steps, values
from fedrecon.learning.planning.export import declare, export
from fedrecon.learning.planning.steps import Move, State
from fedrecon.learning.planning.values import Value


def descend(
    model: FederatedModel, what: str, moves: Sequence[Move], *, at_default: bool
) -> tuple[list[NodeProto], tuple[Value, ...]]:
    """Returns the nodes that take gradient steps, giving `after.NAME` and `losses`, and the inputs they know.

    Args:
        model: what is learned.
        what: name of the graph, for errors.
        moves: the parameters that move, each with its optimizer and rate.
        at_default: whether the loss of a user without examples is minimised as well.

    Raises:
        PlanError: torch cannot translate the step.
    """
    fixed = (*values.parameters(model), *values.fields(model.fields))
    moving = tuple(values.parameter(model, name) for move in moves for name in move.parameters)
    begun = tuple(state for move in moves for state in steps.state_of(model, move))
    states = (*moving, *(state.value for state in begun))
    after = tuple(values.after(value) for value in states)
    scanned = (values.order, values.step_mask, *(values.hyperparameter(move.rate) for move in moves))
    rows = (
        Value("order", values.order.source, "", torch.int64, ("batch",)),
        Value("mask", values.step_mask.source, "", torch.float32, ("batch",)),
        *(
            Value(f"rate.{move.rate}", value.source, move.rate, torch.float32, ())
            for move, value in zip(moves, scanned[2:], strict=True)
        ),
    )
    loss = Value("loss", values.losses.source, "", torch.float32, ())
    taken = (*fixed, *(state.value for state in begun), *rows)
    body = export(what, steps.step(model, moves, at_default=at_default), taken, (*after, loss))
    before, body = split_loop(
        body,
        {value.name for value in states},
        {row.name: whole.name for row, whole in zip(rows, scanned, strict=True)},
        [value.name for value in (*after, loss)],
    )

    def inner(value: Value) -> ValueInfoProto:
        return declare(value, f"step.{value.name}")

    loop = helper.make_graph(body, "step", [*map(inner, (*states, *rows))], [*map(inner, (*after, loss))])
    scan = helper.make_node(
        "Scan",
        [value.name for value in (*states, *scanned)],
        [*(f"some.{value.name}" for value in after), "some.losses"],
        body=loop,
        num_scan_inputs=len(scanned),
    )
    start = [node for state in begun for node in _begin(model, state)]
    return [*start, *before, *_if_any(scan, moving, scanned[2])], (*fixed, *scanned)


def _begin(model: FederatedModel, state: State) -> Iterator[NodeProto]:
    """Yields the nodes that fill a part of the state with the number it starts at."""
    start = np.array([state.start], dtype=np.float32)
    if state.like is None:
        yield helper.make_node("Constant", [], [state.value.name], value=numpy_helper.from_array(start.reshape(())))
        return
    extents = f"extents.{state.value.name}"
    yield helper.make_node("Shape", [values.parameter(model, state.like).name], [extents])
    yield helper.make_node("ConstantOfShape", [extents], [state.value.name], value=numpy_helper.from_array(start))


def _if_any(scan: NodeProto, moving: Sequence[Value], rates: Value) -> list[NodeProto]:
    """Returns the nodes that run a Scan where there are steps, and pass parameters and no losses on where not."""
    results = (*map(values.after, moving), values.losses)
    some = helper.make_graph([scan], "some", [], [declare(value, f"some.{value.name}") for value in results])
    passed_on = [
        helper.make_node("Identity", [value.name], [f"none.{result.name}"])
        for value, result in zip((*moving, rates), results, strict=True)
    ]
    none = helper.make_graph(passed_on, "none", [], [declare(value, f"none.{value.name}") for value in results])
    return [
        helper.make_node("Size", [rates.name], ["steps"]),
        helper.make_node("Cast", ["steps"], ["any"], to=TensorProto.BOOL),
        helper.make_node("If", ["any"], [value.name for value in results], then_branch=some, else_branch=none),
    ]


def split_loop(
    body: Sequence[NodeProto], states: Collection[str], scanned: Mapping[str, str], outputs: Sequence[str]
) -> tuple[list[NodeProto], list[NodeProto]]:
    """Returns the nodes that run before a loop, and those of its body.

    Names within the body get the prefix `step.`, since a graph within a graph may not use a name of the outer one
    again; what comes from outside keeps its name.

    Args:
        body: nodes of one step, in order.
        states: names of values that change from step to step, outside and in the step.
        scanned: names in the step of rows of scanned inputs -> names of the whole outside.
        outputs: names that the step gives.
    """
    before: list[NodeProto] = []
    within: list[NodeProto] = []
    changing = {*states, *scanned}
    for node in body:
        measured = _measured_outside(node, states, scanned)
        if measured is not None:
            before.append(measured)
        elif changing.intersection(node.input) or set(outputs).intersection(node.output):
            changing.update(name for name in node.output if name)
            within.append(node)
        else:
            before.append(node)
    for node in within:
        node.input[:] = [f"step.{name}" if name in changing else name for name in node.input]
        node.output[:] = [f"step.{name}" if name else "" for name in node.output]
    return before, within


def _measured_outside(node: NodeProto, states: Collection[str], scanned: Mapping[str, str]) -> NodeProto | None:
    """Returns the same extents, measured outside the loop; None where a node measures nothing known there."""
    if node.op_type != "Shape":
        return None
    if node.input[0] in states:
        return node
    if node.input[0] not in scanned:
        return None
    axes = {attribute.name: int(helper.get_attribute_value(attribute)) for attribute in node.attribute}
    if min(axes.values(), default=0) < 0:
        return None
    shifted: dict[str, Any] = {"start": axes.get("start", 0) + 1} | ({"end": axes["end"] + 1} if "end" in axes else {})
    return helper.make_node("Shape", [scanned[node.input[0]]], list(node.output), **shifted)
