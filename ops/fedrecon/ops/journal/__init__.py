"""The journal: everything a service must remember, as streams of events, and nothing else.

A *task* owns streams; a stream is a list of events with versions 1, 2, 3, ... (version 0 is the empty stream). State is
what replaying a stream gives; recovery is replay. Tensors never enter: they lie in blobs, by digest.

Rules every implementation keeps (one contract suite runs over all of them):

- An append covers several streams of one task and is applied whole or not at all. It names the version after which it
  writes; if any stream has moved, nothing is applied and `StaleWriter` says which.
- An append that returned is durable: it survives `kill -9` of every process and loss of power.
- An append whose answer was lost may be repeated by the journal itself: it is applied once.
- A lease carries a fencing token that only grows within a task. An append under a lease that somebody else has taken,
  or that was released, is refused with `LeaseLost`; the store's clock alone judges whether a lease has run out.
- A cancelled append may or may not have been applied: load again before going on.
- Names are part of keys and hash tags, so they are restricted (`checked_name`); what devices send never becomes a name.

Stores differ in where versions live, so a store restored to an earlier state (failover to a lagging replica) shows up
as `StaleWriter` with `actual < expected` at the first append of a writer that was ahead of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TAIL_LIMIT = 1000
"""Events that one `tail` returns at most; ask again from the last one's version for more."""

_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,200}\Z")


class JournalError(Exception):
    """Something the journal refused or could not do."""


class StaleWriter(JournalError):  # noqa: N818 - named for what happened, as events are
    """A stream was not at the version the writer believed: somebody else wrote. Nothing was applied.

    Attributes:
        stream: The first stream that had moved.
        expected: The version the writer believed.
        actual: The version the stream has.
    """

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(f"stream {stream!r} is at version {actual}, not {expected}: load it again and decide anew")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class LeaseLost(JournalError):  # noqa: N818 - the same
    """The lease is no longer the newest of its name: somebody else holds or held it. Nothing was applied."""

    def __init__(self, lease: "Lease") -> None:
        super().__init__(
            f"lease {lease.name!r} of task {lease.task!r} (token {lease.token}) was taken over, released or forgotten: "
            "stop acting for it and acquire it again"
        )
        self.lease = lease


class HistoryCompacted(JournalError):  # noqa: N818 - the same
    """Events asked for were replaced by a snapshot.

    Attributes:
        stream: The stream.
        after: The version after which events were asked for.
        snapshot_version: The version the snapshot stands at.
    """

    def __init__(self, stream: str, after: int, snapshot_version: int) -> None:
        super().__init__(
            f"events of stream {stream!r} up to version {snapshot_version} were compacted, but those after {after} "
            "were asked for: load the stream and go on from its version"
        )
        self.stream = stream
        self.after = after
        self.snapshot_version = snapshot_version


class JournalUnavailable(JournalError):  # noqa: N818 - the same
    """The store could not be reached, or would not write, for as long as the journal is willing to wait."""


class DurabilityRefused(JournalError):  # noqa: N818 - the same
    """The store does not keep what it acknowledges; the text names the settings to change."""


@dataclass(frozen=True, slots=True)
class Append:
    """Events to write to one stream.

    Attributes:
        stream: Name of the stream within its task.
        after: Version the stream must have; 0 for a stream that does not exist yet.
        events: Encoded events, in order. Empty: only the version is checked.
    """

    stream: str
    after: int
    events: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event as it lies in its stream.

    Attributes:
        version: Position in the stream, from 1.
        event: The encoded event.
    """

    version: int
    event: bytes


@dataclass(frozen=True, slots=True)
class History:
    """All there is to know about a stream.

    Attributes:
        version: Version of the last event; 0 for a stream that does not exist.
        snapshot: State at `snapshot_version` in its owner's encoding; None where nothing was compacted.
        snapshot_version: Version the snapshot stands at; 0 without one.
        events: Events `snapshot_version + 1 ... version`.
    """

    version: int
    snapshot: bytes | None
    snapshot_version: int
    events: tuple[Recorded, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act alone for a name, until somebody takes it over.

    Attributes:
        task: Task it belongs to.
        name: What it is the right to.
        holder: Who holds it; unique to one run of one process.
        token: Fencing token; a later lease of the same task has a larger one.
        milliseconds: How long it lasts from each acquisition or renewal.
        until_milliseconds: When it runs out, Unix milliseconds of the store's clock.
    """

    task: str
    name: str
    holder: str
    token: int
    milliseconds: int
    until_milliseconds: int


