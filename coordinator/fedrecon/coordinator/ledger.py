"""Streams of the journal as state: tasks, and the attempts of their rounds.

Rules: reading is replay, whoever reads; the runner that holds a task's lease is the only writer of its rounds. A round
that is not the newest is read from the journal when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedrecon.coordinator import round_events, rounds, tasks
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
from fedrecon.ops.journal import Journal, Recorded


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
        attempts: Its attempts, in order.
        version: Version of the stream.
    """

    attempts: tuple[Round, ...] = ()
    version: int = 0

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
    """Applies further entries of a round's stream; those it has seen already are left out."""
    attempts, version = before.attempts, before.version
    for each in recorded:
        if each.version <= version:
            continue
        entry = round_entries.decode(each.event)
        attempts, version = apply(attempts, entry.event, entry.at).attempts, each.version
    return RoundAt(attempts, version)


async def load_task(journal: Journal, name: str) -> TaskAt:
    """Reads a task."""
    history = await journal.load(name, TASK_STREAM)
    return fold_task(TaskAt(None, 0), history.events)


async def load_task_entries(journal: Journal, name: str) -> list[Entry[tasks.Event]]:
    """Reads what happened to a task, in order."""
    history = await journal.load(name, TASK_STREAM)
    return [task_entries.decode(each.event) for each in history.events]


async def load_round_entries(journal: Journal, name: str, number: int) -> list[Entry[round_events.Event]]:
    """Reads what happened in a round, in order."""
    history = await journal.load(name, round_stream(number))
    return [round_entries.decode(each.event) for each in history.events]


async def load_round(journal: Journal, name: str, number: int) -> RoundAt:
    """Reads a round; without attempts if there is no such round."""
    history = await journal.load(name, round_stream(number))
    return fold_round(RoundAt(), history.events)


async def load_names(journal: Journal) -> list[str]:
    """Reads the names of all tasks, sorted."""
    history = await journal.load(REGISTRY_TASK, REGISTRY_STREAM)
    return sorted({registry_entries.decode(each.event).event.name for each in history.events})
