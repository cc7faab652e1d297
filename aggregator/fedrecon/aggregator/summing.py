"""One group's sum at work: adds reports, and acknowledges them once they are durable.

Rules:
- A report is added to the batch that is being filled, at once. While one batch is written, the next is filled: adding
  never waits, and a batch is as large as writing is slow.
- Writing a batch: running sum + batch, sealed, on disk (fsync) -> one append that names batch and file -> answers.
  A file that no event names never existed. The old sum is kept until the journal has the new one.
- If the journal does not answer, the event is appended again until its fate is known; the stream's versions tell
  whether it was applied. Nothing is added twice, and nothing is acknowledged before.
- A batch whose file cannot be written is refused whole; the sum stays what it was.
- A masked group moves when its protocol says that the moment has come (`advance`): the event is durable before anybody
  is told, so no member is asked for more than one of two secrets, whatever crashes in between.
- A stream that somebody else has written to belongs to them: this group is given up here, without a word in the
  journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message

from fedrecon.aggregator import groups
from fedrecon.aggregator.batches import Batch
from fedrecon.aggregator.group_events import (
    Aborted,
    Accepted,
    Closed,
    Event,
    Opened,
    Phase,
    Report,
    RosterFrozen,
    SharesFixed,
    TakenOver,
    UploadsEnded,
)
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.refusals import (
    round_closed,
    round_interrupted,
    storage_failed,
    storage_full,
    sum_lost,
    taken_over,
)
from fedrecon.aggregator.secure_sum import DamagedSumError, Due, Keep, SecureSum, Unmask, check_sum
from fedrecon.aggregator.snapshots import SnapshotLostError, Snapshots
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.clock import Clock
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, StaleWriter
from fedrecon.ops.journal.codec import Codec
from fedrecon.ops.logs import logger_of
from fedrecon.ops.traces import span
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Vector

CODEC: Codec[Event] = Codec(Opened, TakenOver, RosterFrozen, SharesFixed, Accepted, UploadsEnded, Closed, Aborted)
"""Events of the streams of groups."""

_INLINE_BYTES = 4 << 20
"""Vectors up to this size are added in the event loop: below 2 ms; larger ones in a thread."""

_PROCESSORS = os.cpu_count() or 1

_PAUSE_SECONDS = 0.2
"""Between attempts to reach a journal that does not answer."""

_log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Storage:
    """What groups are kept with.

    Attributes:
        journal: their events.
        snapshots: their sums.
        clock: for the instants of events.
        measures: what is counted.
    """

    journal: Journal
    snapshots: Snapshots
    clock: Clock
    measures: Measures


class Summing:
    """One group at work. Make it inside the event loop that uses it.

    Args:
        stream: its stream in the journal.
        group: its state.
        version: of the stream.
        total: the sum of its acknowledged reports.
        protocol: how it is summed.
        storage: what it is kept with.
        changed: called after every change of its state.

    Attributes:
        group: its state, as the journal has it.
        protocol: how it is summed.
        fixed_point: its agreement on integers.
        lost: whether somebody else has written to its stream.
    """

    def __init__(
        self,
        stream: str,
        group: Group,
        version: int,
        total: Vector | None,
        protocol: SecureSum,
        storage: Storage,
        changed: Callable[[], None],
    ) -> None:
        self.group = group
        self.protocol = protocol
        self.fixed_point: FixedPoint = group.config.fixed_point
        self.lost = False
        self.stream = stream
        self.version = version
        self._total = total
        self._storage = storage
        self._changed = changed
        self._filling = self._empty_batch()
        self._writing: Batch | None = None
        self._ending = group.ended
        self._closing = False
        self._discarding = False
        self._taken_up_milliseconds = storage.clock.now_milliseconds()
        self._moved = asyncio.Event()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_writing(self) -> bool:
        """Whether an event of its own may be on its way into the journal."""
        return self._turn.locked()

    @property
    def takes_reports(self) -> bool:
        """Whether a new report may be added."""
        return not self._ending and not self.lost

    def can_join(self, session: bytes) -> bool:
        """Whether a session may enter the group."""
        return self.takes_reports and self._has_room and self.protocol.can_join(self.group, session)

    def can_report(self, session: bytes) -> bool:
        """Whether a session's report may be added."""
        return self.takes_reports and self._has_room and self.protocol.can_report(self.group, session)

    @property
    def _has_room(self) -> bool:
        waiting = len(self._filling.reports)
        if self._writing is not None and not self._writing.journalled:
            waiting += len(self._writing.reports)
        return len(self.group.reports) + waiting < self.group.config.maximum_reports

    async def exchange(self, session: bytes, message: Message, patience_seconds: float) -> Message | None:
        """Takes a member's message, and returns the answer once the group has come so far.

        Args:
            session: the member.
            message: a request of a phase other than the upload.
            patience_seconds: how long to wait at most.

        Returns:
            The answer; None if the group has not come so far yet: the member asks again.

        Raises:
            MessageRefusedError: it cannot be taken, or the group went on without the member.
        """
        self.protocol.receive(self.group, session, message, self._storage.clock.now_milliseconds())
        self._changed()
        self.advance()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while (answer := self.protocol.answer(self.group, session, message)) is None and not self.lost:
                    await self._moved.wait()
        if self.lost:
            raise taken_over()
        return answer

    def advance(self) -> None:
        """Does what the moment calls for, beside whoever calls this."""
        if not self.lost and not self.group.ended and not self._turn.locked() and self._due() is not None:
            self._start(self._advance())

    def digest_of(self, session: bytes) -> bytes | None:
        """Returns the digest of a session's report, acknowledged or on its way; None if there is none."""
        for reports in (self.group.reports, self._filling.reports, self._writing.reports if self._writing else {}):
            if session in reports:
                return reports[session]
        return None

    async def acknowledged(self, session: bytes) -> None:
        """Returns once a report that is here is durable.

        Raises:
            Refusal: it could not be made durable, or came too late.
        """
        if session in self.group.reports:
            return
        batch = self._filling if session in self._filling.reports else self._writing
        if batch is None or session not in batch.reports:
            raise KeyError("the session has no report here")
        # The call may end before the batch does: the batch goes on.
        await asyncio.shield(batch.durable)

    def add(self, session: bytes, digest: bytes, report: Vector) -> None:
        """Adds a checked report of a session that has none; `acknowledged` returns once it is durable.

        Whoever waits for that need not keep the report: it may be freed as soon as it is in the sum.

        Args:
            session: whose it is.
            digest: SHA-256 of its vector.
            report: the vector.

        Raises:
            Refusal: the group takes no more.
        """
        if not self.takes_reports:
            raise round_closed()
        batch = self._filling
        batch.reports[session] = digest
        if report.body.nbytes <= _INLINE_BYTES:
            batch.add(report)
        else:
            batch.additions.append(self._start(batch.add_in_thread(report)))
        if not self._turn.locked():
            self._start(self._write_batches())

    async def end(self, *, discard: bool) -> None:
        """Closes the group as far as its protocol can now, or gives it up. The same call again changes nothing.

        Reports that arrived before are written first; with `discard` they are refused.

        Raises:
            Refusal: the disk is full, or the group is somebody else's now.
        """
        self._ending = self._closing = True
        self._discarding = self._discarding or discard
        await asyncio.shield(self._start(self._discard() if discard else self._advance()))

    async def expire(self) -> None:
        """Gives the group up if nobody has closed it in time."""
        if groups.expire(self.group, self._storage.clock.now_milliseconds()) is not None:
            self._ending = True
            async with self._turn:
                event = groups.expire(self.group, self._storage.clock.now_milliseconds())
                if event is not None:
                    await self._abort(event)

    async def abort(self, reason: str) -> None:
        """Gives the group up for a reason of the aggregator's own.

        Args:
            reason: a stable word, upper case.
        """
        self._ending = True
        async with self._turn:
            if self.group.phase is not Phase.ABORTED:
                await self._abort(Aborted(reason, len(self.group.reports), self._storage.clock.now_milliseconds()))

    async def read_sum(self) -> Vector:
        """Returns the integers of a closed group, without masks.

        Raises:
            DamagedSumError: they are not those of its reports.
            Refusal: the sum was lost or contradicts the journal; the group was given up.
        """
        try:
            total = await asyncio.to_thread(
                self._storage.snapshots.read,
                self.group.group,
                self.group.snapshot,
                self.group.sum_digest,
                self.fixed_point,
            )
        except SnapshotLostError as error:
            _log.error("sum of a closed group lost", stream=self.stream, why=str(error))
            await self.abort("SUM_LOST")
            raise sum_lost(self.group.group, error) from error
        check_sum(total, len(self.group.reports), self.fixed_point.maximum_weight)
        return total

    def lose(self) -> None:
        """Gives the group up here without a word in the journal: it is somebody else's, or forgotten there."""
        self.lost = self._ending = True
        self._refuse_filling(taken_over())
        self._tell()

    async def stop(self) -> None:
        """Cancels what is under way, for the end of the process: what was not acknowledged may be lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it raises it; nobody may be waiting any more

    async def _write_batches(self) -> None:
        async with self._turn:
            while self._filling.reports and not self._discarding:
                await self._write_batch()
        self.advance()

    async def _discard(self) -> None:
        async with self._turn:
            self._refuse_filling(round_closed())
            event = groups.end(self.group, self._storage.clock.now_milliseconds(), discard=True)
            if isinstance(event, Aborted):
                await self._abort(event)

    async def _advance(self) -> None:
        """Does what the moment calls for, until it calls for nothing more."""
        async with self._turn:
            was_ending = self._ending
            while not self.lost and (due := self._due()) is not None:
                if self.group.phase is Phase.UPLOADING:  # its end is judged by all that arrived before
                    self._ending = True
                    if self._filling.reports:
                        await self._write_batch()
                        continue
                match due:
                    case Keep() if not await self._keep(due):
                        return  # tried again by whoever comes next
                    case Unmask():
                        await self._unmask(due)
                    case Aborted():
                        await self._abort(due)
                    case UploadsEnded() | Closed():
                        await self._persist(due)
                if self.group.ended:
                    self._total = None  # it lies on disk until the round is merged
            if self.group.phase is Phase.UPLOADING:
                self._ending = was_ending  # a batch was lost: others may still report

    async def _keep(self, keep: Keep) -> bool:
        """Keeps a roster or shares; returns whether the disk took them."""
        try:
            digest = await asyncio.to_thread(self._storage.snapshots.put_content, self.group.group, keep.content)
        except OSError as error:
            _log.error("group cannot go on: the disk does not take what it needs", stream=self.stream, why=str(error))
            return False
        await self._persist(keep.event(digest))
        return True

    def _due(self) -> Due | None:
        now = self._storage.clock.now_milliseconds()
        since = max(self.group.phase_since_milliseconds, self._taken_up_milliseconds)
        return self.protocol.due(self.group, now, since, closing=self._closing)

    async def _unmask(self, unmask: Unmask) -> None:
        assert self._total is not None  # noqa: S101 - reports are unmasked
        reports = len(self.group.reports)
        try:
            total = await asyncio.to_thread(_on_all_processors, unmask, self._total)
            check_sum(total, reports, self.fixed_point.maximum_weight)
        except DamagedSumError as error:
            _log.error("masked sum cannot be opened", stream=self.stream, why=str(error))
            await self._abort(Aborted("CANNOT_UNMASK", reports, self._storage.clock.now_milliseconds()))
            return
        _, snapshot, sum_digest = await asyncio.to_thread(self._seal, None, total)
        await self._persist(Closed(reports, sum_digest, self._storage.clock.now_milliseconds(), snapshot))

    async def _abort(self, event: Aborted) -> None:
        self._refuse_filling(round_closed())
        await self._persist(event)
        self._total = None
        self._storage.measures.voided_reports.inc(event.voided)
        _log.warning("group given up", stream=self.stream, reason=event.reason, voided=event.voided)

    async def _write_batch(self) -> None:
        """Makes the filled batch durable, and answers its reports whatever happens."""
        self._filling, batch = self._empty_batch(), self._filling
        self._writing = batch
        try:
            await self._write(batch)
        except StorageFull as error:
            _log.error("disk full: reports refused", reports=len(batch.reports), why=str(error))
            batch.durable.set_exception(storage_full())
        except OSError as error:
            _log.exception("sum cannot be written: reports refused", reports=len(batch.reports))
            batch.durable.set_exception(storage_failed(error))
        except asyncio.CancelledError:
            batch.durable.set_exception(round_interrupted())
            raise
        except Exception as error:  # noqa: BLE001 - the callers that wait raise it
            batch.durable.set_exception(error)
        else:
            batch.durable.set_result(None)
        finally:
            self._writing = None
            batch.durable.exception()  # nobody may be waiting any more

    async def _write(self, batch: Batch) -> None:
        await asyncio.gather(*batch.additions)
        assert batch.total is not None  # noqa: S101 - a batch is written when it has reports
        total, snapshot, sum_digest = await asyncio.to_thread(self._seal, self._total, batch.total)
        reports = tuple(Report(session, digest) for session, digest in batch.reports.items())
        now = self._storage.clock.now_milliseconds()
        event = Accepted(reports, len(self.group.reports) + len(reports), snapshot, sum_digest, now)
        with span("accept batch", self.group.config.traced, reports=len(reports)):
            await self._persist(event)
        self._total = total
        self._storage.measures.reports.labels(outcome="accepted").inc(len(reports))

    def _seal(self, before: Vector | None, batch: Vector) -> tuple[Vector, bytes, bytes]:
        """Returns the sum with a batch, the digest of its sealed file, and its own; runs in a thread."""
        total = batch if before is None else Vector(np.add(before.body, batch.body), np.add(before.tail, batch.tail))
        snapshot = self._storage.snapshots.put(self.group.group, total)
        return total, snapshot, digest_of(total.to_bytes())

    async def _persist(self, event: Event) -> None:
        """Journals an event, then acts on it."""
        before = self.group
        after, effects = groups.step(before, event)
        await self._append(CODEC.encode(event))
        self._storage.measures.note_group(before, after, event)
        self.group, self.version = after, self.version + 1
        if self._writing is not None:
            self._writing.journalled = True
        for effect in effects:
            if isinstance(effect, groups.RemoveFiles):
                for digest in effect.digests:
                    await self._delete(digest)
        self._tell()

    def _tell(self) -> None:
        """Wakes whoever waits for the group."""
        self._moved.set()
        self._moved = asyncio.Event()
        self._changed()

    async def _append(self, encoded: bytes) -> None:
        """Appends one event, however long the journal is away."""
        journal, task = self._storage.journal, self.group.config.task
        while True:
            try:
                await journal.append(task, [Append(self.stream, self.version, (encoded,))])
            except JournalUnavailable:
                _log.warning("journal away: reports wait", stream=self.stream)
                await asyncio.sleep(_PAUSE_SECONDS)
            except StaleWriter as stale:
                written = await self._written_after(self.version)
                if written == encoded and stale.actual == self.version + 1:
                    return  # an earlier attempt was applied, and only its answer was lost
                self.lost = self._ending = True
                _log.error(
                    "group was taken over" if stale.actual > self.version else "journal went back", stream=self.stream
                )
                raise taken_over() from stale
            else:
                return

    async def _written_after(self, version: int) -> bytes | None:
        while True:
            try:
                recorded = await self._storage.journal.tail(self.group.config.task, self.stream, version, 0)
            except JournalUnavailable:
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return recorded[0].event if recorded else None

    async def _delete(self, snapshot: bytes) -> None:
        with contextlib.suppress(OSError):  # an unnamed file is removed at the next start
            await asyncio.to_thread(self._storage.snapshots.delete, snapshot)

    def _refuse_filling(self, refusal: Refusal) -> None:
        self._filling, batch = self._empty_batch(), self._filling
        batch.durable.set_exception(refusal)
        batch.durable.exception()  # nobody may be waiting

    def _empty_batch(self) -> Batch:
        return Batch(asyncio.get_running_loop().create_future())


def _on_all_processors(unmask: Unmask, total: Vector) -> Vector:
    """Returns the sum without masks: threads share the work, since AES and numpy do theirs without Python's lock."""
    with ThreadPoolExecutor(_PROCESSORS) as threads:
        return unmask.work(total, threads, _PROCESSORS)
