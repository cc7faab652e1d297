"""Which aggregators operators have drained: they get no new groups, and what they have ends there.

Stream `aggregators` of the task `registry`, written by whichever coordinator an operator asks; it is the audit of these
changes, too. All coordinators read it whenever they open groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.coordinator.entries import REGISTRY_TASK, Entries, Entry
from fedrecon.ops.journal import Append, Journal, StaleWriter
from fedrecon.ops.journal.codec import Codec

STREAM = "aggregators"


@dataclass(frozen=True, slots=True)
class AggregatorDrained:
    """An aggregator gets no new groups.

    Attributes:
        target: Which, as coordinators are configured.
        reason: Why, for people.
        operator: Who said so.
    """

    target: str
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class AggregatorUndrained:
    """An aggregator gets groups again.

    Attributes:
        target: Which.
        operator: Who said so.
    """

    target: str
    operator: str


Event = AggregatorDrained | AggregatorUndrained
draining_entries: Entries[Event] = Entries(Codec(AggregatorDrained, AggregatorUndrained))


def drained_by(entries: list[Entry[Event]]) -> frozenset[str]:
    """Returns the targets that are drained after these entries."""
    drained: set[str] = set()
    for entry in entries:
        match entry.event:
            case AggregatorDrained(target):
                drained.add(target)
            case AggregatorUndrained(target):
                drained.discard(target)
    return frozenset(drained)


async def load(journal: Journal) -> tuple[list[Entry[Event]], int]:
    """Reads all that was said, and the version of the stream."""
    history = await journal.load(REGISTRY_TASK, STREAM)
    return [draining_entries.decode(each.event) for each in history.events], history.version


async def load_drained(journal: Journal) -> frozenset[str]:
    """Reads which targets are drained."""
    return drained_by((await load(journal))[0])


async def keep(journal: Journal, event: Event, now: int) -> None:
    """Keeps an operator's word; nothing is written where it is so already.

    Args:
        journal: Where it is kept.
        event: What was said.
        now: Unix milliseconds.
    """
    wanted = isinstance(event, AggregatorDrained)
    while True:
        entries, version = await load(journal)
        if (event.target in drained_by(entries)) is wanted:
            return
        try:
            await journal.append(REGISTRY_TASK, [Append(STREAM, version, (draining_entries.encode(now, event),))])
        except StaleWriter:
            continue  # another operator spoke: look again
        return
