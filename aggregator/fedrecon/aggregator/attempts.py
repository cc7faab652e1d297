"""The attempts whose sums lie here: opened, found again after a restart, given up when forgotten, and removed.

An attempt is here a part of one: the groups of a round lie in parts on several aggregators.

Streams: the events of a group are stream `group/ROUND.ATTEMPT/INDEX` of its task, and `group/ROUND.ATTEMPT.PART/INDEX`
in all parts but the first. The names of the tasks that have such streams are stream `sums` of the task `registry`,
written before a task's first group, so that a start finds every group without asking a coordinator.

Rules:
- The groups of an attempt are opened in one append; the same attempt again gets the same groups.
- Groups that another aggregator holds are taken over when somebody asks for them here and the other one's lease is free
  (`holding`): one append for all of them, after which the other one can write to none. Otherwise they are none of ours,
  until everybody has forgotten them (`leftovers`).
- A coordinator has committed or abandoned an attempt when it expires, and round tokens end then: sums go at once,
  streams some hours later.
- An attempt that cannot be read is given up, so that the others go on: nobody can merge it, its coordinator is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import grpc

from fedrecon.aggregator import groups
from fedrecon.aggregator.attempt import Attempt
from fedrecon.aggregator.group_events import Config, Key, Opened, Phase, TakenOver
from fedrecon.aggregator.groups import Group, IllegalEventError
from fedrecon.aggregator.holding import Holding
from fedrecon.aggregator.secure_sum import SecureSum
from fedrecon.aggregator.snapshots import SnapshotLostError
from fedrecon.aggregator.summing import CODEC, Storage, Summing
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.journal import Append, History, Journal, JournalError, JournalUnavailable, StaleWriter
from fedrecon.ops.journal.codec import Codec
from fedrecon.ops.logs import logger_of
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.fixed_point import Vector

REGISTRY_TASK = "registry"
REGISTRY_STREAM = "sums"
STREAM_PREFIX = "group/"
_GROUP_BYTES = 16
_MOST_GROUPS = 10_000
"""Of an attempt: each has a stream and, once it has reports, a sum on disk."""

_log = logger_of(__name__)

Protocols = Callable[[Config], SecureSum]
"""Gives the protocol of a group. Raises ValueError if there is none such."""


@dataclass(frozen=True, slots=True)
class TaskJoined:
    """A task has groups from now on.

    Attributes:
        task: its name.
    """

    task: str


_UNREADABLE = (JournalError, IllegalEventError, ValueError)
"""What reading a stream raises that holds what this version does not understand, or that contradicts itself."""

_REGISTRY_CODEC: Codec[TaskJoined] = Codec(TaskJoined)


@dataclass(slots=True)
class _Known:
    """A group as journal and disk have it.

    Attributes:
        state: as the journal has it.
        version: of its stream.
        protocol: how it is summed.
        total: the sum of its acknowledged reports; None without any.
        is_lost: whether the disk has not what the journal names.
    """

    state: Group
    version: int
    protocol: SecureSum
    total: Vector | None = None
    is_lost: bool = False


class Attempts:
    """All attempts whose groups lie here.

    Args:
        storage: what they are kept with.
        protocols: gives the protocol of a group.
        keep_milliseconds: how long ended groups are kept after the later of their end and their expiry.
        holding: the lease that this aggregator holds its groups under.
    """

    def __init__(self, storage: Storage, protocols: Protocols, keep_milliseconds: int, holding: Holding) -> None:
        self._storage = storage
        self._holding = holding
        self._protocols = protocols
        self._keep_milliseconds = keep_milliseconds
        self._attempts: dict[Key, Attempt] = {}
        self._tasks: set[str] = set()
        self._opening = asyncio.Lock()

    def find(self, round_key: RoundKey) -> Attempt:
        """Returns an attempt.

        Raises:
            Refusal: it was never opened here, or was removed long ago.
        """
        attempt = self._attempts.get((round_key.task, round_key.round, round_key.attempt, round_key.part))
        if attempt is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_ROUND",
                "This aggregator has no groups of the attempt.",
                "A device ends its session; a coordinator opens the attempt first.",
            )
        return attempt

    async def open(self, config: Config) -> Attempt:
        """Opens the groups of an attempt, or finds them as they were opened.

        Raises:
            Refusal: the attempt was opened for something else, on another aggregator, or is out of date.
            JournalUnavailable: the journal does not answer; the same call again finds out what became of it.
        """
        key = config.key
        async with self._opening:
            attempt = self._attempts.get(key)
            if attempt is not None and (moved := await self._has_moved(attempt)):
                _log.error("groups were taken over" if moved > 0 else "journal went back", **_where(key))
                self._drop(key, attempt)
                attempt = None
            if attempt is None:
                attempt = await self._open(config, key)
        if replace(attempt.config, expires_milliseconds=0) != replace(config, expires_milliseconds=0):
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                "ATTEMPT_DIFFERS",
                "The attempt was opened for another layout, cohort, plan or checkpoint.",
                "Open the next attempt instead.",
            )
        return attempt

    async def recover(self) -> int:
        """Finds every group again that this aggregator holds. Call it once, before anything else.

        Returns:
            Acknowledged reports in groups that still take reports, or are not merged yet.

        Raises:
            JournalUnavailable: the journal does not answer.
            JournalError: the list of tasks cannot be read.
        """
        await self._read_registry()
        for task in sorted(self._tasks):
            for key, names in (await streams_of(self._storage.journal, task)).items():
                try:
                    await self._recover_attempt(task, names)
                except JournalUnavailable:
                    raise
                except _UNREADABLE as error:
                    _log.error("attempt given up: its groups cannot be read", **_where(key), why=str(error))
        live = [one for attempt in self._attempts.values() for one in attempt.summings]
        reports = sum(len(one.group.reports) for one in live if one.group.phase is not Phase.ABORTED)
        self._storage.measures.recovered_reports.inc(reports)
        _log.info("sums recovered", groups=len(live), reports=reports)
        return reports

    async def tidy(self) -> None:
        """Gives up groups that nobody closed in time, and removes what was kept long enough."""
        for key, attempt in list(self._attempts.items()):
            try:
                await self._tidy(key, attempt)
            except (JournalError, Refusal, OSError) as error:  # tried again the next time
                _log.warning("attempt not tidied", **_where(key), why=type(error).__name__)

    async def confirm(self) -> None:
        """Lets go of groups that somebody else holds by now.

        Raises:
            JournalUnavailable: the journal does not answer.
        """
        for key, attempt in list(self._attempts.items()):
            if await self._has_moved(attempt) > 0:
                _log.warning("groups were taken over", **_where(key))
                self._drop(key, attempt)

    @property
    def open_groups(self) -> int:
        """How many groups are at work here: neither closed nor given up."""
        return sum(not one.group.ended for attempt in self._attempts.values() for one in attempt.summings)

    @property
    def files(self) -> frozenset[bytes]:
        """Digests of the sealed files that the groups here need."""
        live = [one for attempt in self._attempts.values() for one in attempt.summings]
        return frozenset(digest for one in live for digest in one.group.files)

    def held_groups(self, round_key: RoundKey) -> dict[bytes, Summing]:
        """Returns the groups of an attempt that are here, of any part, by their id."""
        return {
            one.group.group: one
            for key, attempt in self._attempts.items()
            if key[:3] == (round_key.task, round_key.round, round_key.attempt)
            for one in attempt.summings
        }

    async def forgotten(self) -> dict[Key, tuple[str, ...]]:
        """Returns the streams of all attempts in the journal that are not at work here."""
        await self._read_registry()
        found: dict[Key, tuple[str, ...]] = {}
        for task in sorted(self._tasks):
            found |= await streams_of(self._storage.journal, task)
        return {key: names for key, names in found.items() if key not in self._attempts}

    def is_without_sums(self, round_key: RoundKey) -> bool:
        """Whether sums of an attempt were removed here, since nobody may merge them any more."""
        wanted = round_key.task, round_key.round, round_key.attempt
        return any(attempt.is_without_sums for key, attempt in self._attempts.items() if key[:3] == wanted)

    def takes_reports(self, key: Key) -> bool:
        """Whether a group of an attempt still takes reports."""
        attempt = self._attempts.get(key)
        return attempt is not None and any(one.takes_reports for one in attempt.summings)

    async def stop(self) -> None:
        """Cancels what is under way, for the end of the process."""
        await asyncio.gather(*(one.stop() for attempt in self._attempts.values() for one in attempt.summings))

    async def _open(self, config: Config, key: Key) -> Attempt:
        now = self._storage.clock.now_milliseconds()
        if config.expires_milliseconds <= now:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "EXPIRED",
                "The attempt would expire before it begins.",
                "Set expires_unix_milliseconds to the end of the round; if it is, compare the clocks.",
            )
        if config.group_count > _MOST_GROUPS:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "TOO_MANY_GROUPS",
                f"The cohort would make {config.group_count} groups; an attempt has at most {_MOST_GROUPS}.",
                "Raise maximum_reports, or ask fewer devices.",
            )
        await self._register(config.task)
        first = self._protocols(config).open()
        opened = [
            Opened(secrets.token_bytes(_GROUP_BYTES), config, self._storage.snapshots.holder, first, now)
            for _ in range(config.group_count)
        ]
        names = [_stream_of(key, index) for index in range(len(opened))]
        try:
            await self._storage.journal.append(
                config.task,
                [Append(name, 0, (CODEC.encode(event),)) for name, event in zip(names, opened, strict=True)],
            )
        except StaleWriter:  # it was opened before, and only the answer was lost, or elsewhere
            streams = await self._storage.journal.streams(config.task, _stream_of(key, 0)[:-1])
            try:
                there = sorted(streams, key=_index_of)
                found = await self._recover_attempt(config.task, there)
                if found is None and await self._take_over(config.task, there):
                    found = await self._recover_attempt(config.task, there)
            except JournalUnavailable:
                raise
            except _UNREADABLE as error:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "UNREADABLE_GROUPS",
                    f"The groups of the attempt cannot be read: {error}.",
                    "Open the next attempt; look for what writes to the journal, or for another version.",
                ) from error
            if found is None:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "HELD_ELSEWHERE",
                    "Another aggregator holds the groups of the attempt, and lives, or did a moment ago.",
                    "Ask that one, or ask again in a moment.",
                ) from None
            return found
        known = [_Known(groups.step(None, event)[0], 1, self._protocols(config)) for event in opened]
        return self._take(key, names, known)

    async def _tidy(self, key: Key, attempt: Attempt) -> None:
        for summing in attempt.summings:
            if not summing.lost:
                await summing.expire()
                summing.advance()
        if any(summing.lost for summing in attempt.summings):
            self._drop(key, attempt)
        elif attempt.ended:
            now = self._storage.clock.now_milliseconds()
            expires = attempt.config.expires_milliseconds
            if now >= expires and not attempt.is_without_sums:
                attempt.is_without_sums = True  # first: a merge that comes meanwhile is told so, not that they are lost
                try:
                    await self._remove_sums(attempt)
                except OSError:
                    attempt.is_without_sums = False
                    raise
            last = max(expires, *(summing.group.ended_milliseconds for summing in attempt.summings))
            if now >= last + self._keep_milliseconds:
                await self._remove(key, attempt)

    async def _take_over(self, task: str, streams: Sequence[str]) -> bool:
        """Takes the groups of an attempt from an aggregator that is gone.

        Returns:
            Whether they are this one's now; False if whoever holds them lives, or somebody was quicker.
        """
        histories = [await self._storage.journal.load(task, stream) for stream in streams]
        states = [state for state in map(state_of, histories) if state is not None]
        holders = {state.holder for state in states}
        if len(holders) != 1 or len(states) != states[0].config.group_count:
            return False  # they are being removed
        event = CODEC.encode(TakenOver(self._storage.snapshots.holder, self._storage.clock.now_milliseconds()))
        async with self._holding.of(holders.pop()) as is_free:
            if not is_free:
                return False
            try:
                await self._storage.journal.append(
                    task, [Append(one, at.version, (event,)) for one, at in zip(streams, histories, strict=True)]
                )
            except StaleWriter:
                return False
        _log.warning("groups taken over", **_where(states[0].config.key), groups=len(states))
        return True

    async def _has_moved(self, attempt: Attempt) -> int:
        """Returns 0 if the journal has an attempt as this process knows it.

        More than 0: somebody else has written. Less: the journal was put back to an older state.
        """
        versions = [(one.stream, one.version) for one in attempt.summings]
        try:
            await self._storage.journal.append(attempt.config.task, [Append(*each, ()) for each in versions])
        except StaleWriter as stale:
            if stale.actual > stale.expected and any(
                one.is_writing or one.version != version
                for one, (_, version) in zip(attempt.summings, versions, strict=True)
            ):
                return 0  # it may be what this process wrote itself: if it is not, the write will tell
            return stale.actual - stale.expected
        return 0

    def _drop(self, key: Key, attempt: Attempt) -> None:
        """Stops working on an attempt that belongs to somebody else, or to a past that was lost."""
        for summing in attempt.summings:
            summing.lose()
        del self._attempts[key]

    async def _read_registry(self) -> None:
        recorded = await self._storage.journal.load(REGISTRY_TASK, REGISTRY_STREAM)
        self._tasks |= {_REGISTRY_CODEC.decode(one.event).task for one in recorded.events}

    async def _register(self, task: str) -> None:
        """Notes a task's name before its first group, whoever else notes others meanwhile."""
        while task not in self._tasks:
            history = await self._storage.journal.load(REGISTRY_TASK, REGISTRY_STREAM)
            self._tasks |= {_REGISTRY_CODEC.decode(one.event).task for one in history.events}
            if task in self._tasks:
                return
            event = _REGISTRY_CODEC.encode(TaskJoined(task))
            try:
                await self._storage.journal.append(REGISTRY_TASK, [Append(REGISTRY_STREAM, history.version, (event,))])
            except StaleWriter:
                continue
            self._tasks.add(task)

    async def _recover_attempt(self, task: str, streams: Sequence[str]) -> Attempt | None:
        """Takes an attempt's groups up where the journal left them; None if they are another's, or being removed."""
        histories = [await self._storage.journal.load(task, stream) for stream in streams]
        states = [state_of(history) for history in histories]
        holder = self._storage.snapshots.holder
        if not all(state is not None and state.holder == holder for state in states) or not states:
            return None
        found = [state for state in states if state is not None]
        config = found[0].config
        if len(found) != config.group_count:  # a removal that was interrupted
            for stream, history in zip(streams, histories, strict=True):
                await self._storage.journal.discard(task, stream, history.version)
            return None
        restored = [
            await self._restore(state, history.version) for state, history in zip(found, histories, strict=True)
        ]
        attempt = self._take(config.key, streams, restored)
        for summing, one in zip(attempt.summings, restored, strict=True):
            if one.is_lost:
                await summing.abort("SUM_LOST")
        return attempt

    async def _restore(self, state: Group, version: int) -> _Known:
        """Returns a group as the journal and the disk have it; what has ended needs nothing of the disk."""
        known = _Known(state, version, self._protocols(state.config))
        if state.ended:
            return known
        try:
            if state.roster is not None:
                roster = await self._read_content(state, state.roster.roster)
                shares = await self._read_content(state, state.shared.shares) if state.shared is not None else b""
                known.protocol.restore(roster, shares)
            if state.reports:
                known.total = await asyncio.to_thread(
                    self._storage.snapshots.read,
                    state.group,
                    state.snapshot,
                    state.sum_digest,
                    state.config.fixed_point,
                )
        except SnapshotLostError as error:
            _log.error("sum lost: its reports are void", group=state.group.hex(), why=str(error))
            known.is_lost = True
        return known

    async def _read_content(self, state: Group, digest: bytes) -> bytes:
        return await asyncio.to_thread(self._storage.snapshots.read_content, state.group, digest)

    def _take(self, key: Key, streams: Sequence[str], known: Sequence[_Known]) -> Attempt:
        attempt = Attempt(known[0].state.config)
        for stream, one in zip(streams, known, strict=True):
            attempt.summings.append(
                Summing(stream, one.state, one.version, one.total, one.protocol, self._storage, attempt.note_change)
            )
            attempt.joined.append(set(one.state.reports) | set(one.state.indices))
        self._attempts[key] = attempt
        return attempt

    async def _remove(self, key: Key, attempt: Attempt) -> None:
        # The first stream goes last: a removal that is interrupted leaves an attempt with too few groups, not none.
        await self._remove_sums(attempt)
        for summing in reversed(attempt.summings):
            with contextlib.suppress(StaleWriter):  # the journal was put back to an older state: `leftovers` has it
                await self._storage.journal.discard(key[0], summing.stream, summing.version)
        self._drop(key, attempt)

    async def _remove_sums(self, attempt: Attempt) -> None:
        for digest in [digest for summing in attempt.summings for digest in summing.group.files]:
            await asyncio.to_thread(self._storage.snapshots.delete, digest)


async def streams_of(journal: Journal, task: str) -> dict[Key, tuple[str, ...]]:
    """Returns the streams of all groups of a task, by attempt; those of one attempt in order."""
    found: defaultdict[Key, list[str]] = defaultdict(list)
    for stream in await journal.streams(task, STREAM_PREFIX):
        number, attempt, *part = map(int, stream.split("/")[1].split("."))
        found[task, number, attempt, part[0] if part else 0].append(stream)
    return {key: tuple(sorted(names, key=_index_of)) for key, names in found.items()}


def state_of(history: History) -> Group | None:
    """Returns the group that a stream holds; None if it is empty.

    Raises:
        JournalError: it holds what this version does not understand.
        IllegalEventError: its events contradict each other.
    """
    return groups.replay(CODEC.decode(one.event) for one in history.events)


def _stream_of(key: Key, index: int) -> str:
    _, number, attempt, part = key
    return f"{STREAM_PREFIX}{number}.{attempt}{f'.{part}' if part else ''}/{index}"


def _where(key: Key) -> dict[str, str | int]:
    return dict(zip(("task", "round", "attempt", "part"), key, strict=True))


def _index_of(stream: str) -> int:
    return int(stream.rpartition("/")[2])
