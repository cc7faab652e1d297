"""States of the cores as messages of the Admin service."""

from __future__ import annotations

from collections import Counter

from fedrecon.coordinator import draining
from fedrecon.coordinator.assignments import key_of, reference_to, session_kind_of
from fedrecon.coordinator.draining import AggregatorDrained, AggregatorUndrained
from fedrecon.coordinator.entries import Entry
from fedrecon.coordinator.labels import shape_label
from fedrecon.coordinator.round_events import Outcome
from fedrecon.coordinator.round_state import Phase, Round, Seen
from fedrecon.coordinator.tasks import (
    CheckpointCommitted,
    Event,
    RolledBack,
    State,
    Task,
    TaskCancelled,
    TaskCreated,
    TaskEdited,
    TaskPaused,
    TaskResumed,
)
from fedrecon.v1 import admin_pb2
from fedrecon.v1.task_pb2 import TaskSpec

_STATES = {
    State.RUNNING: admin_pb2.TASK_STATE_RUNNING,
    State.PAUSED: admin_pb2.TASK_STATE_PAUSED,
    State.COMPLETED: admin_pb2.TASK_STATE_COMPLETED,
    State.CANCELLED: admin_pb2.TASK_STATE_CANCELLED,
}

_PHASES = {
    Phase.SELECTING: admin_pb2.ROUND_PHASE_SELECTING,
    Phase.REPORTING: admin_pb2.ROUND_PHASE_REPORTING,
    Phase.AGGREGATING: admin_pb2.ROUND_PHASE_AGGREGATING,
    Phase.COMMITTED: admin_pb2.ROUND_PHASE_COMMITTED,
    Phase.ABANDONED: admin_pb2.ROUND_PHASE_ABANDONED,
}


def round_message(attempt: Round, seen: Seen | None = None) -> admin_pb2.Round:
    """Returns an attempt as operators see it.

    Args:
        attempt: The attempt.
        seen: What memory knows of it beside the journal, if it is under way here.
    """
    message = admin_pb2.Round(
        key=key_of(attempt),
        kind=session_kind_of(attempt.kind),
        phase=_PHASES[attempt.phase],
        assigned=len(attempt.slots),
        reported=_reported(attempt),
        report_goal=attempt.terms.report_goal,
        cohort_size=attempt.terms.cohort_size,
        report_share=attempt.opened.report_share,
        opened_unix_milliseconds=attempt.opened_at,
        ended_unix_milliseconds=attempt.ended_at,
        waiting=0 if attempt.assigned is None else attempt.assigned.waiting,
        outcomes=Counter(finish.outcome.value for finish in attempt.finishes.values()),
        shapes=Counter(shape_label(finish.shape) for finish in attempt.finishes.values()),
        assigned_unix_milliseconds=attempt.assigned_at,
        reporting_ended_unix_milliseconds=attempt.reporting_ended_at,
    )
    if attempt.phase is Phase.SELECTING and seen is not None:
        message.waiting = seen.waiting
    if attempt.phase is Phase.REPORTING:
        message.phase_ends_unix_milliseconds = attempt.reporting_ends
        if seen is not None and seen.reports is not None:
            message.reported = seen.reports
    if attempt.phase is Phase.AGGREGATING:
        message.phase_ends_unix_milliseconds = attempt.aggregating_ends
    if attempt.is_over:
        message.dropped = max(message.assigned - message.reported, 0)
    else:
        message.dropped = sum(finish.outcome is not Outcome.UPLOADED for finish in attempt.finishes.values())
    if attempt.closed is not None:
        message.voided = attempt.closed.voided
    if attempt.abandoned is not None:
        message.reason, message.voided = attempt.abandoned.reason, message.reported
    if (committed := attempt.committed) is not None:
        message.checkpoint.digest, message.checkpoint.size = committed.checkpoint.digest, committed.checkpoint.size
        if (state := committed.optimizer_state) is not None:
            message.optimizer_state.digest, message.optimizer_state.size = state.digest, state.size
        message.metric_sums.update(dict(committed.metric_sums))
        message.update_norm, message.sum_digest = committed.update_norm, committed.sum_digest
        message.counted, message.weight = committed.reports, committed.weight
    return message


