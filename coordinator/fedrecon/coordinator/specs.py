"""What an operator asks for, checked before anything runs.

Two steps: `check_spec` looks at the specification alone, `prepare` at the plan and vocabularies that it names. Both
collect every problem before they refuse, so that an operator mends a file once.

What cannot be given is refused, never ignored: a task that asks for privacy and silently has none would be worse than
no task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedrecon.coordinator.over_selection import cohort_size_for
from fedrecon.coordinator.privacy import privacy_problems
from fedrecon.coordinator.round_events import Kind, Terms, cohort_size_of
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Layout, Manifest, Schedule
from fedrecon.v1.task_pb2 import LocalWork, TaskSpec
from fedrecon.wire.fixed_point import RING_BITS
from fedrecon.wire.manifests import (
    BadSignatureError,
    MalformedPlanError,
    fixed_point_of,
    least_contributing_share,
    segment_elements,
    verify_plan,
)
from fedrecon.wire.row_sets import RowSet
from fedrecon.wire.sum_context import MOST_DROP_OUT, SMALLEST_GROUP

RESERVED_NAMES = frozenset({"registry"})
"""Names of the journal that are no tasks."""

LARGEST_COHORT = 100_000
LONGEST_MILLISECONDS = 7 * 24 * 60 * 60 * 1000
_LARGEST_OVER_SELECTION = 100.0
_SMALL_RING_BITS = 16
_SMALL_RING_REPORTS = 200
_LONGEST_POPULATION = 200
_LONGEST_STATEMENT = 10_000
GATE_MEASURES = ("rmse", "recall", "ndcg", "coverage")
"""What a gate may ask for."""
_DIGEST_BYTES = 32
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


class InvalidSpec(ValueError):  # noqa: N818 - named for what it says
    """A specification that cannot run.

    Attributes:
        reason: Stable word for programs.
        problems: One sentence for each thing that is wrong.
    """

    def __init__(self, reason: str, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.reason = reason
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Prepared:
    """What every round of a task takes from its plan.

    Attributes:
        manifest: The plan.
        layout: The plan's layout with the task's contribution bounds and row sets.
        segment_elements: Elements of every segment.
        rows: Rows of every vocabulary in force.
        contributing_share: Share of the devices in a sum that are expected to update each row in it, at least.
    """

    manifest: Manifest
    layout: Layout
    segment_elements: tuple[int, ...]
    rows: Mapping[str, int]
    contributing_share: float


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Returns `major.minor.patch` as numbers; None if it is no version.

    Example:
        >>> parse_version("1.12.0"), parse_version("1.x")
        ((1, 12, 0), None)
    """
    match = _VERSION.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def terms_of(spec: TaskSpec, report_share: float = 0.0, kind: Kind = Kind.TRAIN) -> Terms:
    """Returns the numbers that attempts of a checked specification go by.

    Args:
        spec: What was asked for.
        report_share: Share of assigned devices that are expected to report; 0: nothing is known.
        kind: What the round is for. An evaluation has a report goal of its own; the other numbers follow in proportion.
    """
    rounds = spec.rounds
    goal, minimum_reports = rounds.report_goal, rounds.minimum_reports
    minimum_cohort = rounds.minimum_cohort or minimum_reports
    if kind is Kind.EVALUATE and spec.evaluation.report_goal:
        share = spec.evaluation.report_goal / goal
        goal = spec.evaluation.report_goal
        minimum_reports = max(1, math.ceil(share * minimum_reports))
        minimum_cohort = max(1, math.ceil(share * minimum_cohort))
    cohort_size = cohort_size_for(goal, rounds.over_selection, rounds.maximum_over_selection, report_share)
    return Terms(
        report_goal=goal,
        cohort_size=cohort_size,
        minimum_cohort=min(minimum_cohort, cohort_size) if kind is Kind.EVALUATE else minimum_cohort,
        minimum_reports=min(minimum_reports, goal) if kind is Kind.EVALUATE else minimum_reports,
        selection_milliseconds=rounds.selection_milliseconds,
        reporting_milliseconds=rounds.reporting_milliseconds,
        aggregating_milliseconds=rounds.aggregating_milliseconds,
        retry_milliseconds=rounds.retry_milliseconds,
    )


