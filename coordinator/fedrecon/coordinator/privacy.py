"""Differential privacy of a task: what may be asked for, and what is truthfully said of it.

Rules: nothing is claimed that is not enforced. A guarantee is stated with all it rests on, and its absence with what is
missing; the numbers come from `accounting`, the noise from `fedrecon.aggregator.privacy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedrecon.coordinator.accounting import AccountantMissing, accountant_version, epsilon_after
from fedrecon.coordinator.tasks import Task
from fedrecon.v1 import task_pb2
from fedrecon.v1.task_pb2 import Privacy, TaskSpec
from fedrecon.wire.fixed_point import WITHIN_CLIP_NOISE_SHARE

_WARNING_SHARE = 0.9
_LEAST_NOISE, _MOST_NOISE = 0.01, 1000.0
_MOST_TREE_SUMS = 1 << 20

PARTICIPATION_DAYS = 366
"""How long it is remembered that a device was in a tree of noise."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed of a task's privacy.

    Attributes:
        statement: One line.
        epsilon: Spent so far; 0 without a guarantee.
        delta: Of the guarantee.
        assumptions: All it rests on, one sentence each.
    """

    statement: str
    epsilon: float
    delta: float
    assumptions: tuple[str, ...]


def privacy_problems(spec: TaskSpec) -> Iterator[str]:
    """Yields what is wrong with the privacy that a specification asks for, one sentence each."""
    if not spec.HasField("privacy"):
        return
    yield from _numbers_out_of_range(spec.privacy)
    privacy, goal = spec.privacy, spec.rounds.report_goal
    if spec.secure_sum.maximum_weight != 1:
        yield "secure_sum.maximum_weight: under privacy every report weighs 1"
    if spec.evaluation.every_rounds:
        yield "evaluation: its metric sums would be released without noise; leave it out, or the privacy"
    if privacy.tree_sums:
        yield from _problems_of_trees(spec)
    if privacy.clip_quantile and privacy.noise_multiplier >= 2 * WITHIN_CLIP_NOISE_SHARE * goal:
        yield (
            f"privacy.clip_quantile: with {goal} reports and a noise multiplier of {privacy.noise_multiplier:g} "
            "nothing is left for the update; take a fixed clip norm, or more reports"
        )


def _problems_of_trees(spec: TaskSpec) -> Iterator[str]:
    privacy = spec.privacy
    if privacy.clip_quantile:
        yield "privacy.clip_quantile: the noise of a tree is of one clip norm; leave it out, or tree_sums"
    if privacy.sampling_rate:
        yield "privacy.sampling_rate: nothing is claimed for sampling where noise is in a tree; leave one of them out"
    if privacy.tree_sums > _MOST_TREE_SUMS:
        yield f"privacy.tree_sums {privacy.tree_sums}: at most {_MOST_TREE_SUMS} are accounted for"
    needed = privacy.tree_sums * spec.rounds.report_goal
    if 0 < privacy.population_size < needed:
        yield (
            f"privacy.tree_sums {privacy.tree_sums}: a device is in one sum of a tree, and {privacy.population_size} "
            f"devices are fewer than the {needed} reports of a tree"
        )


def _numbers_out_of_range(privacy: Privacy) -> Iterator[str]:
    if not _LEAST_NOISE <= privacy.noise_multiplier <= _MOST_NOISE:
        yield f"privacy.noise_multiplier {privacy.noise_multiplier}: {_LEAST_NOISE} to {_MOST_NOISE:g} is accounted for"
    for field in ("clip_norm", "epsilon_budget"):
        if not 0 < getattr(privacy, field) < math.inf:
            yield f"privacy.{field} {getattr(privacy, field)}: a number above 0 is needed"
    if not 0 < privacy.delta < 1:
        yield f"privacy.delta {privacy.delta}: a number in (0, 1) is needed, well below one in the number of devices"
    if not 0 <= privacy.clip_quantile < 1:
        yield f"privacy.clip_quantile {privacy.clip_quantile}: a number in (0, 1) is needed, or 0 for a fixed clip norm"
    if not 0 <= privacy.sampling_rate <= 1:
        yield f"privacy.sampling_rate {privacy.sampling_rate}: a share in (0, 1] is needed, or 0 to claim none"


def is_nearly_spent(task: Task) -> bool:
    """Returns whether a task has used nine tenths of the sums that its privacy budget allows."""
    return task.created.private_sums > 0 and task.private_sums >= _WARNING_SHARE * task.created.private_sums


def claim_of(task: Task) -> Claim:
    """Returns what is claimed of a task's privacy, truthfully. It may take a second.

    Args:
        task: As it stands.
    """
    spec = TaskSpec.FromString(task.spec)
    if not spec.HasField("privacy"):
        return _no_claim(spec)
    privacy = spec.privacy
    try:
        epsilon, accountant = epsilon_after(privacy, task.private_sums), accountant_version()
    except AccountantMissing as error:
        return Claim(f"not accounted: {error}", 0.0, privacy.delta, _assumptions(spec, task, "none"))
    statement = (
        f"({epsilon:.3g}, {privacy.delta:g})-differentially private for one device, after {task.private_sums} of "
        f"{task.created.private_sums} noisy sums that the budget of {privacy.epsilon_budget:g} allows"
    )
    if is_nearly_spent(task):
        statement += "; the budget is spent" if task.has_spent_its_budget else "; the budget is nearly spent"
    return Claim(statement, epsilon, privacy.delta, _assumptions(spec, task, accountant))


def _no_claim(spec: TaskSpec) -> Claim:
    missing = ["no noise is added to sums", "updates are not clipped to a norm"]
    assumptions = ["Local parameters are in no message; what is reported is the update of the global ones."]
    if spec.secure_sum.protocol == task_pb2.SUM_PROTOCOL_TRUSTED:
        missing.append("the aggregator sees each update (TRUSTED)")
        assumptions.append(
            "Who runs the aggregator is trusted: an update of a matrix factorisation reveals the local parameters up "
            "to scale."
        )
    else:
        assumptions.append(
            "The aggregator sees the sum of a group under SecAgg+; a row of it that one device alone touched is that "
            "device's."
        )
    return Claim(f"no DP guarantee: {', '.join(missing)}", 0.0, 0.0, tuple(assumptions))


def _assumptions(spec: TaskSpec, task: Task, accountant: str) -> tuple[str, ...]:
    privacy = spec.privacy
    clip = f"{task.clip_norm or privacy.clip_norm:.4g}"
    if privacy.clip_quantile:
        clip += f" now, following the {privacy.clip_quantile:g} quantile (its count of norms has a share of the noise)"
    if privacy.sampling_rate and privacy.sampling_rate < 1:
        sampling = (
            f"Poisson with rate {privacy.sampling_rate:g} in each attempt, by a keyed hash of the device key: enforced "
            "by the coordinator, as long as a person has one device key"
        )
    elif privacy.tree_sums:
        sampling = "any device that was not in a sum of this tree may be drawn; no amplification is claimed"
    else:
        sampling = "any device may be drawn in any round; no amplification is claimed"
    population = f"{privacy.population_size}, as the operator says" if privacy.population_size else "not stated"
    separation = spec.eligibility.minimum_separation_milliseconds / 3_600_000
    seen = "the sums alone" if spec.secure_sum.protocol != task_pb2.SUM_PROTOCOL_TRUSTED else "each update (TRUSTED)"
    unit = "one device key, over all rounds"
    neighbours = "a device's reports are as they are, or zeros; that it took part is not hidden"
    mechanism = (
        f"Gaussian, noise multiplier {privacy.noise_multiplier:g}, clip norm {clip}; every report weighs 1; the "
        f"denominator is the {spec.rounds.report_goal} reports wanted"
    )
    if privacy.tree_sums:
        mechanism += f"; noise in trees over {privacy.tree_sums} sums each, of that multiplier in every node"
    where = f"a tree, remembered for {PARTICIPATION_DAYS} days" if privacy.tree_sums else "a round"
    return (
        f"Unit: {unit}. Neighbours: {neighbours}.",
        f"Mechanism: {mechanism}.",
        f"Counted: {task.private_sums} noisy sums, also those of rounds that were not committed.",
        f"Sampling: {sampling}.",
        f"Population: {population}.",
        f"Participations of a device: at most one in {where}; {separation:g} hours between two, if any are asked for.",
        f"Noise is added by the aggregator, which sees {seen} before: whoever runs it is trusted with that.",
        "Devices clip their updates themselves; one that lies can add more than its share, and learns nothing by it.",
        "Released: checkpoints, and the clip norm. Metric sums are not; counts of reports are, and are not hidden.",
        f"Accountant: {accountant}.",
    )
