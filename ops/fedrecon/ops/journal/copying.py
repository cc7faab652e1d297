"""Copies of a journal: a task's streams as they were at one moment, while others write; and putting them back.

How one moment is had from a journal that is written to: all streams are read, then one append that writes nothing
checks in one step that each is still at the version that was read. What had moved is read again, until nothing has.

Rules: only the journal's own contract is used, so a copy of any journal can be put into any other. A stream is put back
with its versions: where a snapshot took the place of events, as many empty ones are written and replaced by it. Leases
are not copied: who held them is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrecon.ops.journal import Append, History, Journal, StaleWriter

_AT_ONCE = 64
"""Streams that are read or written together: they share round trips, and the server's syncs of its disk."""

_WRITTEN_AT_ONCE = 1_000
_NOTED_AT_ONCE = 1_000
_MOST_TRIES = 2_000
_NOTHING = b"{}"


class NeverStill(Exception):  # noqa: N818 - named for what happened
    """A task was written to faster than it could be read."""


@dataclass(frozen=True, slots=True)
class TaskCopy:
    """A task of a journal at one moment.

    Attributes:
        task: Its name.
        streams: Its streams by name.
        remembered: Keys that were noted, each with the instant until which it is.
    """

    task: str
    streams: Mapping[str, History]
    remembered: tuple[tuple[str, int], ...]


async def copy_task(journal: Journal, task: str) -> TaskCopy:
    """Read a task as it is at one moment.

    Raises:
        NeverStill: It never stood still for long enough.
        JournalUnavailable: The journal does not answer.
    """
    remembered = await journal.remembered(task)
    streams = await _load(journal, task, await journal.streams(task))
    moving: set[str] = set()
    for _ in range(_MOST_TRIES):
        try:
            await journal.append(task, [Append(name, at.version, ()) for name, at in streams.items()])
        except StaleWriter as moved:
            moving.add(moved.stream)  # those that move do so together: each time they are all read again, at once
            streams |= await _load(journal, task, sorted(moving))
            continue
        missing = set(await journal.streams(task)) - streams.keys()  # they may have begun before the check
        if not missing:
            return TaskCopy(task, {name: at for name, at in streams.items() if at.version}, remembered)
        streams |= await _load(journal, task, sorted(missing))
    raise NeverStill(f"task {task!r} is written to faster than it can be read: copy it when less happens")


async def put_task(journal: Journal, copy: TaskCopy) -> None:
    """Write a task into a journal that does not know it.

    Raises:
        StaleWriter: It does know it.
        JournalUnavailable: It does not answer; what was written is not whole.
    """
    streams = list(copy.streams.items())
    for first in range(0, len(streams), _AT_ONCE):
        await asyncio.gather(*(_put(journal, copy.task, *each) for each in streams[first : first + _AT_ONCE]))
    for first in range(0, len(copy.remembered), _NOTED_AT_ONCE):
        await journal.remember_all(copy.task, copy.remembered[first : first + _NOTED_AT_ONCE])


async def _put(journal: Journal, task: str, stream: str, history: History) -> None:
    await _append(journal, task, stream, 0, [_NOTHING] * history.snapshot_version)
    if history.snapshot is not None:
        await journal.compact(task, stream, history.snapshot_version, history.snapshot)
    await _append(journal, task, stream, history.snapshot_version, [each.event for each in history.events])


async def _load(journal: Journal, task: str, names: Sequence[str]) -> dict[str, History]:
    loaded: dict[str, History] = {}
    for first in range(0, len(names), _AT_ONCE):
        some = names[first : first + _AT_ONCE]
        loaded |= zip(some, await asyncio.gather(*(journal.load(task, name) for name in some)), strict=True)
    return loaded


async def _append(journal: Journal, task: str, stream: str, after: int, events: Sequence[bytes]) -> None:
    for first in range(0, len(events), _WRITTEN_AT_ONCE):
        some = tuple(events[first : first + _WRITTEN_AT_ONCE])
        await journal.append(task, [Append(stream, after + first, some)])