class Journal(Protocol):
    """A durable store of streams, leases and remembered keys. See the module for the rules."""

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        """Write events to one or several streams of a task, whole or not at all.

        Args:
            task: Task that owns the streams.
            appends: At most one per stream.
            lease: The lease under which the writer acts; its task must be `task`.

        Raises:
            StaleWriter: A stream was not at the version named.
            LeaseLost: The lease is not the newest of its name.
            JournalUnavailable: The store did not answer in time; the append may or may not have been applied.
        """
        ...

    async def load(self, task: str, stream: str) -> History:
        """Read a whole stream: its snapshot, and the events after it."""
        ...

    async def tail(self, task: str, stream: str, after: int, wait_milliseconds: int) -> tuple[Recorded, ...]:
        """Read events after a version, waiting for one if there is none yet.

        Args:
            task: Task that owns the stream.
            stream: Name of the stream; it need not exist yet.
            after: Version of the last event already known.
            wait_milliseconds: How long to wait; 0 for not at all.

        Returns:
            The next events, at most `TAIL_LIMIT`; empty if none came in time.

        Raises:
            HistoryCompacted: Events after `after` are gone, since a snapshot took their place.
        """
        ...

    async def compact(self, task: str, stream: str, through: int, snapshot: bytes) -> None:
        """Replace the events up to a version by the state they lead to. Nothing happens if that was done already.

        Args:
            task: Task that owns the stream.
            stream: Name of the stream.
            through: Version the snapshot stands at; at most the stream's.
            snapshot: State at that version, in its owner's encoding.

        Raises:
            StaleWriter: The stream has not reached `through`.
        """
        ...

    async def discard(self, task: str, stream: str, through: int) -> None:
        """Delete a stream that has ended. Nothing happens if it is gone already; its name must not be used again.

        Args:
            task: Task that owns the stream.
            stream: Name of the stream.
            through: Version of its last event.

        Raises:
            StaleWriter: The stream is not at `through`.
        """
        ...

    async def acquire(self, task: str, name: str, holder: str, milliseconds: int) -> Lease | None:
        """Take a lease that is free, has run out, or is already the holder's (whose earlier token ends then).

        Args:
            task: Task it belongs to.
            name: What it is the right to.
            holder: Who asks; unique to one run of one process.
            milliseconds: How long it lasts, from now and from each renewal.

        Returns:
            The lease, or None while somebody else holds it.
        """
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Let a lease last anew, also one that ran out if nobody has taken it since.

        Raises:
            LeaseLost: It is not the newest of its name.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """Give a lease back, so that others need not wait. Nothing happens if it was lost already."""
        ...

    async def remember(self, task: str, key: str, until_milliseconds: int) -> bool:
        """Note a key until an instant.

        Args:
            task: Task it belongs to.
            key: Any name, for instance a nonce in hex.
            until_milliseconds: Unix milliseconds of the store's clock; a passed instant notes nothing.

        Returns:
            True if the key was not noted before, False if it was and still is.
        """
        ...

    async def remember_all(self, task: str, notes: Sequence[tuple[str, int]]) -> tuple[bool, ...]:
        """Note several keys at once, each as `remember` would: one round trip for all of them.

        Args:
            task: Task they belong to.
            notes: Keys, each with the instant until which it is noted; a key that comes twice is new once.

        Returns:
            For each whether it was new.
        """
        ...

    async def forget(self, task: str, key: str) -> None:
        """Remove a key that was noted; nothing happens if it was not.

        Args:
            task: Task it belongs to.
            key: As it was given to `remember`.
        """
        ...

    async def remembered(self, task: str) -> tuple[tuple[str, int], ...]:
        """Return all keys that are noted, in order, each with the instant until which it is: for copies."""
        ...

    async def streams(self, task: str, prefix: str = "") -> tuple[str, ...]:
        """Name the streams of a task that start with a prefix, in order."""
        ...

    async def ping(self) -> None:
        """Return if the store answers.

        Raises:
            JournalUnavailable: It does not.
        """
        ...

    async def close(self) -> None:
        """Give connections back. Appends still on their way end with `JournalUnavailable`."""
        ...


def checked_name(name: str) -> str:
    """Return a name of a task, stream, lease or key if it is one.

    Args:
        name: 1 to 200 of letters, digits and `. _ : / -`.

    Raises:
        ValueError: If it is not.

    Example:
        >>> checked_name("round/000001-1")
        'round/000001-1'
    """
    if _NAME.match(name) is None:
        raise ValueError(
            f"{name!r} cannot name a task, stream, lease or key: use 1 to 200 of letters, digits and ._:/-"
        )
    return name


def checked_version(version: int) -> int:
    """Return a version if it is one.

    Raises:
        ValueError: If it is negative.
    """
    if version < 0:
        raise ValueError(f"the version of a stream counts from 0 (empty), got {version}")
    return version


def checked_appends(task: str, appends: Sequence[Append], lease: Lease | None) -> tuple[Append, ...]:
    """Return appends that make sense together, before a store sees them.

    Raises:
        ValueError: For an unusable name, a stream named twice, a negative version, or a lease of another task.
    """
    checked_name(task)
    names = [checked_name(append.stream) for append in appends]
    if len(set(names)) != len(names):
        raise ValueError(f"an append names a stream twice: {names}; put its events into one Append")
    for append in appends:
        checked_version(append.after)
    if lease is not None and lease.task != task:
        raise ValueError(f"the lease belongs to task {lease.task!r}, the append to {task!r}")
    return tuple(appends)
