"""The first half of a recommender: schedule and reconstruction of the local parameters, drawn inside the graph.

Rules: all examples are one support set in their given order, under the schedule of `fedrecon.wire.schedules`. Local
parameters start as `fedrecon.wire.manifests.initial_locals` gives them for a seed of zeros, so that equal examples
always give equal answers. Of a row-sparse parameter only the rows of the examples are read, unless the plan has no
graph that names them: then a reconstruction needs all rows, as one with a background does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from fedrecon.inference.bundles import Arrays, Bundle, NotExportableError, hyperparameter_of, schedule_of
from fedrecon.inference.composing import Drawing
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.v1.plan_pb2 import Field, Graph, GraphValue
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.keystream import SEED_BYTES
from fedrecon.wire.manifests import initial_locals

onnx_types = {
    common_pb2.DTYPE_FLOAT32: TensorProto.FLOAT,
    common_pb2.DTYPE_INT64: TensorProto.INT64,
    common_pb2.DTYPE_INT32: TensorProto.INT32,
    common_pb2.DTYPE_BOOL: TensorProto.BOOL,
}


@dataclass(frozen=True, slots=True)
class ReconstructionDrawing:
    """Lays a plan's reconstruction into a recommender.

    Attributes:
        drawing: the recommender; it holds `global/NAME` for every global parameter.
        bundle: the plan.
        graph: its graph of reconstruction, as the manifest describes it.
        work: the task's choice of schedule and hyperparameters.
    """

    drawing: Drawing
    bundle: Bundle
    graph: Graph
    work: LocalWork

    @property
    def stepwise(self) -> bool:
        """Whether it goes in steps over batches, or takes all examples at once."""
        return any(value.source == plan_pb2.VALUE_SOURCE_ORDER for value in self.graph.inputs)

    @property
    def reads_rows(self) -> bool:
        """Whether a device gives the reconstruction only the rows that its examples name."""
        vocabulary = self.bundle.item_field().vocabulary
        return any(
            value.source == plan_pb2.VALUE_SOURCE_ROWS and value.reference == vocabulary
            for graph in self.bundle.manifest.graphs
            if graph.role == plan_pb2.GRAPH_ROLE_TOUCH
            for value in graph.outputs
        )

    def draw(self, model: ModelProto, checkpoint: Arrays, fields: list[Field]) -> dict[str, str]:
        """Returns the value of every local parameter after reconstruction, by name.

        Args:
            model: the ONNX graph.
            checkpoint: global parameters, for local ones that start from a learned default.
            fields: what the recommender takes, at least one.

        Raises:
            NotExportableError: the graph reads what a recommender does not have.
            CompositionError: the graph cannot be laid in.
        """
        drawing = self.drawing
        examples = draw_number_of_examples(drawing, fields[0].name)
        if self.stepwise:
            draw_schedule(drawing, self.bundle, self.work, examples)
        else:
            drawing.hold("schedule/used", np.array(1.0, dtype=np.float32))
            drawing.add("Expand", ["schedule/used", "schedule/examples_shape"], "schedule/mask")
        drawing.add("Range", ["schedule/zero", examples, "schedule/one"], "rows/renumbered")
        local = {
            name: drawing.hold(f"initial/{name}", values)
            for name, values in initial_locals(self.bundle.manifest, checkpoint, bytes(SEED_BYTES)).items()
        }
        laid = drawing.lay(
            model, "reconstruct/", {value.name: self._source(value, local) for value in self.graph.inputs}
        )
        for value, name in zip(self.graph.outputs, laid, strict=True):
            if value.source == plan_pb2.VALUE_SOURCE_PARAMETER:
                local[value.reference] = name
        return local

    def _source(self, value: GraphValue, local: dict[str, str]) -> str:
        """Returns the value of the recommender that an input of the graph reads."""
        match value.source:
            case plan_pb2.VALUE_SOURCE_PARAMETER:
                return local.get(value.reference) or self._global(value.reference)
            case plan_pb2.VALUE_SOURCE_FIELD:
                return self._field(value.reference)
            case plan_pb2.VALUE_SOURCE_ORDER:
                return "schedule/order"
            case plan_pb2.VALUE_SOURCE_MASK:
                return "schedule/mask"
            case plan_pb2.VALUE_SOURCE_HYPERPARAMETER:
                return self._hyperparameter(value.reference)
            case _:
                raise NotExportableError(
                    f"reconstruction reads {value.name!r}, of source {value.source}: a recommender has no such value"
                )

    def _global(self, name: str) -> str:
        if not (self.bundle.parameter(name).vocabulary and self.reads_rows):
            return f"global/{name}"
        # One row for each example: examples of the same item read equal rows, which reconstruction does not change.
        return self.drawing.add("Gather", [f"global/{name}", self.bundle.item_field().name], f"rows/{name}", axis=0)

    def _field(self, name: str) -> str:
        field = self.bundle.field(name)
        if field.vocabulary:
            return "rows/renumbered" if self.reads_rows else name
        return self.drawing.add("Cast", [name], f"field/{name}", to=onnx_types[field.dtype])

    def _hyperparameter(self, name: str) -> str:
        value = hyperparameter_of(self.bundle, self.work, name)
        held = self.drawing.hold(f"hyperparameter/{name}", np.array(value, dtype=np.float32))
        if not self.bundle.manifest.hyperparameters[name].per_step:
            return held
        if not self.stepwise:
            raise NotExportableError(f"hyperparameter {name!r} has a value for each step, but there are no steps")
        return self.drawing.add("Expand", [held, "schedule/steps_shape"], f"rates/{name}")


def draw_number_of_examples(drawing: Drawing, field: str) -> str:
    """Draws the number of examples of a user, and returns its value; a field of theirs is measured."""
    drawing.number("schedule/zero", 0)
    drawing.number("schedule/one", 1)
    shape = drawing.add("Shape", [field], "schedule/examples_shape")
    return drawing.add("Squeeze", [shape], "schedule/examples")


def draw_schedule(drawing: Drawing, bundle: Bundle, work: LocalWork, examples: str, *, least_steps: int = 0) -> None:
    """Draws order and mask of all examples, as `fedrecon.wire.schedules.order` gives them for positions 0, 1, ...

    With B the batch size, n examples and b = ceil(n / B) batches, step t reads positions (t mod b) * B to
    (t mod b) * B + B - 1; a position of n or more is padding: position 0 under mask 0. b * epochs steps, at most
    the limit; `least_steps`, all padding, without examples.
    """
    schedule = schedule_of(bundle, work)
    size = schedule.batch_size
    if size < 1:
        raise NotExportableError("the schedule of the reconstruction has a batch size of 0")
    drawing.hold("schedule/columns", np.arange(size, dtype=np.int64)[None, :])
    drawing.number("schedule/size", size)
    drawing.number("schedule/size_less_one", size - 1)
    drawing.number("schedule/epochs", schedule.epochs)
    drawing.hold("schedule/axis", np.array([1], dtype=np.int64))
    padded = drawing.add("Add", [examples, "schedule/size_less_one"], "schedule/padded")
    batches = drawing.add("Div", [padded, "schedule/size"], "schedule/batches")
    steps = drawing.add("Mul", [batches, "schedule/epochs"], "schedule/wanted_steps")
    if schedule.maximum_steps:
        drawing.number("schedule/maximum_steps", schedule.maximum_steps)
        steps = drawing.add("Min", [steps, "schedule/maximum_steps"], "schedule/steps")
    if least_steps:
        drawing.number("schedule/least_steps", least_steps)
        steps = drawing.add("Max", [steps, "schedule/least_steps"], "schedule/steps_at_least")
    numbers = drawing.add("Range", ["schedule/zero", steps, "schedule/one"], "schedule/numbers")
    drawing.add("Shape", [numbers], "schedule/steps_shape")
    # Without examples there are no steps, and nothing is divided; the divisor is kept from 0 all the same.
    divisor = drawing.add("Max", [batches, "schedule/one"], "schedule/divisor")
    which = drawing.add("Mod", [numbers, divisor], "schedule/which")
    start = drawing.add("Mul", [which, "schedule/size"], "schedule/start")
    column = drawing.add("Unsqueeze", [start, "schedule/axis"], "schedule/start_column")
    positions = drawing.add("Add", [column, "schedule/columns"], "schedule/positions")
    real = drawing.add("Less", [positions, examples], "schedule/real")
    drawing.add("Where", [real, positions, "schedule/zero"], "schedule/order")
    drawing.add("Cast", [real], "schedule/mask", to=TensorProto.FLOAT)