def kind_of(spec: TaskSpec, round_number: int) -> Kind:
    """Returns what a round is for: an evaluation follows every so many training rounds, if the task asks for it.

    Example:
        >>> every_second = TaskSpec(evaluation={"every_rounds": 2})
        >>> [kind_of(every_second, number).value for number in range(1, 7)]
        ['TRAIN', 'TRAIN', 'EVALUATE', 'TRAIN', 'TRAIN', 'EVALUATE']
    """
    every = spec.evaluation.every_rounds
    return Kind.EVALUATE if every and round_number % (every + 1) == 0 else Kind.TRAIN


def tells_spread(spec: TaskSpec, kind: Kind) -> bool:
    """Returns whether reports of a round tell second moments: evaluations of a task with a gate, which needs them."""
    return kind is Kind.EVALUATE and spec.serving.HasField("gate")


def work_of(spec: TaskSpec, round_number: int) -> LocalWork:
    """Returns what devices of a round are told to do: a number of epochs, whether or not the task lets them grow.

    An evaluation never queries what it reconstructed from: where training has no split, half of them are queried.

    Args:
        spec: A checked specification.
        round_number: From 1; every attempt of a round has the same.

    Example:
        >>> schedule = Schedule(batch_size=5, epochs=3, epochs_grow=True)
        >>> growing = TaskSpec(work=LocalWork(update_schedule=schedule))
        >>> [work_of(growing, number).update_schedule.epochs for number in (1, 2, 3, 4)]
        [1, 2, 3, 3]
    """
    work = LocalWork()
    work.CopyFrom(spec.work)
    # Reading a schedule that is absent must not set it: then the plan's own counts.
    present = [name for name in ("reconstruct_schedule", "update_schedule") if work.HasField(name)]
    for schedule in (getattr(work, name) for name in present):
        if schedule.epochs_grow:
            schedule.epochs = min(round_number, schedule.epochs)
            schedule.ClearField("epochs_grow")
    if work.split == task_pb2.SPLIT_RULE_NONE and kind_of(spec, round_number) is Kind.EVALUATE:
        work.split = task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES
    return work


def check_spec(spec: TaskSpec) -> None:
    """Raises unless a specification makes sense by itself.

    Raises:
        InvalidSpec: It does not (`INVALID_SPEC`).
    """
    problems = (
        *_naming_problems(spec),
        *_round_problems(spec),
        *_evaluation_problems(spec),
        *_work_problems(spec),
        *_optimizer_problems(spec),
        *_sum_problems(spec),
        *privacy_problems(spec),
        *_serving_problems(spec),
    )
    if problems:
        raise InvalidSpec("INVALID_SPEC", problems)


def prepare(
    spec: TaskSpec, manifest: Manifest, rows: Mapping[str, int], row_sets: Mapping[str, RowSet] | None = None
) -> Prepared:
    """Returns what rounds take from the plan.

    Args:
        spec: A checked specification.
        manifest: Its plan.
        rows: Rows of every vocabulary in force.
        row_sets: Those that the specification names, by vocabulary.

    Raises:
        InvalidSpec: Specification and plan do not fit (`INVALID_SPEC`), the plan is not whole (`MALFORMED_PLAN`), or
            its signature is not its publisher's (`BAD_SIGNATURE`).
    """
    if spec.HasField("signature"):
        try:
            verify_plan(spec.plan.digest, spec.signature)
        except BadSignatureError as error:
            raise InvalidSpec("BAD_SIGNATURE", (str(error),)) from error
    layout = Layout()
    layout.CopyFrom(manifest.layout)
    problems = [*_hyperparameter_problems(spec, manifest), *_vocabulary_problems(manifest, rows)]
    named = {segment.parameter for segment in layout.segments}
    problems += [f"bounds.{name}: the layout has no such parameter" for name in sorted(set(spec.bounds) - named)]
    vocabularies = {parameter.name: parameter.vocabulary for parameter in manifest.parameters}
    summed = {vocabularies[name] for name in named & vocabularies.keys()}
    problems += [f"row_sets.{name}: no such vocabulary is summed" for name in sorted(set(spec.row_sets) - summed)]
    problems += _row_set_problems(row_sets or {}, rows)
    for segment in layout.segments:
        if (row_set := spec.row_sets.get(vocabularies.get(segment.parameter, ""))) is not None:
            segment.row_set_digest = row_set.digest
        segment.bound = spec.bounds.get(segment.parameter, segment.bound)
    if problems:
        raise InvalidSpec("INVALID_SPEC", tuple(problems))
    try:
        by_digest = {spec.row_sets[name].digest: row_set for name, row_set in (row_sets or {}).items()}
        elements = segment_elements(layout, manifest, rows, by_digest)
        share = least_contributing_share(layout, manifest, by_digest)
    except (MalformedPlanError, KeyError) as error:
        raise InvalidSpec("MALFORMED_PLAN", (f"the plan's layout: {error}",)) from error
    try:
        fixed_point_of(layout, elements, [metric.bound for metric in manifest.metrics], spec.secure_sum)
    except ValueError as error:
        raise InvalidSpec("INVALID_SPEC", (f"secure_sum and bounds: {error}",)) from error
    return Prepared(manifest, layout, tuple(elements), dict(rows), share)


