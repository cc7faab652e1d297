"""What coordinators ask of aggregators, and what their answers mean: pure functions of an attempt.

Rule: the same attempt gives the same calls, so that each may be repeated, also by another coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.coordinator.assignments import key_of, session_kind_of
from fedrecon.coordinator.noise_trees import NoiseTree
from fedrecon.coordinator.parting import PartSize
from fedrecon.coordinator.round_events import Blob, Committed, GroupsClosed, Kind, Terms
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.specs import Prepared, tells_spread
from fedrecon.v1 import aggregator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import GroupProgress, MergeRequest, MergeResponse, OpenRequest
from fedrecon.v1.plan_pb2 import MetricSum
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.fixed_point import WITHIN_CLIP, WITHIN_CLIP_BOUND
from fedrecon.wire.outcomes import outcome_metrics
from fedrecon.wire.spread import spread_metrics

_PHASE_SHARE = 0.15
"""Of the reporting window, for each phase after joining: calls and an upload, no training."""
_LATER_PHASES = 3
_ENDED_PHASES = frozenset({aggregator_pb2.GROUP_PHASE_CLOSED, aggregator_pb2.GROUP_PHASE_ABORTED})


@dataclass(frozen=True, slots=True)
class Progress:
    """What the groups of an attempt hold.

    Attributes:
        reports: Reports acknowledged.
        voided: Reports made void.
    """

    reports: int
    voided: int


def open_request(
    attempt: Round, spec: TaskSpec, prepared: Prepared, groups_expire_at: int, part: int, size: PartSize
) -> OpenRequest:
    """Returns the call that opens a part of an attempt's groups: the same for the same arguments."""
    trains = attempt.kind is Kind.TRAIN
    is_masked = spec.secure_sum.protocol == task_pb2.SUM_PROTOCOL_SECAGG_PLUS
    joining_ends, phase_milliseconds = masked_windows(attempt.terms, groups_expire_at)
    return OpenRequest(
        round=key_of(attempt, part),
        kind=session_kind_of(attempt.kind),
        secure_sum=spec.secure_sum,
        layout=prepared.layout if trains else None,
        segment_elements=prepared.segment_elements if trains else (),
        metrics=[*prepared.manifest.metrics, *_own_metrics(spec, prepared, attempt)],
        cohort_size=size.cohort_size,
        plan_digest=spec.plan.digest,
        checkpoint_digest=attempt.opened.checkpoint.digest,
        expires_unix_milliseconds=groups_expire_at,
        report_goal=size.report_goal if is_masked else 0,
        joining_ends_unix_milliseconds=joining_ends if is_masked else 0,
        phase_milliseconds=phase_milliseconds if is_masked else 0,
    )


def group_milliseconds(terms: Terms) -> int:
    """Returns how long the groups of an attempt must live: until they are merged, and as long again."""
    return 2 * (terms.reporting_milliseconds + 2 * terms.aggregating_milliseconds)


def masked_windows(terms: Terms, groups_expire_at: int) -> tuple[int, int]:
    """Returns when masked groups stop waiting for members, Unix milliseconds, and how long a later phase may take.

    All phases end within the reporting window: devices wait no longer.
    """
    opened_at = groups_expire_at - group_milliseconds(terms)
    phase = max(1, round(terms.reporting_milliseconds * _PHASE_SHARE))
    return opened_at + terms.reporting_milliseconds - _LATER_PHASES * phase, phase


def merge_request(attempt: Round, spec: TaskSpec, groups: tuple[bytes, ...], noise: NoiseTree) -> MergeRequest:
    """Returns the call that makes an attempt's checkpoint.

    Args:
        attempt: Whose groups are closed.
        spec: What it was opened with.
        groups: Those that count.
        noise: The tree that the sum's noise is in; one without sums if it is in none.
    """
    state = attempt.opened.optimizer_state
    return MergeRequest(
        round=key_of(attempt),
        groups=groups,
        plan_digest=spec.plan.digest,
        checkpoint_digest=attempt.opened.checkpoint.digest,
        optimizer_state_digest=b"" if state is None else state.digest,
        optimizer=spec.optimizer,
        privacy=spec.privacy if spec.HasField("privacy") else None,
        minimum_reports=attempt.terms.minimum_reports,
        clip_norm=attempt.opened.clip_norm,
        denominator=attempt.terms.report_goal if spec.HasField("privacy") else 0,
        noise_added=b"" if noise.added is None else noise.added.name,
        noise_removed=[node.name for node in noise.removed],
    )


def _own_metrics(spec: TaskSpec, prepared: Prepared, attempt: Round) -> list[MetricSum]:
    """Returns the metric sums that reports have beside the plan's."""
    own = [MetricSum(name=WITHIN_CLIP, bound=WITHIN_CLIP_BOUND)] if spec.privacy.clip_quantile else []
    more: tuple[tuple[str, float], ...] = ()
    if tells_spread(spec, attempt.kind):
        more = spread_metrics([(metric.name, metric.bound) for metric in prepared.manifest.metrics])
    more += outcome_metrics(attempt.opened.outcome_versions)
    return own + [MetricSum(name=name, bound=bound) for name, bound in more]


def committed_of(merged: MergeResponse) -> Committed:
    """Returns the event that a merge leads to."""
    state = merged.optimizer_state
    return Committed(
        checkpoint=Blob(merged.checkpoint.digest, merged.checkpoint.size),
        optimizer_state=Blob(state.digest, state.size) if state.digest else None,
        reports=merged.reports,
        weight=merged.weight,
        metric_sums=tuple(sorted(merged.metric_sums.items())),
        update_norm=merged.update_norm,
        sum_digest=merged.sum_digest,
        clip_norm=merged.clip_norm,
    )


def progress_of(groups: list[GroupProgress]) -> Progress:
    """Returns what groups hold."""
    living = [group for group in groups if group.phase != aggregator_pb2.GROUP_PHASE_ABORTED]
    return Progress(sum(group.reports for group in living), sum(group.voided for group in groups))


def have_ended(groups: list[GroupProgress]) -> bool:
    """Whether groups take no more reports and are not being unmasked either."""
    return all(group.phase in _ENDED_PHASES for group in groups)


def closed_of(groups: list[GroupProgress]) -> GroupsClosed:
    """Returns the event that ended groups lead to."""
    closed = [group for group in groups if group.phase == aggregator_pb2.GROUP_PHASE_CLOSED]
    return GroupsClosed(
        groups=tuple(group.group for group in closed),
        reports=sum(group.reports for group in closed),
        voided=sum(group.voided for group in groups),
    )