def task_message(task: Task, version: int, attempt: Round | None, seen: Seen | None = None) -> admin_pb2.Task:
    """Returns a task as operators see it.

    Args:
        task: The task.
        version: Version of its stream.
        attempt: The attempt that runs, or the last one.
        seen: What memory knows of it beside the journal, if it is under way here.
    """
    return admin_pb2.Task(
        spec=TaskSpec.FromString(task.spec),
        state=_STATES[task.state],
        reason=task.reason,
        round=None if attempt is None else round_message(attempt, seen),
        committed=task.committed,
        abandoned=task.abandoned,
        checkpoint=reference_to(task.checkpoint),
        created_unix_milliseconds=task.created_at,
        version=version,
        committed_unix_milliseconds=task.committed_at,
        abandoned_in_a_row=task.abandoned_in_a_row,
        retry_unix_milliseconds=task.retry_at if task.abandoned_in_a_row else 0,
        leader=task.leader,
        live_round=task.live_round,
    )


def checkpoint_messages(task: Task, entries: list[Entry[Event]]) -> list[admin_pb2.Checkpoint]:
    """Returns the checkpoints that a task's entries tell of, newest first; the last is the plan's own."""
    checkpoints = [
        admin_pb2.Checkpoint(
            round=0,
            blob=reference_to(task.created.checkpoint),
            committed_unix_milliseconds=task.created_at,
            live=task.live_round == 0,
        )
    ]
    for entry in entries:
        if isinstance(event := entry.event, CheckpointCommitted):
            checkpoints.append(  # noqa: PERF401 - the walrus in a comprehension reads worse
                admin_pb2.Checkpoint(
                    round=event.number,
                    blob=reference_to(event.checkpoint),
                    optimizer_state=reference_to(event.optimizer_state),
                    committed_unix_milliseconds=entry.at,
                    live=event.number == task.live_round,
                )
            )
    for shown in checkpoints:
        if shown.live:  # it may have rows for new items since it was committed
            shown.blob.digest, shown.blob.size = task.checkpoint.digest, task.checkpoint.size
    return checkpoints[::-1]


def audit_messages(name: str, entries: list[Entry[Event]]) -> list[admin_pb2.AuditEntry]:
    """Returns what operators changed in a task, oldest first; what it did by itself is no operator's change."""
    audit = []
    for entry in entries:
        match entry.event:
            case TaskCreated(operator=operator):
                action, reason = "CreateTask", ""
            case TaskEdited(operator=operator):
                action, reason = "EditTask", ""
            case RolledBack(number=number, reason=why, operator=operator):
                action, reason = "RollBack", f"to round {number}" + (f": {why}" if why else "")
            case TaskPaused(reason=reason, operator=operator) if operator:
                action = "PauseTask"
            case TaskResumed(operator=operator):
                action, reason = "ResumeTask", ""
            case TaskCancelled(reason=reason, operator=operator):
                action = "CancelTask"
            case _:
                continue
        audit.append(
            admin_pb2.AuditEntry(unix_milliseconds=entry.at, operator=operator, action=action, task=name, reason=reason)
        )
    return audit


def draining_messages(entries: list[Entry[draining.Event]]) -> list[admin_pb2.AuditEntry]:
    """Returns what operators changed about aggregators, oldest first."""
    audit = []
    for entry in entries:
        match entry.event:
            case AggregatorDrained(target, reason, operator):
                action, told = "DrainAggregator", f"{target}: {reason}" if reason else target
            case AggregatorUndrained(target, operator):
                action, told = "UndrainAggregator", target
        audit.append(admin_pb2.AuditEntry(unix_milliseconds=entry.at, operator=operator, action=action, reason=told))
    return audit


def _reported(attempt: Round) -> int:
    if attempt.committed is not None:
        return attempt.committed.reports
    if attempt.closed is not None:
        return attempt.closed.reports
    if attempt.reporting_ended is not None:
        return attempt.reporting_ended.reports
    return attempt.uploaded