def _naming_problems(spec: TaskSpec) -> Iterator[str]:
    if _NAME.fullmatch(spec.name) is None:
        yield f"name {spec.name!r}: use 1 to 63 lower-case letters, digits and `-`, with no `-` at either end"
    if spec.name in RESERVED_NAMES:
        yield f"name {spec.name!r} is reserved: choose another"
    if not 1 <= len(spec.population) <= _LONGEST_POPULATION:
        yield f"population: 1 to {_LONGEST_POPULATION} characters are needed"
    if len(spec.plan.digest) != _DIGEST_BYTES:
        yield "plan: its digest of 32 bytes is needed"
    if 0 < spec.end_unix_milliseconds <= spec.start_unix_milliseconds:
        yield "end_unix_milliseconds: the task would end before it starts"
    if not 0 <= spec.traffic_weight < math.inf:
        yield f"traffic_weight {spec.traffic_weight}: a number of at least 0 is needed"
    for field in ("minimum_sdk_version", "maximum_sdk_version"):
        text = getattr(spec.eligibility, field)
        if text and parse_version(text) is None:
            yield f"eligibility.{field} {text!r}: write it as `major.minor.patch`"


def _round_problems(spec: TaskSpec) -> Iterator[str]:
    rounds = spec.rounds
    if rounds.report_goal < 1:
        yield "rounds.report_goal: at least 1 is needed"
        return
    if not 1 <= rounds.over_selection <= _LARGEST_OVER_SELECTION:
        yield f"rounds.over_selection {rounds.over_selection}: 1 to {_LARGEST_OVER_SELECTION:g} is allowed"
        return
    learned = rounds.maximum_over_selection
    if learned and not rounds.over_selection <= learned <= _LARGEST_OVER_SELECTION:
        yield (
            f"rounds.maximum_over_selection {learned}: over_selection ({rounds.over_selection:g}) to "
            f"{_LARGEST_OVER_SELECTION:g} is allowed, or 0 not to learn"
        )
        return
    terms = terms_of(spec)
    largest = cohort_size_of(rounds.report_goal, learned or rounds.over_selection)
    if largest > LARGEST_COHORT:
        yield f"rounds: a cohort of {largest} devices is larger than {LARGEST_COHORT}"
    if not 1 <= rounds.minimum_reports <= rounds.report_goal:
        yield f"rounds.minimum_reports {rounds.minimum_reports}: 1 to report_goal ({rounds.report_goal}) is allowed"
    elif not rounds.minimum_reports <= terms.minimum_cohort <= terms.cohort_size:
        yield (
            f"rounds.minimum_cohort {rounds.minimum_cohort}: minimum_reports ({rounds.minimum_reports}) to the cohort "
            f"size ({terms.cohort_size}) is allowed"
        )
    for field in ("selection_milliseconds", "reporting_milliseconds", "aggregating_milliseconds"):
        if not 1 <= getattr(rounds, field) <= LONGEST_MILLISECONDS:
            yield f"rounds.{field} {getattr(rounds, field)}: 1 to {LONGEST_MILLISECONDS} is allowed"
    if rounds.retry_milliseconds > LONGEST_MILLISECONDS:
        yield f"rounds.retry_milliseconds {rounds.retry_milliseconds}: at most {LONGEST_MILLISECONDS} is allowed"


