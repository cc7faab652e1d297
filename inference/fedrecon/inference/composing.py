"""Putting ONNX graphs together: a graph under construction, and other graphs laid into it.

Rules: every value that is made here has a `/` in its name, and every graph that is laid in keeps its own names under
a prefix, so that nothing collides and the file can be read. Loops and branches read names of the graph around them:
they are renamed all the way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


class CompositionError(ValueError):
    """A graph cannot be laid into another."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph under construction.

    Attributes:
        nodes: its nodes, in the order in which they run.
        initialisers: its constants.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    initialisers: list[TensorProto] = field(default_factory=list)

    def hold(self, name: str, value: NDArray[Any]) -> str:
        """Keeps a constant, and returns its name."""
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def number(self, name: str, value: int) -> str:
        """Keeps an int64 scalar, and returns its name."""
        return self.hold(name, np.array(value, dtype=np.int64))

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns that output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def lay(self, model: ModelProto, prefix: str, connected: Mapping[str, str]) -> list[str]:
        """Lays a whole graph in.

        Args:
            model: the graph; it is not changed.
            prefix: begins the new names of all its values, for example `reconstruct/`.
            connected: for every input of the graph, the value of this drawing that it reads.

        Returns:
            New names of the graph's outputs, in order.

        Raises:
            CompositionError: an input is left open, or the graph uses what cannot be laid in.
        """
        graph = model.graph
        held = {initialiser.name for initialiser in graph.initializer}
        open_inputs = [value.name for value in graph.input if value.name not in connected and value.name not in held]
        if open_inputs:
            raise CompositionError(f"{prefix}: the graph has inputs that its manifest does not name: {open_inputs}")
        if model.functions or graph.sparse_initializer:
            raise CompositionError(f"{prefix}: model functions and sparse constants cannot be laid into another graph")
        copy = GraphProto()
        copy.CopyFrom(graph)
        _rename(copy, prefix, connected)
        self.nodes.extend(copy.node)
        self.initialisers.extend(copy.initializer)
        return [value.name for value in copy.output]


def _rename(graph: GraphProto, prefix: str, connected: Mapping[str, str]) -> None:
    """Gives every value of a graph, and of the graphs inside it, its new name; in place."""

    def renamed(name: str) -> str:
        # An empty name is an optional input or output that is left out.
        return connected.get(name, prefix + name) if name else name

    for value in (*graph.input, *graph.output):
        value.name = renamed(value.name)
    for constant in graph.initializer:
        constant.name = renamed(constant.name)
    # Shapes and notes of the compiler: they are inferred again, and carry names.
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    graph.doc_string = ""
    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rename(attribute.g, prefix, connected)
            for inner in attribute.graphs:
                _rename(inner, prefix, connected)
