"""Runs a plan: from a checkpoint and examples to local parameters, an update and metric sums.

Pure: everything that a run depends on is an argument, so the same plan, checkpoint, examples and seeds give the same
bits on a device, in a fleet and in simulation. Graphs are fed by what the manifest says of each input
(`ValueSource`), so gradient steps, ridge and whatever else a modeller compiles run by the same few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import DivergedError, TooFewExamplesError, UnusablePlanError
from fedrecon.device_sdk.graphs import Memo, RunnableGraph, runnable_graph
from fedrecon.device_sdk.local_parameters import LocalParameters, StaysHere
from fedrecon.v1 import coordinator_pb2, plan_pb2
from fedrecon.v1.plan_pb2 import Graph, GraphRole, GraphValue, Layout, Manifest, Schedule
from fedrecon.v1.task_pb2 import LocalWork, SecureSum
from fedrecon.wire import manifests, schedules
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, quantise
from fedrecon.wire.schedules import Positions
from fedrecon.wire.tensors import MalformedTensorsError, numpy_types, read_safetensors

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that can be run.

    Attributes:
        digest: digest of its manifest.
        manifest: what it says of itself.
        graphs: its graphs by role.
    """

    digest: bytes
    manifest: Manifest
    graphs: Mapping[int, tuple[Graph, RunnableGraph]] = field(repr=False)

    def runs(self, role: GraphRole.ValueType) -> bool:
        """Says whether the plan has a graph of this role."""
        return role in self.graphs


@dataclass(frozen=True, slots=True)
class Seeds:
    """Randomness of one session, each 32 bytes of the device's own source, never from the network.

    Attributes:
        initial: initial values of the local parameters.
        split: splits that are drawn.
        rounding: rounding of the report.
    """

    initial: bytes
    split: bytes
    rounding: bytes


@dataclass(frozen=True, slots=True)
class SparseUpdate:
    """The update of one global parameter.

    Attributes:
        values: `[rows, ...]` or the parameter's shape.
        rows: which rows of the parameter, `[rows] int64`; None where `values` is all of it.
    """

    values: NDArray[Any]
    rows: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, repr=False)
class TrainingResult(StaysHere):
    """What a session computed. Only `report_vector` of it may leave the device.

    Attributes:
        updates: by global parameter; empty after an evaluation.
        metric_sums: over the query set, in manifest order, before the update.
        examples: query examples behind both.
        support_examples: examples that reconstruction saw.
        local_parameters: never serialised.
        rows: rows in force, by vocabulary.
        losses: mean loss of every step of the update, if the graph tells it.
    """

    updates: dict[str, SparseUpdate]
    metric_sums: tuple[float, ...]
    examples: int
    support_examples: int
    local_parameters: LocalParameters
    rows: dict[str, int]
    losses: tuple[float, ...]


_plans: Memo[Plan] = Memo(16)


def load_plan(manifest_content: bytes, blob: Callable[[bytes], bytes]) -> Plan:
    """Returns a plan ready to run, the same object for the same manifest.

    Args:
        manifest_content: bytes of `manifest.json`.
        blob: gives the content of a digest, for the graphs.

    Raises:
        UnusablePlanError: the manifest or a graph cannot be read here.
    """
    digest = digest_of(manifest_content)
    return _plans.get(digest, lambda: _load(digest, manifest_content, blob))


def _load(digest: bytes, manifest_content: bytes, blob: Callable[[bytes], bytes]) -> Plan:
    try:
        manifest = manifests.read_manifest(manifest_content)
    except manifests.MalformedPlanError as error:
        raise UnusablePlanError(str(error)) from error
    graphs = {}
    for graph in manifest.graphs:
        name = plan_pb2.GraphRole.Name(graph.role).removeprefix("GRAPH_ROLE_").lower()
        runnable = runnable_graph(blob(graph.blob.digest), f"{manifest.name}/{name}", graph.blob.digest)
        graphs[int(graph.role)] = (graph, runnable)
    return Plan(digest, manifest, graphs)


