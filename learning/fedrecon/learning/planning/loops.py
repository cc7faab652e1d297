"""What the steps of a loop share is computed once, before it.

Half of the operators of an exported SGD step only work out extents, or fill a table with zeros. None of that depends
on the step: extents of the state are those of its initial value, and extents of a scanned row are those of the
whole less its first axis.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onnx import NodeProto, helper


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