def _evaluation_problems(spec: TaskSpec) -> Iterator[str]:
    evaluation = spec.evaluation
    if not 0 <= evaluation.held_out_share < 1:
        yield f"evaluation.held_out_share {evaluation.held_out_share}: a share in [0, 1) is needed"
    elif (evaluation.every_rounds > 0) != (evaluation.held_out_share > 0):
        yield "evaluation: every_rounds and held_out_share go together; state both, or none"
    if evaluation.report_goal and not evaluation.every_rounds:
        yield "evaluation.report_goal: there are no evaluation rounds; state every_rounds and held_out_share"
    if evaluation.report_goal and evaluation.report_goal < spec.secure_sum.minimum_group:
        yield (
            f"evaluation.report_goal {evaluation.report_goal}: no group of secure_sum.minimum_group "
            f"({spec.secure_sum.minimum_group}) could be opened"
        )


def _serving_problems(spec: TaskSpec) -> Iterator[str]:
    serving = spec.serving
    for name, margin in sorted(serving.gate.margins.items()):
        if name not in GATE_MEASURES:
            yield f"serving.gate.margins.{name}: name one of {', '.join(GATE_MEASURES)}"
        if not 0 <= margin < math.inf:
            yield f"serving.gate.margins.{name} {margin}: a share of at least 0 is needed"
    if serving.evaluated_are_candidates and not spec.evaluation.every_rounds:
        yield "serving.evaluated_are_candidates: there are no evaluation rounds; state evaluation.every_rounds"
    if len(serving.data_statement) > _LONGEST_STATEMENT:
        yield f"serving.data_statement: at most {_LONGEST_STATEMENT:,} characters"


def _work_problems(spec: TaskSpec) -> Iterator[str]:
    work = spec.work
    if work.split == task_pb2.SPLIT_RULE_UNSPECIFIED:
        yield f"work.split: state one of {', '.join(task_pb2.SplitRule.keys()[1:])}"
    needs_fraction = work.split in {task_pb2.SPLIT_RULE_BY_TIME, task_pb2.SPLIT_RULE_BY_FRACTION}
    if needs_fraction and not 0 < work.support_fraction < 1:
        rule = task_pb2.SplitRule.Name(work.split)
        yield f"work.support_fraction {work.support_fraction}: {rule} needs one in (0, 1)"
    if 0 < work.maximum_examples < work.minimum_examples:
        yield "work.maximum_examples: at least minimum_examples is needed, or 0 for all"
    for field in ("reconstruct_schedule", "update_schedule"):
        schedule: Schedule = getattr(work, field)
        if work.HasField(field) and schedule.batch_size < 1:
            yield f"work.{field}.batch_size: at least 1 is needed"


def _optimizer_problems(spec: TaskSpec) -> Iterator[str]:
    optimizer = spec.optimizer
    if optimizer.rule == task_pb2.OPTIMIZER_RULE_UNSPECIFIED:
        yield f"optimizer.rule: state one of {', '.join(task_pb2.OptimizerRule.keys()[1:])}"
    if not 0 < optimizer.rate < math.inf:
        yield f"optimizer.rate {optimizer.rate}: a number above 0 is needed"
    for field in ("momentum", "second_momentum"):
        if not 0 <= getattr(optimizer, field) < 1:
            yield f"optimizer.{field} {getattr(optimizer, field)}: a number in [0, 1) is needed"
    if optimizer.rule > task_pb2.OPTIMIZER_RULE_SGD and not 0 < optimizer.adaptivity < math.inf:
        yield f"optimizer.adaptivity {optimizer.adaptivity}: an adaptive rule needs a number above 0"
    if not 0 <= optimizer.initial_accumulator < math.inf:
        yield f"optimizer.initial_accumulator {optimizer.initial_accumulator}: a number of at least 0 is needed"
    if optimizer.checkpoint_bits not in {0, 16, 32}:
        yield f"optimizer.checkpoint_bits {optimizer.checkpoint_bits}: 16 or 32 is needed"


