"""What is kept of the past: a task's snapshot, and the summary of a round that is over for long.

A snapshot takes the place of a stream's older events (`Journal.compact`). A task's holds the state that they led to,
so that folding what follows gives what folding everything gave; and, word for word, the entries that people still
ask for: what operators changed, and the newest commits, which can be rolled back to, with the newest evaluations. A
round's holds what operators see of it, numbers and story; its sessions and devices are forgotten.

Rules: pure functions. A type that is kept here follows the rule of events: no name changes, and fields are only added,
with a default. Nothing can happen any more to a round that was summarised: an entry that came later tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedrecon.coordinator import round_events, stories, tasks
from fedrecon.coordinator.entries import Entry, task_entries
from fedrecon.coordinator.messages import round_message
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.tasks import CheckpointCommitted, CheckpointEvaluated, HistoryLost, Task
from fedrecon.ops.journal.codec import Codec
from fedrecon.v1 import admin_pb2


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """A task at a version of its stream.

    Attributes:
        task: Its state.
        entries: Older entries that are still asked for, in order, as the stream had them.
    """

    task: Task
    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A round that is over for long.

    Attributes:
        attempts: Its attempts as operators see them: `fedrecon.v1.Round`, serialised.
        story: What happened, in sentences.
    """

    attempts: tuple[bytes, ...]
    story: tuple[str, ...]

    @property
    def messages(self) -> list[admin_pb2.Round]:
        """The attempts, in order."""
        return [admin_pb2.Round.FromString(each) for each in self.attempts]


_SNAPSHOTS: Codec[TaskSnapshot] = Codec(TaskSnapshot)
_SUMMARIES: Codec[RoundSummary] = Codec(RoundSummary)


def read_snapshot(encoded: bytes) -> TaskSnapshot:
    """Returns a task's snapshot.

    Raises:
        UnreadableEvent: The bytes hold none.
    """
    return _SNAPSHOTS.decode(encoded)


def read_summary(encoded: bytes) -> RoundSummary:
    """Returns a round's summary.

    Raises:
        UnreadableEvent: The bytes hold none.
    """
    return _SUMMARIES.decode(encoded)


def condense_task(task: Task, entries: Sequence[bytes], kept_checkpoints: int) -> bytes:
    """Returns the snapshot of a task.

    Args:
        task: Its state after all entries.
        entries: All entries that are known, in order: those of an earlier snapshot, then those of the stream.
        kept_checkpoints: Commits that stay in its list, the newest, and as many evaluations.
    """
    events = [task_entries.decode(each).event for each in entries]
    newest = _newest(events, CheckpointCommitted, kept_checkpoints) | _newest(
        events, CheckpointEvaluated, kept_checkpoints
    )
    kept = (
        each
        for place, (each, event) in enumerate(zip(entries, events, strict=True))
        if place in newest or _is_asked_for(event, task)
    )
    return _SNAPSHOTS.encode(TaskSnapshot(task, tuple(kept)))


def condense_round(attempts: Sequence[Round], entries: Sequence[Entry[round_events.Event]]) -> bytes:
    """Returns the summary of a round.

    Args:
        attempts: Its attempts; all are over.
        entries: All that happened in it, in order.
    """
    messages = tuple(round_message(each).SerializeToString(deterministic=True) for each in attempts)
    story = stories.tell_all((entry.at, entry.event) for entry in entries)
    return _SUMMARIES.encode(RoundSummary(messages, tuple(story)))


def _newest(events: Sequence[tasks.Event], kind: type[tasks.Event], count: int) -> set[int]:
    """Returns the places of the newest events of a kind."""
    return set([place for place, event in enumerate(events) if isinstance(event, kind)][-count:])


def _is_asked_for(event: tasks.Event, task: Task) -> bool:
    """Whether an entry stays however old it is: the live checkpoint's, losses, and what operators changed."""
    if isinstance(event, CheckpointCommitted):
        return event.checkpoint == task.checkpoint
    return isinstance(event, HistoryLost) or bool(getattr(event, "operator", ""))
