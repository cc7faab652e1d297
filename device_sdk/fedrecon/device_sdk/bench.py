"""One user's examples and rows, laid out for every graph of a plan.

Graphs are fed by what the manifest says of each input (`ValueSource`), so gradient steps, ridge and whatever else a
modeller compiles run by the same few lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.device_sdk.plans import Arrays, Plan, WiredGraph, hyperparameters_of
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import GraphRole, Schedule
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import schedules
from fedrecon.wire.schedules import Positions


@dataclass(frozen=True, slots=True)
class Bench:
    """One device's examples and rows, ready for every graph of a plan."""

    plan: Plan
    parameters: dict[str, NDArray[Any]]
    fields: dict[str, NDArray[Any]]
    touched: dict[str, NDArray[np.int64]]
    hyperparameters: dict[str, float]
    examples: int

    def run(
        self, role: GraphRole.ValueType, local: Arrays, positions: Positions, schedule: Schedule
    ) -> dict[tuple[int, str], NDArray[Any]]:
        """Returns a graph's outputs by what they are, run over some of the examples."""
        if role not in self.plan.graphs:
            raise UnusablePlanError(f"plan {self.plan.manifest.name!r} has no graph of role {GraphRole.Name(role)}")
        graph = self.plan.graphs[role]
        outputs = graph.runnable.run(self._feeds(graph, {**self.parameters, **local}, positions, schedule))
        return {(source, reference): outputs[name] for name, source, reference in graph.outputs}

    def _feeds(self, graph: WiredGraph, parameters: Arrays, positions: Positions, schedule: Schedule) -> Arrays:
        if graph.takes_order:
            order, mask = schedules.order(positions, schedule)
        else:  # the graph takes all examples at once
            order = np.zeros((0, 0), dtype=np.int64)
            mask = np.zeros(self.examples, dtype=np.float32)
            mask[positions] = 1.0
        feeds: dict[str, NDArray[Any]] = {}
        try:
            for name, source, reference in graph.inputs:
                match source:
                    case plan_pb2.VALUE_SOURCE_PARAMETER:
                        feeds[name] = parameters[reference]
                    case plan_pb2.VALUE_SOURCE_FIELD:
                        feeds[name] = self.fields[reference]
                    case plan_pb2.VALUE_SOURCE_ORDER:
                        feeds[name] = order
                    case plan_pb2.VALUE_SOURCE_MASK:
                        feeds[name] = mask
                    case plan_pb2.VALUE_SOURCE_ROWS:
                        feeds[name] = self.touched[reference]
                    case plan_pb2.VALUE_SOURCE_HYPERPARAMETER:
                        number = np.float64(self.hyperparameters[reference])
                        is_list = reference in self.plan.per_step
                        feeds[name] = np.full(len(order), number) if is_list else np.asarray(number)
                    case _:
                        raise UnusablePlanError(f"graph input {name} has source {source}, which is not known")
        except KeyError as error:
            raise UnusablePlanError(f"a graph input refers to {error}, which the plan does not have") from error
        return feeds


def prepare(plan: Plan, checkpoint: Arrays, columns: Arrays, work: LocalWork) -> Bench:
    """Returns the examples and the rows they touch; `touch`'s answer stays in this process."""
    manifest = plan.manifest
    fields, touched = dict(columns), dict[str, NDArray[np.int64]]()
    if plan.runs(plan_pb2.GRAPH_ROLE_TOUCH):
        graph = plan.graphs[plan_pb2.GRAPH_ROLE_TOUCH]
        outputs = graph.runnable.run({name: columns[reference] for name, _, reference in graph.inputs})
        for name, source, reference in graph.outputs:
            if source == plan_pb2.VALUE_SOURCE_ROWS:
                touched[reference] = outputs[name]
            elif source == plan_pb2.VALUE_SOURCE_FIELD:
                fields[reference] = outputs[name]
    parameters = {}
    for parameter in manifest.parameters:
        if parameter.placement == plan_pb2.PLACEMENT_GLOBAL:
            whole = checkpoint[parameter.name]
            parameters[parameter.name] = (
                whole[touched[parameter.vocabulary]] if parameter.vocabulary in touched else whole
            )
    examples = len(next(iter(columns.values()))) if columns else 0
    return Bench(plan, parameters, fields, touched, hyperparameters_of(manifest, work), examples)