def _sum_problems(spec: TaskSpec) -> Iterator[str]:
    secure_sum = spec.secure_sum
    if secure_sum.protocol == task_pb2.SUM_PROTOCOL_UNSPECIFIED:
        yield f"secure_sum.protocol: state one of {', '.join(task_pb2.SumProtocol.keys()[1:])}"
    if secure_sum.ring_bits not in RING_BITS:
        yield f"secure_sum.ring_bits {secure_sum.ring_bits}: one of {', '.join(map(str, RING_BITS))} is needed"
    for field in ("maximum_weight", "maximum_reports"):
        if getattr(secure_sum, field) < 1:
            yield f"secure_sum.{field}: at least 1 is needed"
    if not 0 <= secure_sum.drop_out <= MOST_DROP_OUT:
        yield (
            f"secure_sum.drop_out {secure_sum.drop_out}: a group withstands the loss of at most {MOST_DROP_OUT} of its "
            "members; retry more often, or let devices report faster"
        )
    if secure_sum.neighbours or secure_sum.threshold:
        yield "secure_sum.neighbours and threshold: leave them out, they follow from the number of members"
    if secure_sum.ring_bits == _SMALL_RING_BITS and secure_sum.maximum_reports > _SMALL_RING_REPORTS:
        yield (
            f"secure_sum.ring_bits {_SMALL_RING_BITS}: a sum of {secure_sum.maximum_reports} reports leaves each of "
            f"them too few steps; use 32, or maximum_reports of at most {_SMALL_RING_REPORTS}"
        )
    yield from _group_problems(spec)


def _group_problems(spec: TaskSpec) -> Iterator[str]:
    secure_sum = spec.secure_sum
    if secure_sum.protocol == task_pb2.SUM_PROTOCOL_SECAGG_PLUS and secure_sum.minimum_group < SMALLEST_GROUP:
        yield (
            f"secure_sum.minimum_group {secure_sum.minimum_group}: a sum of fewer than {SMALLEST_GROUP} hides nobody, "
            "and apps ask for 20 unless they say otherwise"
        )
    if secure_sum.minimum_group > secure_sum.maximum_reports:
        yield (
            f"secure_sum.minimum_group {secure_sum.minimum_group}: no group could be opened, as one holds at most "
            f"maximum_reports ({secure_sum.maximum_reports})"
        )
    if secure_sum.minimum_group > spec.rounds.report_goal:
        yield (
            f"secure_sum.minimum_group {secure_sum.minimum_group}: no group can be opened with a report_goal of "
            f"{spec.rounds.report_goal}"
        )


def _hyperparameter_problems(spec: TaskSpec, manifest: Manifest) -> Iterator[str]:
    for name, value in sorted(spec.work.hyperparameters.items()):
        if name not in manifest.hyperparameters:
            known = ", ".join(sorted(manifest.hyperparameters)) or "none"
            yield f"work.hyperparameters.{name}: the plan has no such hyperparameter; it has {known}"
            continue
        limits = manifest.hyperparameters[name]
        if not limits.minimum <= value <= limits.maximum:
            yield (
                f"work.hyperparameters.{name} {value:g}: the plan was verified for {limits.minimum:g} to "
                f"{limits.maximum:g}"
            )


def _row_set_problems(row_sets: Mapping[str, RowSet], rows: Mapping[str, int]) -> Iterator[str]:
    for name, row_set in sorted(row_sets.items()):
        if name in rows and row_set.rows[-1] >= rows[name]:
            yield f"row_sets.{name}: it has row {row_set.rows[-1]}, and the vocabulary {rows[name]} rows"


def _vocabulary_problems(manifest: Manifest, rows: Mapping[str, int]) -> Iterator[str]:
    for parameter in manifest.parameters:
        count = rows.get(parameter.vocabulary)
        if count is not None and count < parameter.shape[0]:
            yield (
                f"vocabularies.{parameter.vocabulary}: {count} rows, the initial checkpoint's {parameter.name!r} has "
                f"{parameter.shape[0]}; rows are appended and retired, never removed"
            )
