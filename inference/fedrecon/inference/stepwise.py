"""A plan's own graphs, run one after the other as a device does: what a recommender is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedrecon.inference.bundles import Arrays, Bundle, hyperparameter_of, schedule_of
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Graph, GraphRole
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import schedules
from fedrecon.wire.keystream import SEED_BYTES
from fedrecon.wire.manifests import graph_of, initial_locals
from fedrecon.wire.tensors import numpy_types


def open_session(content: bytes, *, basic: bool = False) -> onnxruntime.InferenceSession:
    """Opens a graph on one thread, at the default or the basic optimisation level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about speed
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class Stepwise:
    """A plan's own graphs, run one after the other as a device does: the reference.

    Attributes:
        bundle: the plan.
        checkpoint: global parameters.
        work: the task's choice of schedule and hyperparameters.
        sessions: the graphs, opened.
    """

    bundle: Bundle
    checkpoint: Arrays
    work: LocalWork
    sessions: Mapping[GraphRole.ValueType, onnxruntime.InferenceSession]

    @classmethod
    def open(cls, bundle: Bundle, checkpoint: Arrays, work: LocalWork) -> Stepwise:
        """Opens the graphs of a plan, at the basic optimisation level."""
        sessions = {role: open_session(content, basic=True) for role, content in bundle.graphs.items()}
        return cls(bundle, checkpoint, work, sessions)

    def scores(self, user: Arrays, rows: int) -> NDArray[np.float32]:
        """Returns the scores of all rows for a user with these examples, `[rows] float32`."""
        return self.predict(self.reconstruct(user), rows)

    def predict(self, local: Arrays, rows: int) -> NDArray[np.float32]:
        """Returns the scores of all rows under these local parameters, `[rows] float32`."""
        item = self.bundle.item_field().name
        fields = {item: np.arange(rows, dtype=np.int64)}
        answers = self._run(plan_pb2.GRAPH_ROLE_PREDICT, fields, {**self.checkpoint, **local}, {})
        return next(
            answers[value.name].astype(np.float32, copy=False)
            for value in graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_PREDICT).outputs
            if value.source == plan_pb2.VALUE_SOURCE_SCORES
        )

    def reconstruct(self, user: Arrays) -> dict[str, NDArray[Any]]:
        """Returns the local parameters of a user with these examples: reconstructed over all of them."""
        local = initial_locals(self.bundle.manifest, self.checkpoint, bytes(SEED_BYTES))
        graph = graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_RECONSTRUCT)
        examples = len(next(iter(user.values())))
        fields = {
            name: column.astype(numpy_types[self.bundle.field(name).dtype], copy=False) for name, column in user.items()
        }
        parameters = {**self.checkpoint, **local}
        if plan_pb2.GRAPH_ROLE_TOUCH in self.sessions:
            fields, parameters = self._touch(fields, parameters)
        answers = self._run(graph.role, fields, parameters, self._steps(graph, examples))
        for value in graph.outputs:
            if value.source == plan_pb2.VALUE_SOURCE_PARAMETER:
                local[value.reference] = answers[value.name]
        return local

    def _touch(
        self, fields: dict[str, NDArray[Any]], parameters: dict[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Returns fields renumbered into the rows that the examples name, and parameters cut down to those rows."""
        answers = self._run(plan_pb2.GRAPH_ROLE_TOUCH, fields, {}, {})
        renumbered, rows = dict(fields), {}
        for value in graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_TOUCH).outputs:
            if value.source == plan_pb2.VALUE_SOURCE_ROWS:
                rows[value.reference] = answers[value.name]
            else:
                renumbered[value.reference] = answers[value.name]
        cut = {
            name: values[rows[vocabulary]] if (vocabulary := self.bundle.parameter(name).vocabulary) else values
            for name, values in parameters.items()
        }
        return renumbered, cut

    def _steps(self, graph: Graph, examples: int) -> dict[int, NDArray[Any]]:
        """Returns order and mask of a reconstruction over all examples, by source."""
        if not any(value.source == plan_pb2.VALUE_SOURCE_ORDER for value in graph.inputs):
            return {plan_pb2.VALUE_SOURCE_MASK: np.ones(examples, dtype=np.float32)}
        order, mask = schedules.order(np.arange(examples, dtype=np.int64), schedule_of(self.bundle, self.work))
        return {plan_pb2.VALUE_SOURCE_ORDER: order, plan_pb2.VALUE_SOURCE_MASK: mask}

    def _run(
        self, role: GraphRole.ValueType, fields: Arrays, parameters: Arrays, steps: Mapping[int, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Runs a graph, and returns its outputs by name."""
        graph = graph_of(self.bundle.manifest, role)
        inputs: dict[str, NDArray[Any]] = {}
        for value in graph.inputs:
            match value.source:
                case plan_pb2.VALUE_SOURCE_PARAMETER:
                    inputs[value.name] = parameters[value.reference]
                case plan_pb2.VALUE_SOURCE_FIELD:
                    inputs[value.name] = fields[value.reference]
                case plan_pb2.VALUE_SOURCE_HYPERPARAMETER:
                    chosen = np.float32(hyperparameter_of(self.bundle, self.work, value.reference))
                    per_step = self.bundle.manifest.hyperparameters[value.reference].per_step
                    shape = steps[plan_pb2.VALUE_SOURCE_ORDER].shape[:1] if per_step else ()
                    inputs[value.name] = np.full(shape, chosen, dtype=np.float32)
                case _:
                    inputs[value.name] = steps[value.source]
        session = self.sessions[role]
        names = [value.name for value in graph.outputs]
        return dict(zip(names, session.run(names, inputs), strict=True))
