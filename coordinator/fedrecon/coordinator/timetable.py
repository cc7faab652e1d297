"""When a task's next moment comes: pure, of the task, its attempt and what was asked for."""

from __future__ import annotations

from fedrecon.coordinator import rounds
from fedrecon.coordinator.round_state import Phase, Round, Seen
from fedrecon.coordinator.tasks import State, Task
from fedrecon.v1.task_pb2 import TaskSpec

NEVER = 1 << 62


def has_reached_its_end(task: Task, spec: TaskSpec, now: int) -> bool:
    """Whether the task ends now, since no attempt is under way.

    Args:
        task: The task as it stands.
        spec: What was asked for.
        now: Unix milliseconds.
    """
    return 0 < spec.end_unix_milliseconds <= now and not task.has_ended


def may_open(task: Task, spec: TaskSpec, now: int) -> bool:
    """Whether the next attempt may begin; arguments as above."""
    return task.state is State.RUNNING and now >= _opens_at(task, spec)


def is_held(task: Task, attempt: Round) -> bool:
    """Whether an attempt waits for its task to be resumed: what is selected already goes on."""
    return task.state is State.PAUSED and attempt.phase is Phase.SELECTING


def next_instant(task: Task, attempt: Round | None, seen: Seen, spec: TaskSpec) -> int:
    """Returns when something is due although nothing happens; `NEVER` if never.

    For a task that has ended, that is when nobody can ask any more what became of a report.

    Args:
        task: The task as it stands.
        attempt: Its last attempt.
        seen: What memory knows of it.
        spec: What was asked for.
    """
    if attempt is not None and not attempt.is_over:
        instant = None if is_held(task, attempt) else rounds.next_instant(attempt, seen)
        return NEVER if instant is None else instant
    if task.has_ended:
        return task.ended_at + spec.rounds.reporting_milliseconds + spec.rounds.aggregating_milliseconds
    end = spec.end_unix_milliseconds or NEVER
    return min(_opens_at(task, spec), end) if task.state is State.RUNNING else end


def _opens_at(task: Task, spec: TaskSpec) -> int:
    return max(task.retry_at, spec.start_unix_milliseconds)
