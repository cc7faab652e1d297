"""The journal in memory: the oracle the Redis one is compared with, and the store of unit tests and simulations.

It keeps every rule of `fedrecon.ops.journal` except durability. One object is one store: give the same object to all
services of a test. Leases and remembered keys follow the given clock.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedrecon.ops.clock import Clock, SystemClock
from fedrecon.ops.journal import (
    TAIL_LIMIT,
    Append,
    History,
    HistoryCompacted,
    JournalUnavailable,
    Lease,
    LeaseLost,
    Recorded,
    StaleWriter,
    checked_appends,
    checked_name,
    checked_version,
)

_LEAST_PURGED = 1024
"""Remembered keys below which none is looked for that has passed."""


@dataclass(slots=True)
class _Stream:
    """One stream; its version is `snapshot_version + len(events)`."""

    snapshot: bytes | None = None
    snapshot_version: int = 0
    events: list[bytes] = field(default_factory=list)

    @property
    def version(self) -> int:
        return self.snapshot_version + len(self.events)

    def after(self, version: int, limit: int | None = None) -> tuple[Recorded, ...]:
        start = version - self.snapshot_version
        events = self.events[start : None if limit is None else start + limit]
        return tuple(Recorded(version + number, event) for number, event in enumerate(events, start=1))


@dataclass(slots=True)
class _Task:
    """Everything that belongs to one task."""

    streams: dict[str, _Stream] = field(default_factory=dict)
    token: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)
    remembered: dict[str, int] = field(default_factory=dict)
    purge_at: int = _LEAST_PURGED

    def forget_passed(self, now: int) -> None:
        """Drop remembered keys whose instant has passed, once they may be half of all: each costs little that way."""
        if len(self.remembered) >= self.purge_at:
            self.remembered = {key: until for key, until in self.remembered.items() if until > now}
            self.purge_at = max(_LEAST_PURGED, 2 * len(self.remembered))


class MemoryJournal:
    """A journal that lives as long as the object.

    Args:
        clock: Judges leases and remembered keys, and ends waiting; the machine's by default.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._tasks: dict[str, _Task] = {}
        self._written: dict[tuple[str, str], asyncio.Event] = {}
        self._closed = False

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        """Write events to one or several streams of a task, whole or not at all. See `Journal.append`."""
        wanted = checked_appends(task, appends, lease)
        owner = self._owner(task)
        if lease is not None and not _is_newest(owner, lease):
            raise LeaseLost(lease)
        for each in wanted:
            actual = _version(owner, each.stream)
            if actual != each.after:
                raise StaleWriter(each.stream, each.after, actual)
        for each in wanted:
            if each.events:
                owner.streams.setdefault(each.stream, _Stream()).events.extend(each.events)
                self._wake(task, each.stream)

    async def load(self, task: str, stream: str) -> History:
        """Read a whole stream. See `Journal.load`."""
        found = self._owner(task).streams.get(checked_name(stream), _Stream())
        return History(found.version, found.snapshot, found.snapshot_version, found.after(found.snapshot_version))

    async def tail(self, task: str, stream: str, after: int, wait_milliseconds: int) -> tuple[Recorded, ...]:
        """Read events after a version, waiting for one if there is none yet. See `Journal.tail`."""
        checked_name(stream), checked_version(after)
        until = self._clock.now_milliseconds() + wait_milliseconds
        while True:
            found = self._owner(task).streams.get(stream, _Stream())
            if after < found.snapshot_version:
                raise HistoryCompacted(stream, after, found.snapshot_version)
            if (events := found.after(after, TAIL_LIMIT)) or self._clock.now_milliseconds() >= until:
                return events
            await self._wait(task, stream, until)

    async def compact(self, task: str, stream: str, through: int, snapshot: bytes) -> None:
        """Replace the events up to a version by the state they lead to. See `Journal.compact`."""
        found = self._owner(task).streams.get(checked_name(stream), _Stream())
        if through > found.version:
            raise StaleWriter(stream, through, found.version)
        if through > found.snapshot_version:
            del found.events[: through - found.snapshot_version]
            found.snapshot, found.snapshot_version = snapshot, through
            self._wake(task, stream)

    async def discard(self, task: str, stream: str, through: int) -> None:
        """Delete a stream that has ended. See `Journal.discard`."""
        owner = self._owner(task)
        actual = _version(owner, checked_name(stream))
        if actual not in {0, through}:
            raise StaleWriter(stream, through, actual)
        owner.streams.pop(stream, None)

    async def acquire(self, task: str, name: str, holder: str, milliseconds: int) -> Lease | None:
        """Take a lease that is free, has run out, or is already the holder's. See `Journal.acquire`."""
        owner, now = self._owner(task), self._clock.now_milliseconds()
        current = owner.leases.get(checked_name(name))
        if current is not None and current.holder != holder and current.until_milliseconds > now:
            return None
        owner.token += 1
        lease = Lease(task, name, checked_name(holder), owner.token, milliseconds, now + milliseconds)
        owner.leases[name] = lease
        return lease

    async def renew(self, lease: Lease) -> Lease:
        """Let a lease last anew. See `Journal.renew`."""
        owner = self._owner(lease.task)
        if not _is_newest(owner, lease):
            raise LeaseLost(lease)
        renewed = replace(lease, until_milliseconds=self._clock.now_milliseconds() + lease.milliseconds)
        owner.leases[lease.name] = renewed
        return renewed

    async def release(self, lease: Lease) -> None:
        """Give a lease back. See `Journal.release`."""
        owner = self._owner(lease.task)
        if _is_newest(owner, lease):
            del owner.leases[lease.name]

    async def remember(self, task: str, key: str, until_milliseconds: int) -> bool:
        """Note a key until an instant. See `Journal.remember`."""
        owner, now = self._owner(task), self._clock.now_milliseconds()
        if owner.remembered.get(checked_name(key), now) > now:
            return False
        owner.remembered[key] = until_milliseconds
        owner.forget_passed(now)
        return True

    async def remember_all(self, task: str, notes: Sequence[tuple[str, int]]) -> tuple[bool, ...]:
        """Note several keys at once. See `Journal.remember_all`."""
        return tuple([await self.remember(task, key, until) for key, until in notes])

    async def forget(self, task: str, key: str) -> None:
        """Remove a key that was noted. See `Journal.forget`."""
        self._owner(task).remembered.pop(checked_name(key), None)

    async def remembered(self, task: str) -> tuple[tuple[str, int], ...]:
        """Return all keys that are noted. See `Journal.remembered`."""
        now = self._clock.now_milliseconds()
        return tuple(sorted((key, until) for key, until in self._owner(task).remembered.items() if until > now))

    async def streams(self, task: str, prefix: str = "") -> tuple[str, ...]:
        """Name the streams of a task that start with a prefix, in order. See `Journal.streams`."""
        return tuple(
            sorted(
                name for name in self._owner(task).streams if name.startswith(checked_name(prefix) if prefix else "")
            )
        )

    async def ping(self) -> None:
        """Return if the journal is open. See `Journal.ping`."""
        self._owner("ping")

    async def close(self) -> None:
        """Refuse everything from now on. See `Journal.close`."""
        self._closed = True
        for written in self._written.values():
            written.set()

    def _owner(self, task: str) -> _Task:
        if self._closed:
            raise JournalUnavailable("the journal was closed: open a new one")
        return self._tasks.setdefault(checked_name(task), _Task())

    def _wake(self, task: str, stream: str) -> None:
        written = self._written.pop((task, stream), None)
        if written is not None:
            written.set()

    async def _wait(self, task: str, stream: str, until_milliseconds: int) -> None:
        written = self._written.setdefault((task, stream), asyncio.Event())
        waits = [
            asyncio.ensure_future(written.wait()),
            asyncio.ensure_future(self._clock.sleep_until(until_milliseconds)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def _version(owner: _Task, stream: str) -> int:
    found = owner.streams.get(stream)
    return 0 if found is None else found.version


def _is_newest(owner: _Task, lease: Lease) -> bool:
    current = owner.leases.get(lease.name)
    return current is not None and current.token == lease.token
