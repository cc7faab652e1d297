"""Streams of the journal as state: tasks, and the attempts of their rounds.

Rules: reading is replay, whoever reads; the runner that holds a task's lease is the only writer of its rounds. A round
that is not the newest is read from the journal when somebody asks for it. Of what is over for long a snapshot or a
summary is there in place of events (`condensing`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedrecon.coordinator import round_events, rounds, tasks
from fedrecon.coordinator.condensing import RoundSummary, read_snapshot, read_summary
from fedrecon.coordinator.entries import (
    REGISTRY_STREAM,
    REGISTRY_TASK,
    TASK_STREAM,
    Entry,
    registry_entries,
    round_entries,
    round_stream,
    task_entries,
)
from fedrecon.coordinator.round_events import IllegalEvent
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.rounds import Effect
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.journal import History, Journal, Recorded


@dataclass(frozen=True, slots=True)
class TaskAt:
    """A task at a version of its stream.

    Attributes:
        task: The task; None while the stream is empty.
        version: Version of the stream.
    """

    task: Task | None
    version: int


@dataclass(frozen=True, slots=True)
class RoundAt:
    """A round at a version of its stream.

    Attributes:
        attempts: Its attempts, in order; none where only a summary is left.
        version: Version of the stream.
        summary: What is left of a round that is over for long.
    """

    attempts: tuple[Round, ...] = ()
    version: int = 0
    summary: RoundSummary | None = None

    @property
    def last(self) -> Round | None:
        """The last attempt."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True, slots=True)
class Applied:
    """What an event made of a round.

    Attributes:
        attempts: The round's attempts after it.
        before: The attempt that it belongs to, before it; None if it opened one.
        after: The same after it.
        effects: What to do once the event is kept.
    """

    attempts: tuple[Round, ...]
    before: Round | None
    after: Round
    effects: tuple[Effect, ...]


def apply(attempts: tuple[Round, ...], event: round_events.Event, now: int) -> Applied:
    """Applies an event to the attempt of a round that it belongs to.

    Args:
        attempts: The round's attempts, in order.
        event: What happened.
        now: When, Unix milliseconds.

    Raises:
        IllegalEvent: As `rounds.step`.
    """
    if isinstance(event, round_events.SessionsFinished):
        if not 1 <= event.attempt <= len(attempts):
            raise IllegalEvent(f"sessions of attempt {event.attempt} of a round with {len(attempts)} attempts")
        place = event.attempt - 1
    else:
        place = len(attempts) if isinstance(event, round_events.Opened) else len(attempts) - 1
    before = attempts[-1] if isinstance(event, round_events.Opened) and attempts else None
    if place in range(len(attempts)):
        before = attempts[place]
    after, effects = rounds.step(before, event, now)
    return Applied((*attempts[: max(place, 0)], after, *attempts[place + 1 :]), before, after, effects)


def fold_task(before: TaskAt, recorded: Iterable[Recorded]) -> TaskAt:
    """Applies further entries of a task's stream; those it has seen already are left out."""
    task, version = before.task, before.version
    for each in recorded:
        if each.version <= version:
            continue
        entry = task_entries.decode(each.event)
        task, version = tasks.step(task, entry.event, entry.at), each.version
    return TaskAt(task, version)


def fold_round(before: RoundAt, recorded: Iterable[Recorded]) -> RoundAt:
    """Applies further entries of a round's stream; those it has seen already are left out.

    Nothing can follow on a summary but ends of sessions, which nobody asks for any more.
    """
    attempts, version = before.attempts, before.version
    for each in recorded:
        if each.version <= version:
            continue
        if before.summary is None:
            entry = round_entries.decode(each.event)
            attempts = apply(attempts, entry.event, entry.at).attempts
        version = each.version
    return RoundAt(attempts, version, before.summary)


def task_of(history: History) -> TaskAt:
    """Returns the task that a stream holds."""
    task = None if history.snapshot is None else read_snapshot(history.snapshot).task
    return fold_task(TaskAt(task, history.snapshot_version), history.events)


def task_records_of(history: History) -> tuple[bytes, ...]:
    """Returns the entries of a task's stream that are left, as they were written."""
    before = () if history.snapshot is None else read_snapshot(history.snapshot).entries
    return (*before, *(each.event for each in history.events))


def round_of(history: History) -> RoundAt:
    """Returns the round that a stream holds."""
    summary = None if history.snapshot is None else read_summary(history.snapshot)
    return fold_round(RoundAt((), history.snapshot_version, summary), history.events)


async def load_task(journal: Journal, name: str) -> TaskAt:
    """Reads a task."""
    return task_of(await journal.load(name, TASK_STREAM))


async def load_task_entries(journal: Journal, name: str) -> list[Entry[tasks.Event]]:
    """Reads what happened to a task, in order: all that operators changed, and at least the newest commits."""
    return [task_entries.decode(each) for each in task_records_of(await journal.load(name, TASK_STREAM))]


async def load_round_entries(journal: Journal, name: str, number: int) -> list[Entry[round_events.Event]]:
    """Reads what happened in a round, in order; nothing where only a summary is left."""
    history = await journal.load(name, round_stream(number))
    if history.snapshot is not None:
        return []
    return [round_entries.decode(each.event) for each in history.events]


async def load_round(journal: Journal, name: str, number: int) -> RoundAt:
    """Reads a round; without attempts and summary if there is no such round."""
    return round_of(await journal.load(name, round_stream(number)))


async def load_names(journal: Journal) -> list[str]:
    """Reads the names of all tasks, sorted."""
    history = await journal.load(REGISTRY_TASK, REGISTRY_STREAM)
    return sorted({registry_entries.decode(each.event).event.name for each in history.events})