def read_checkpoint(content: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Returns the global parameters of a checkpoint in their plan's types.

    Raises:
        UnusablePlanError: a parameter is missing, has another shape, or holds a value that is not finite.
    """
    try:
        stored = read_safetensors(content)
    except MalformedTensorsError as error:
        raise UnusablePlanError(f"the checkpoint cannot be read: {error}") from error
    checkpoint: dict[str, NDArray[Any]] = {}
    for parameter in manifest.parameters:
        if parameter.placement != plan_pb2.PLACEMENT_GLOBAL:
            continue
        tensor, shape = stored.get(parameter.name), tuple(parameter.shape)
        fixed = 1 if parameter.vocabulary else 0
        if tensor is None or tensor.ndim != len(shape) or tensor.shape[fixed:] != shape[fixed:]:
            raise UnusablePlanError(
                f"checkpoint: parameter {parameter.name} should have shape {list(shape)}, "
                f"found {'nothing' if tensor is None else list(tensor.shape)}"
            )
        if not np.isfinite(tensor).all():
            raise UnusablePlanError(f"checkpoint: parameter {parameter.name} holds values that are not finite")
        checkpoint[parameter.name] = tensor.astype(numpy_types[parameter.dtype], copy=False)
    return checkpoint


def rows_in_force(manifest: Manifest, checkpoint: Arrays) -> dict[str, int]:
    """Returns how many rows every vocabulary has in a checkpoint.

    Raises:
        UnusablePlanError: two parameters of one vocabulary have different numbers of rows.
    """
    rows: dict[str, int] = {}
    for parameter in manifest.parameters:
        if parameter.vocabulary and parameter.placement == plan_pb2.PLACEMENT_GLOBAL:
            count = len(checkpoint[parameter.name])
            if rows.setdefault(parameter.vocabulary, count) != count:
                raise UnusablePlanError(
                    f"checkpoint: parameters of vocabulary {parameter.vocabulary!r} have "
                    f"{rows[parameter.vocabulary]} and {count} rows"
                )
    return rows


def hyperparameters_of(manifest: Manifest, work: LocalWork) -> dict[str, float]:
    """Returns every hyperparameter: the task's value where it sets one, else the plan's.

    Raises:
        UnusablePlanError: the task names one that the plan lacks, or a value beyond its limits.
    """
    unknown = set(work.hyperparameters) - set(manifest.hyperparameters)
    if unknown:
        raise UnusablePlanError(
            f"the task sets {sorted(unknown)}; plan {manifest.name!r} has {sorted(manifest.hyperparameters)}",
            "tell the operator of the task",
        )
    values = {}
    for name, limits in manifest.hyperparameters.items():
        value = work.hyperparameters.get(name, limits.default_value)
        if not limits.minimum <= value <= limits.maximum:
            raise UnusablePlanError(
                f"hyperparameter {name} = {value} is beyond its limits {limits.minimum} to {limits.maximum}",
                "tell the operator of the task",
            )
        values[name] = value
    return values


@dataclass(frozen=True, slots=True)
class _Bench:
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
        graph, runnable = self.plan.graphs[role]
        feeds = self._feeds(graph, {**self.parameters, **local}, positions, schedule)
        outputs = runnable.run(feeds)
        return {(value.source, value.reference): outputs[value.name] for value in graph.outputs}

    def _feeds(self, graph: Graph, parameters: Arrays, positions: Positions, schedule: Schedule) -> Arrays:
        if any(value.source == plan_pb2.VALUE_SOURCE_ORDER for value in graph.inputs):
            order, mask = schedules.order(positions, schedule)
        else:  # the graph takes all examples at once
            order = np.zeros((0, 0), dtype=np.int64)
            mask = np.zeros(self.examples, dtype=np.float32)
            mask[positions] = 1.0

        def feed(value: GraphValue) -> NDArray[Any]:
            match value.source:
                case plan_pb2.VALUE_SOURCE_PARAMETER:
                    return parameters[value.reference]
                case plan_pb2.VALUE_SOURCE_FIELD:
                    return self.fields[value.reference]
                case plan_pb2.VALUE_SOURCE_ORDER:
                    return order
                case plan_pb2.VALUE_SOURCE_MASK:
                    return mask
                case plan_pb2.VALUE_SOURCE_ROWS:
                    return self.touched[value.reference]
                case plan_pb2.VALUE_SOURCE_HYPERPARAMETER:
                    number = np.float64(self.hyperparameters[value.reference])
                    per_step = self.plan.manifest.hyperparameters[value.reference].per_step
                    return np.full(len(order), number) if per_step else np.asarray(number)
                case _:
                    raise UnusablePlanError(f"graph input {value.name} has source {value.source}, which is not known")

        try:
            return {value.name: feed(value) for value in graph.inputs}
        except KeyError as error:
            raise UnusablePlanError(f"a graph input refers to {error}, which the plan does not have") from error


def _prepare(plan: Plan, checkpoint: Arrays, columns: Arrays, work: LocalWork) -> _Bench:
    """Returns the examples and the rows they touch; `touch`'s answer stays in this process."""
    manifest = plan.manifest
    fields, touched = dict(columns), dict[str, NDArray[np.int64]]()
    if plan.runs(plan_pb2.GRAPH_ROLE_TOUCH):
        graph, runnable = plan.graphs[plan_pb2.GRAPH_ROLE_TOUCH]
        outputs = runnable.run({value.name: columns[value.reference] for value in graph.inputs})
        for value in graph.outputs:
            if value.source == plan_pb2.VALUE_SOURCE_ROWS:
                touched[value.reference] = outputs[value.name]
            elif value.source == plan_pb2.VALUE_SOURCE_FIELD:
                fields[value.reference] = outputs[value.name]
    parameters = {}
    for parameter in manifest.parameters:
        if parameter.placement == plan_pb2.PLACEMENT_GLOBAL:
            whole = checkpoint[parameter.name]
            parameters[parameter.name] = (
                whole[touched[parameter.vocabulary]] if parameter.vocabulary in touched else whole
            )
    examples = len(next(iter(columns.values()))) if columns else 0
    return _Bench(plan, parameters, fields, touched, hyperparameters_of(manifest, work), examples)


def _schedule(own: Schedule, work: LocalWork, name: Literal["reconstruct_schedule", "update_schedule"]) -> Schedule:
    """Returns the task's schedule, or the plan's own where it sets none."""
    if not work.HasField(name):
        return own
    return work.reconstruct_schedule if name == "reconstruct_schedule" else work.update_schedule


def _reconstruct(
    bench: _Bench, checkpoint: Arrays, support: Positions, schedule: Schedule, seed: bytes
) -> LocalParameters:
    manifest = bench.plan.manifest
    try:
        local = manifests.initial_locals(manifest, checkpoint, seed)
    except (manifests.MalformedPlanError, KeyError) as error:
        raise UnusablePlanError(f"plan {manifest.name!r}: no initial local parameters: {error}") from error
    if support.size:  # without support the local parameters keep their initial value
        outputs = bench.run(plan_pb2.GRAPH_ROLE_RECONSTRUCT, local, support, schedule)
        for name in local:
            local[name] = outputs[plan_pb2.VALUE_SOURCE_PARAMETER, name]
    if not all(np.isfinite(value).all() for value in local.values()):
        raise DivergedError("reconstruction gave local parameters that are not finite")
    return LocalParameters(local)


def reconstruct(plan: Plan, checkpoint: Arrays, columns: Arrays, work: LocalWork, seed: bytes) -> LocalParameters:
    """Returns the local parameters of a user, made from all of the user's examples.

    Args:
        plan: the plan.
        checkpoint: global parameters by name.
        columns: by field, `[examples, ...]`, vocabulary fields as row numbers.
        work: hyperparameters and schedules of the task.
        seed: 32 bytes for initial values.

    Raises:
        UnusablePlanError: the plan does not run on these values.
        DivergedError: the result is not finite.
    """
    bench = _prepare(plan, checkpoint, columns, work)
    schedule = _schedule(plan.manifest.reconstruct_schedule, work, "reconstruct_schedule")
    return _reconstruct(bench, checkpoint, np.arange(bench.examples, dtype=np.int64), schedule, seed)


def score(plan: Plan, checkpoint: Arrays, local: Arrays, fields: Arrays) -> NDArray[np.float32]:
    """Returns the model's scores of candidates, `[candidates] float32`, all rows of the checkpoint given.

    Args:
        plan: the plan.
        checkpoint: global parameters by name.
        local: local parameters by name.
        fields: input fields of the candidates, vocabulary fields as row numbers.
    """
    examples = len(next(iter(fields.values())))
    bench = _Bench(plan, dict(checkpoint), dict(fields), {}, hyperparameters_of(plan.manifest, LocalWork()), examples)
    outputs = bench.run(plan_pb2.GRAPH_ROLE_PREDICT, local, np.arange(examples, dtype=np.int64), Schedule())
    return outputs[plan_pb2.VALUE_SOURCE_SCORES, ""]


def train(
    plan: Plan,
    checkpoint: Arrays,
    columns: Arrays,
    work: LocalWork,
    seeds: Seeds,
    kind: coordinator_pb2.SessionKind.ValueType = coordinator_pb2.SESSION_KIND_TRAIN,
) -> TrainingResult:
    """Splits the examples, reconstructs on the support set, evaluates and updates on the query set.

    Args:
        plan: the plan.
        checkpoint: global parameters by name, as `read_checkpoint` gives them.
        columns: by field, `[examples, ...]`, oldest first; vocabulary fields as row numbers.
        work: split, schedules and hyperparameters of the task.
        seeds: randomness of this session.
        kind: to train, or only to evaluate.

    Raises:
        UnusablePlanError: the plan does not run on these values.
        TooFewExamplesError: no example is left for the query set.
        DivergedError: a result is not finite.
    """
    manifest, evaluating = plan.manifest, kind == coordinator_pb2.SESSION_KIND_EVALUATE
    bench = _prepare(plan, checkpoint, columns, work)
    reconstruct_schedule = _schedule(manifest.reconstruct_schedule, work, "reconstruct_schedule")
    update_schedule = _schedule(manifest.update_schedule, work, "update_schedule")
    try:
        support, query = schedules.split(
            bench.examples,
            work.split,
            # Ridge has no batches of its own: those of the update count.
            batch_size=reconstruct_schedule.batch_size or update_schedule.batch_size,
            support_fraction=work.support_fraction,
            seed=seeds.split,
        )
    except ValueError as error:
        raise UnusablePlanError(f"the task's split cannot be made: {error}", "tell the operator of the task") from error
    if not query.size:
        raise TooFewExamplesError(f"{bench.examples} examples leave none for the query set")
    local = _reconstruct(bench, checkpoint, support, reconstruct_schedule, seeds.initial)
    sums = bench.run(plan_pb2.GRAPH_ROLE_EVALUATE, local, query, reconstruct_schedule) if manifest.metrics else {}
    metric_sums = tuple(float(sums[plan_pb2.VALUE_SOURCE_METRIC, metric.name]) for metric in manifest.metrics)
    updates, losses = {}, ()
    if not evaluating:
        outputs = bench.run(plan_pb2.GRAPH_ROLE_UPDATE, local, query, update_schedule)
        updates = _updates(manifest, outputs, bench.touched)
        losses = tuple(outputs.get((plan_pb2.VALUE_SOURCE_LOSSES, ""), np.zeros(0)).tolist())
    if not np.isfinite(metric_sums).all() or not all(np.isfinite(update.values).all() for update in updates.values()):
        raise DivergedError("training gave an update or a metric sum that is not finite")
    return TrainingResult(
        updates=updates,
        metric_sums=metric_sums,
        examples=int(query.size),
        support_examples=int(support.size),
        local_parameters=local,
        rows=rows_in_force(manifest, checkpoint),
        losses=losses,
    )


def _updates(
    manifest: Manifest, outputs: Mapping[tuple[int, str], NDArray[Any]], touched: Mapping[str, NDArray[np.int64]]
) -> dict[str, SparseUpdate]:
    """Returns what the update graph gave, for every parameter that it changes."""
    parameters = {parameter.name: parameter for parameter in manifest.parameters}
    updates = {}
    for (source, name), values in outputs.items():
        if source == plan_pb2.VALUE_SOURCE_UPDATE:
            if name not in parameters or parameters[name].placement != plan_pb2.PLACEMENT_GLOBAL:
                raise UnusablePlanError(f"the plan would report {name!r}, which is no global parameter")
            updates[name] = SparseUpdate(values, touched.get(parameters[name].vocabulary))
    return updates


def report_vector(
    result: TrainingResult, manifest: Manifest, layout: Layout, secure_sum: SecureSum, rounding_seed: bytes
) -> Vector:
    """Returns the integers that a device reports: all of a session that may leave it.

    Args:
        result: what the session computed.
        manifest: the plan's manifest.
        layout: the assignment's layout; without segments for an evaluation.
        secure_sum: ring, weight clip and largest sum of the round.
        rounding_seed: 32 bytes of the device's own source.

    Raises:
        UnusablePlanError: layout and plan do not fit each other.
    """
    try:
        elements = manifests.segment_elements(layout, manifest, result.rows)
        bounds = [metric.bound for metric in manifest.metrics]
        fixed_point = manifests.fixed_point_of(layout, elements, bounds, secure_sum)
    except (KeyError, ValueError) as error:
        raise UnusablePlanError(f"the report cannot be laid out: {error}", "tell the operator of the task") from error
    dense = []
    for segment, count in zip(layout.segments, elements, strict=True):
        values = np.zeros(count, dtype=np.float32)
        update = result.updates.get(segment.parameter)
        if update is not None and update.rows is not None:
            values.reshape(-1, segment.width)[update.rows] = update.values.reshape(len(update.rows), segment.width)
        elif update is not None:
            values[:] = update.values.ravel()
        dense.append(values)
    return quantise(dense, result.examples, result.metric_sums, fixed_point, rounding_seed)
