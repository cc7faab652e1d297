"""Closed sums to a new checkpoint: the arithmetic of a round's end, without I/O.

Rules: the integers of several groups are added exactly before they become real numbers, so it makes no difference how
reports were spread over groups; the mean update is sum(w d) / sum(w) in float64. Nothing is made of a sum that
contradicts the journal, of too few reports, or of numbers that are not finite. Parameters that no segment names, and
rows outside a segment's public row set, keep their bytes. An evaluation changes no parameter: it gives the sums of its
metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.aggregator.group_events import Config
from fedrecon.aggregator.optimizers import Optimizer, OptimizerStateMismatchError, State
from fedrecon.aggregator.privacy import Mechanism, add_noise, digest_of_noisy, next_clip_norm
from fedrecon.aggregator.row_sets import Rows, narrow, widen
from fedrecon.aggregator.secure_sum import DamagedSumError, check_sum
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import METRIC_SCALE, TAIL_METRICS, TAIL_WEIGHT, WITHIN_CLIP, Vector, add, zero

PARAMETER_TYPES = (np.dtype(np.float32), np.dtype(np.float16))


class NotFiniteError(Exception):
    """The round would put a value into the checkpoint, or the optimizer's state, that is not finite."""


class MismatchedCheckpointError(ValueError):
    """The checkpoint has not the parameters that the sums are of."""


@dataclass(frozen=True, slots=True)
class ClosedSum:
    """The sum of one closed group.

    Attributes:
        total: its integers, without masks.
        reports: reports that the journal says it holds.
    """

    total: Vector
    reports: int


@dataclass(frozen=True, slots=True)
class RoundSum:
    """What all closed groups of an attempt say together, in real numbers.

    Attributes:
        mean_updates: mean update of every segment's parameter, flat, `[elements] float64`.
        weight: sum of the weights.
        reports: reports in it.
        metric_sums: sums over all examples, by name.
        update_norm: Euclidean norm of the mean update.
        sum_digest: SHA-256 of the groups' vectors, added modulo the rings; of the noisy integers where there is noise.
        clip_norm: clip norm of the next round; 0 without privacy.
    """

    mean_updates: Mapping[str, NDArray[np.float64]]
    weight: int
    reports: int
    metric_sums: Mapping[str, float]
    update_norm: float
    sum_digest: bytes
    clip_norm: float = 0.0


def combine(sums: Sequence[ClosedSum], config: Config, mechanism: Mechanism | None = None) -> RoundSum:
    """Returns the mean update and the numbers of a round.

    Args:
        sums: at least one.
        config: what the groups were opened for.
        mechanism: how the sum is made private: then there are no metric sums; None: it is not.

    Raises:
        DamagedSumError: ones or weights of a sum are not those of its reports.
    """
    fixed_point = config.fixed_point
    total = zero(fixed_point)
    body = np.zeros(fixed_point.elements, dtype=np.int64)
    metrics = [0] * len(config.metrics)
    signed = np.dtype(f"<i{config.ring_bits // 8}")
    for one in sums:
        check_sum(one.total, one.reports, config.maximum_weight)
        add(total, one.total)
        body += one.total.body.view(signed)
        metrics = [have + more for have, more in zip(metrics, _metric_integers(one.total), strict=True)]
    reports = sum(one.reports for one in sums)
    weight = sum(int(one.total.tail[TAIL_WEIGHT]) for one in sums)
    if weight == 0:
        raise DamagedSumError("the sum of the weights is 0: there is nothing to divide by")
    named = {metric.name: value for metric, value in zip(config.metrics, metrics, strict=True)}
    if mechanism is None:
        divisor, clip_norm, sum_digest = weight, 0.0, digest_of(total.to_bytes())
    else:
        body = add_noise(body, fixed_point, mechanism)
        divisor, sum_digest = mechanism.denominator, digest_of_noisy(body)
        clip_norm = next_clip_norm(named.get(WITHIN_CLIP, 0), mechanism)
        named = {}
    mean_updates: dict[str, NDArray[np.float64]] = {}
    start = 0
    for segment, scale in zip(config.segments, fixed_point.scales(), strict=True):
        mean_updates[segment.parameter] = body[start : start + segment.elements] / scale / divisor
        start += segment.elements
    return RoundSum(
        mean_updates=mean_updates,
        weight=weight,
        reports=reports,
        metric_sums={name: value / METRIC_SCALE for name, value in named.items()},
        update_norm=math.sqrt(sum(float(np.sum(np.square(mean))) for mean in mean_updates.values())),
        sum_digest=sum_digest,
        clip_norm=clip_norm,
    )


def apply(
    round_sum: RoundSum,
    checkpoint: Mapping[str, NDArray[Any]],
    optimizer: Optimizer,
    state: State | None,
    rows: Rows | None = None,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """Returns the new checkpoint and the optimizer's new state.

    Args:
        round_sum: what the devices said.
        checkpoint: the parameters that the updates started from.
        optimizer: how the mean update is used.
        state: the optimizer's state after the last commit; None before the first.
        rows: rows that the sum holds, by parameter; None where it holds all.

    Raises:
        MismatchedCheckpointError: a parameter is not there, has another size or too few rows, or is neither float32 nor
            float16.
        OptimizerStateMismatchError: the state is another optimizer's or another model's.
        NotFiniteError: a value of the result is not finite.
    """
    rows = rows or {}
    updates: dict[str, NDArray[np.float64]] = {}
    if state is None:
        state = optimizer.init({name: checkpoint[name] for name in round_sum.mean_updates if name in checkpoint})
    _check_rows(rows, checkpoint, state)
    narrowed = narrow(checkpoint, rows)
    for name, mean in round_sum.mean_updates.items():
        parameter = narrowed.get(name)
        if parameter is None or parameter.dtype not in PARAMETER_TYPES or parameter.size != mean.size:
            found = "nothing" if parameter is None else f"{list(parameter.shape)} {parameter.dtype}"
            raise MismatchedCheckpointError(
                f"the checkpoint has {found} as {name!r}; the sum is of {mean.size} elements, float32 or float16"
            )
        updates[name] = mean.reshape(parameter.shape)
    after, kept = optimizer.update(updates, narrow(state, rows), narrowed)
    for name, array in [*((name, after[name]) for name in updates), *kept.items()]:
        if not np.isfinite(array).all():
            raise NotFiniteError(f"{name} would hold a value that is not finite: lower the server's learning rate")
    typed = {name: array.astype(after[name].dtype, copy=False) for name, array in checkpoint.items()}
    return widen(after, typed, rows), widen(kept, state, rows)


def _check_rows(rows: Rows, checkpoint: Mapping[str, NDArray[Any]], state: State) -> None:
    """Raises unless parameters, and what is remembered of them, have the rows that a sum holds."""
    for name, own in rows.items():
        parameter = checkpoint.get(name)
        if parameter is None or own[-1] >= len(parameter):
            found = "nothing" if parameter is None else f"{len(parameter)} rows"
            raise MismatchedCheckpointError(f"the checkpoint has {found} as {name!r}; the sum has row {own[-1]}")
        for moment, array in state.items():
            if moment.partition("/")[2] == name and array.shape != parameter.shape:
                raise OptimizerStateMismatchError(
                    f"the optimizer's state has {list(array.shape)} as {moment}, the parameter {list(parameter.shape)}"
                )


def _metric_integers(total: Vector) -> list[int]:
    integers: list[int] = total.tail[TAIL_METRICS:].view("<i8").tolist()
    return integers
