"""Events as entries of a journal: the moment, then the event as its codec writes it.

`{"at": 1763712000000, "event": "ReportingEnded", "because": "goal met", "reports": 100}`: one object, so that a journal
can be read without tools; the codec ignores what is not a field of the event.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedrecon.coordinator import recommenders, round_events, tasks
from fedrecon.ops.journal.codec import Codec, UnreadableEvent

Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Event]):
    """An event and its moment.

    Attributes:
        at: Unix milliseconds.
        event: What happened.
    """

    at: int
    event: Event


class Entries(Generic[Event]):
    """Writes and reads the entries of one kind of stream.

    Args:
        codec: Of its events.
    """

    def __init__(self, codec: Codec[Event]) -> None:
        self._codec = codec

    def encode(self, at: int, event: Event) -> bytes:
        """Returns an entry as bytes."""
        return b'{"at":%d,%s' % (at, self._codec.encode(event)[1:])

    def decode(self, encoded: bytes) -> Entry[Event]:
        """Returns the entry that bytes hold.

        Raises:
            UnreadableEvent: They hold none.
        """
        event = self._codec.decode(encoded)
        at = json.loads(encoded).get("at")
        if not isinstance(at, int):
            raise UnreadableEvent(f"an event of the journal has no moment: {encoded[:80]!r}")
        return Entry(at, event)


@dataclass(frozen=True, slots=True)
class TaskRegistered:
    """A task exists.

    Attributes:
        name: Its name, and that of its journal.
    """

    name: str


REGISTRY_TASK = "registry"
"""Journal task of what belongs to no task; no task may have this name."""

REGISTRY_STREAM = "tasks"
TASK_STREAM = "task"
RECOMMENDERS_STREAM = "recommenders"

registry_entries: Entries[TaskRegistered] = Entries(Codec(TaskRegistered))
task_entries: Entries[tasks.Event] = Entries(Codec(*tasks.EVENT_TYPES))
recommender_entries: Entries[recommenders.Event] = Entries(Codec(*recommenders.EVENT_TYPES))
round_entries: Entries[round_events.Event] = Entries(Codec(*round_events.EVENT_TYPES))


def round_stream(number: int) -> str:
    """Returns the name of a round's stream; names sort as rounds do.

    Example:
        >>> round_stream(7)
        'round/00000007'
    """
    return f"round/{number:08}"
