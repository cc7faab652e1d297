"""The journal on Redis 7.0 or later, or Valkey.

Layout, all keys of a task under one hash tag so that a cluster keeps them together:

- `fedrecon:{TASK}:streams`: sorted set of the names of its streams
- `fedrecon:{TASK}:head:STREAM`: hash of `version`, `batch` (id of the last append), `snapshot`, `snapshot_version`
- `fedrecon:{TASK}:events:STREAM`: Redis stream whose entry `V-0` is the event of version V
- `fedrecon:{TASK}:lease:NAME`, `fedrecon:{TASK}:token`: leases, and the counter their tokens come from
- `fedrecon:{TASK}:remembered:KEY`: one string per remembered key, which Redis expires

Every command may be repeated: an append carries a random batch id that its first event keeps, a remembered key holds
the id of whoever noted it, and the other scripts give the same result twice.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from redis.exceptions import RedisError

from fedrecon.ops.journal import (
    TAIL_LIMIT,
    Append,
    DurabilityRefused,
    History,
    HistoryCompacted,
    JournalError,
    JournalUnavailable,
    Lease,
    LeaseLost,
    Recorded,
    StaleWriter,
    checked_appends,
    checked_name,
    checked_version,
)
from fedrecon.ops.journal.durability import check_durability, fields_of
from fedrecon.ops.journal.shared_connection import Argument, Note, SharedConnection

_KEPT_AFTER_LEASE_MILLISECONDS = 24 * 60 * 60 * 1000
"""How long a lease that ran out is still the newest; after that it is forgotten, and its holder has lost it."""

_LONGEST_BLOCK_MILLISECONDS = 5_000
"""Blocking reads end this often, so that nobody waits long on a connection that died silently."""

_PAUSE_AFTER_FAILURE_SECONDS = 0.1
_SCANNED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Standing:
    """How a journal's server stands.

    Attributes:
        used_ratio: Share of the memory that it may use, or else of its machine's, that it uses.
        server_seconds: Its clock, Unix seconds.
    """

    used_ratio: float
    server_seconds: float


class RedisJournal:
    """A journal that many processes share. Make it with `RedisJournal.connect`, inside the event loop that uses it.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        accepted_loss: Take a server that can lose what it acknowledged.
        patience_seconds: How long a command is repeated while the server is away.
        note: Told how every trip to the server ended, and its seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        accepted_loss: bool = False,
        patience_seconds: float = 60.0,
        note: Note | None = None,
    ) -> None:
        self._shared = SharedConnection(
            url, patience_seconds, lambda call: check_durability(call, accepted_loss=accepted_loss), note
        )
        self._waits: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._idle: list[Any] = []  # connections that blocked for a tail and are free again

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        accepted_loss: bool = False,
        patience_seconds: float = 60.0,
        note: Note | None = None,
    ) -> Self:
        """Open a journal and see that its server is there and durable.

        Raises:
            DurabilityRefused: If the server does not keep what it acknowledges.
            JournalUnavailable: If it cannot be reached.
            ValueError: If the URL is of another kind.
        """
        journal = cls(url, accepted_loss=accepted_loss, patience_seconds=patience_seconds, note=note)
        try:
            await journal.ping()
        except BaseException:
            await journal.close()
            raise
        return journal

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        """Write events to one or several streams of a task, whole or not at all. See `Journal.append`."""
        wanted = checked_appends(task, appends, lease)
        lease_name = "none" if lease is None else lease.name
        keys = [_key(task, "streams"), _key(task, "lease", lease_name)]
        arguments: list[Argument] = [os.urandom(16), "" if lease is None else lease.token]
        for each in wanted:
            keys += _stream_keys(task, each.stream)
            arguments += [each.stream, each.after, len(each.events), *each.events]
        match await self._shared.run("append", keys, *arguments):
            case [b"stale", name, actual]:
                stream = name.decode()
                raise StaleWriter(stream, next(each.after for each in wanted if each.stream == stream), actual)
            case [b"fenced"] if lease is not None:
                raise LeaseLost(lease)

    async def load(self, task: str, stream: str) -> History:
        """Read a whole stream. See `Journal.load`."""
        keys = _stream_keys(task, checked_name(stream))
        version, snapshot_version, snapshot, events = await self._shared.run("read", keys, "", "")
        if snapshot_version + len(events) != version:
            raise JournalError(
                f"stream {stream!r} of task {task!r} has {len(events)} events between its snapshot "
                f"({snapshot_version}) and its version ({version}): its keys were changed by something else"
            )
        return History(version, snapshot, snapshot_version, _recorded(snapshot_version, events))

    async def tail(self, task: str, stream: str, after: int, wait_milliseconds: int) -> tuple[Recorded, ...]:
        """Read events after a version, waiting for one if there is none yet. See `Journal.tail`."""
        keys = _stream_keys(task, checked_name(stream))
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_milliseconds / 1000
        while True:
            _, snapshot_version, _, events = await self._shared.run("read", keys, checked_version(after), TAIL_LIMIT)
            if after < snapshot_version:
                raise HistoryCompacted(stream, after, snapshot_version)
            if events or (remaining := until - loop.time()) <= 0:
                return _recorded(after, events)
            await asyncio.wait([self._wait_for_write(task, stream, after)], timeout=remaining)

    async def compact(self, task: str, stream: str, through: int, snapshot: bytes) -> None:
        """Replace the events up to a version by the state they lead to. See `Journal.compact`."""
        keys = _stream_keys(task, checked_name(stream))
        match await self._shared.run("compact", keys, checked_version(through), snapshot):
            case [b"stale", actual]:
                raise StaleWriter(stream, through, actual)

    async def discard(self, task: str, stream: str, through: int) -> None:
        """Delete a stream that has ended. See `Journal.discard`."""
        keys = [_key(task, "streams"), *_stream_keys(task, checked_name(stream))]
        match await self._shared.run("discard", keys, stream, checked_version(through)):
            case [b"stale", actual]:
                raise StaleWriter(stream, through, actual)

    async def acquire(self, task: str, name: str, holder: str, milliseconds: int) -> Lease | None:
        """Take a lease that is free, has run out, or is already the holder's. See `Journal.acquire`."""
        keys = [_key(task, "lease", name), _key(task, "token")]
        taken = await self._shared.run(
            "acquire", keys, checked_name(holder), milliseconds, _KEPT_AFTER_LEASE_MILLISECONDS
        )
        return None if taken is None else Lease(task, name, holder, taken[0], milliseconds, taken[1])

    async def renew(self, lease: Lease) -> Lease:
        """Let a lease last anew. See `Journal.renew`."""
        renewed = await self._shared.run(
            "renew",
            [_key(lease.task, "lease", lease.name)],
            lease.token,
            lease.milliseconds,
            _KEPT_AFTER_LEASE_MILLISECONDS,
        )
        if renewed is None:
            raise LeaseLost(lease)
        return replace(lease, until_milliseconds=renewed[0])

    async def release(self, lease: Lease) -> None:
        """Give a lease back. See `Journal.release`."""
        await self._shared.run("release", [_key(lease.task, "lease", lease.name)], lease.token)

    async def remember(self, task: str, key: str, until_milliseconds: int) -> bool:
        """Note a key until an instant. See `Journal.remember`."""
        mine = os.urandom(16)
        noted = await self._shared.call(
            "SET", _key(task, "remembered", key), mine, "NX", "GET", "PXAT", max(until_milliseconds, 1)
        )
        return noted is None or noted == mine

    async def remember_all(self, task: str, notes: Sequence[tuple[str, int]]) -> tuple[bool, ...]:
        """Note several keys at once. See `Journal.remember_all`."""
        if not notes:
            return ()
        first: dict[str, int] = {}
        for place, (key, _) in enumerate(notes):
            first.setdefault(key, place)
        keys = [_key(task, "remembered", key) for key in first]
        instants = [max(notes[place][1], 1) for place in first.values()]
        answers = await self._shared.run("remember", keys, os.urandom(16), *instants)
        new = {place for place, is_new in zip(first.values(), answers, strict=True) if is_new}
        return tuple(place in new for place in range(len(notes)))

    async def forget(self, task: str, key: str) -> None:
        """Remove a key that was noted. See `Journal.forget`."""
        await self._shared.call("DEL", _key(task, "remembered", key))

    async def remembered(self, task: str) -> tuple[tuple[str, int], ...]:
        """Return all keys that are noted. See `Journal.remembered`."""
        before, cursor = f"fedrecon:{{{checked_name(task)}}}:remembered:", b"0"
        found: dict[str, int] = {}
        while True:
            pattern = f"{before}*"  # names hold nothing that a pattern would read
            cursor, keys = await self._shared.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED_AT_ONCE)
            instants = await asyncio.gather(*(self._shared.call("PEXPIRETIME", key) for key in keys))
            pairs = zip(keys, instants, strict=True)
            found |= {key.decode().removeprefix(before): until for key, until in pairs if until > 0}  # others have gone
            if cursor == b"0":
                return tuple(sorted(found.items()))

    async def streams(self, task: str, prefix: str = "") -> tuple[str, ...]:
        """Name the streams of a task that start with a prefix, in order. See `Journal.streams`."""
        bounds = ("-", "+") if not prefix else (f"[{checked_name(prefix)}", f"({prefix}\x7f")
        names = await self._shared.call("ZRANGE", _key(task, "streams"), *bounds, "BYLEX")
        return tuple(name.decode() for name in names)

    async def ping(self) -> None:
        """Return if the server answers. See `Journal.ping`."""
        await self._shared.call("PING")

    async def standing(self) -> Standing:
        """Ask the server how full it is, and what time it has.

        Raises:
            JournalUnavailable: If it does not say.
        """
        memory, instant = await asyncio.gather(self._shared.call("INFO", "memory"), self._shared.call("TIME"))
        told = fields_of(memory)
        limit = int(told.get("maxmemory", 0)) or int(told.get("total_system_memory", 0))
        seconds, microseconds = (int(part) for part in instant)
        return Standing(int(told["used_memory"]) / limit if limit else 0.0, seconds + microseconds / 1e6)

    async def close(self) -> None:
        """Give all connections back. See `Journal.close`."""
        await self._shared.close()  # first, so that who waits in a tail does not begin to wait again
        waits = list(self._waits.values())
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for connection in self._idle:
            await _drop(connection)
        self._idle.clear()

    def _wait_for_write(self, task: str, stream: str, after: int) -> asyncio.Task[None]:
        """Return a task that ends when a stream was written to, at the latest after a while.

        All who wait after one version of a stream share it, and with it one blocked connection: each has just read
        that there is nothing after that version, so whatever is written next concerns them all.
        """
        place = (task, stream, after)
        wait = self._waits.get(place)
        if wait is None:
            wait = asyncio.create_task(self._block(task, stream, after), name="journal tail")
            self._waits[place] = wait
            wait.add_done_callback(lambda _: self._waits.pop(place, None))
        return wait

    async def _block(self, task: str, stream: str, after: int) -> None:
        connection: Any = None
        try:
            connection = self._idle.pop() if self._idle else await self._shared.connect()
            _, events_key = _stream_keys(task, stream)
            await connection.send_command(
                "XREAD", "COUNT", 1, "BLOCK", _LONGEST_BLOCK_MILLISECONDS, "STREAMS", events_key, f"{after}-0"
            )
            await connection.read_response()  # only the wake-up counts: every waiter reads for itself
            self._idle.append(connection)
            connection = None
        except (RedisError, OSError, DurabilityRefused, JournalUnavailable):
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)  # the waiters' own reads repeat, and say what is wrong
        finally:
            if connection is not None:
                await _drop(connection)


async def _drop(connection: Any) -> None:
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def _key(task: str, kind: str, *name: str) -> str:
    return ":".join((f"fedrecon:{{{checked_name(task)}}}", kind, *(checked_name(part) for part in name)))


def _stream_keys(task: str, stream: str) -> list[str]:
    return [_key(task, "head", stream), _key(task, "events", stream)]


def _recorded(after: int, events: list[bytes]) -> tuple[Recorded, ...]:
    return tuple(Recorded(after + number, event) for number, event in enumerate(events, start=1))
