"""Runs a plan: from a checkpoint and examples to local parameters, an update and metric sums.

Pure: everything that a run depends on is an argument, so the same plan, checkpoint, examples and seeds give the same
bits on a device, in a fleet and in simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.bench import Bench, prepare
from fedrecon.device_sdk.errors import DivergedError, TooFewExamplesError, UnusablePlanError
from fedrecon.device_sdk.local_parameters import LocalParameters, StaysHere
from fedrecon.device_sdk.plans import Arrays, Plan, hyperparameters_of, rows_in_force
from fedrecon.v1 import coordinator_pb2, plan_pb2
from fedrecon.v1.plan_pb2 import Layout, Manifest, Schedule
from fedrecon.v1.task_pb2 import LocalWork, SecureSum
from fedrecon.wire import manifests, schedules
from fedrecon.wire.fixed_point import FixedPoint, Vector, quantise
from fedrecon.wire.row_sets import RowSet
from fedrecon.wire.schedules import Positions


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
        local_parameters: never serialised.
        rows: rows in force, by vocabulary.
        losses: mean loss of every step of the update, if the graph tells it.
    """

    updates: dict[str, SparseUpdate]
    metric_sums: tuple[float, ...]
    examples: int
    local_parameters: LocalParameters
    rows: dict[str, int]
    losses: tuple[float, ...]


def _schedule(own: Schedule, work: LocalWork, name: Literal["reconstruct_schedule", "update_schedule"]) -> Schedule:
    """Returns the task's schedule, or the plan's own where it sets none."""
    if not work.HasField(name):
        return own
    return work.reconstruct_schedule if name == "reconstruct_schedule" else work.update_schedule


def _reconstruct(
    bench: Bench, checkpoint: Arrays, support: Positions, schedule: Schedule, seed: bytes
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
    bench = prepare(plan, checkpoint, columns, work)
    schedule = _schedule(plan.manifest.reconstruct_schedule, work, "reconstruct_schedule")
    return _reconstruct(bench, checkpoint, np.arange(bench.examples, dtype=np.int64), schedule, seed)


def score(plan: Plan, checkpoint: Arrays, local: Arrays, fields: Arrays) -> NDArray[np.float32]:
    """Returns the model's scores of candidates, `[candidates, ...] float32`, all rows of the checkpoint given.

    Args:
        plan: the plan.
        checkpoint: global parameters by name.
        local: local parameters by name.
        fields: input fields of the candidates, vocabulary fields as row numbers.
    """
    examples = len(next(iter(fields.values())))
    bench = Bench(plan, dict(checkpoint), dict(fields), {}, hyperparameters_of(plan.manifest, LocalWork()), examples)
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
    bench = prepare(plan, checkpoint, columns, work)
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


def agreement(
    result: TrainingResult,
    manifest: Manifest,
    layout: Layout,
    secure_sum: SecureSum,
    more_bounds: tuple[float, ...] = (),
    row_sets: Mapping[bytes, RowSet] | None = None,
) -> FixedPoint:
    """Returns how the reports of a round become integers.

    Args:
        result: what the session computed.
        manifest: the plan's manifest.
        layout: the assignment's layout; without segments for an evaluation.
        secure_sum: ring, weight clip and largest sum of the round.
        more_bounds: of metric sums that the round has beside the plan's.
        row_sets: public row sets that the layout names, by digest.

    Raises:
        UnusablePlanError: layout and plan do not fit each other.
    """
    try:
        elements = manifests.segment_elements(layout, manifest, result.rows, row_sets or {})
        bounds = [*(metric.bound for metric in manifest.metrics), *more_bounds]
        return manifests.fixed_point_of(layout, elements, bounds, secure_sum)
    except (KeyError, ValueError) as error:
        raise UnusablePlanError(f"the report cannot be laid out: {error}", "tell the operator of the task") from error


def report_vector(result: TrainingResult, layout: Layout, fixed_point: FixedPoint, rounding_seed: bytes) -> Vector:
    """Returns the integers that a device reports: all of a session that may leave it.

    Args:
        result: what the session computed; of public row sets only their rows (`restrict`).
        layout: the assignment's layout; without segments for an evaluation.
        fixed_point: the round's `agreement`.
        rounding_seed: 32 bytes of the device's own source.
    """
    dense = []
    for segment, agreed in zip(layout.segments, fixed_point.segments, strict=True):
        values = np.zeros(agreed.elements, dtype=np.float32)
        update = result.updates.get(segment.parameter)
        if update is not None and update.rows is not None:
            values.reshape(-1, segment.width)[update.rows] = update.values.reshape(len(update.rows), segment.width)
        elif update is not None:
            values[:] = update.values.ravel()
        dense.append(values)
    return quantise(dense, result.examples, result.metric_sums, fixed_point, rounding_seed)
