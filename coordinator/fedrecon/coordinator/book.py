"""The streams of one task, held in memory and written under the task's lease.

Rules: what is in memory is what the journal holds. An event is applied first to see that it is legal, then appended,
then what it makes of the state becomes the state. When an append fails nobody knows what the journal holds, and the
whole book is read again.
"""

from __future__ import annotations

import asyncio
import contextlib

from fedrecon.coordinator import ledger, round_events, tasks
from fedrecon.coordinator.entries import TASK_STREAM, round_entries, round_stream, task_entries
from fedrecon.coordinator.ledger import Applied, RoundAt, TaskAt
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.clock import Clock
from fedrecon.ops.journal import Append, HistoryCompacted, Journal, JournalUnavailable, Lease, StaleWriter

LEASE_NAME = "runner"
LEASE_MILLISECONDS = 3_000
RENEW_MILLISECONDS = 1_000
_RELEASE_SECONDS = 2.0
_ROUNDS_KEPT = 8


class Book:
    """One task's journal.

    Args:
        name: The task.
        journal: Where it is kept.
        clock: The time of its entries.
        holder: Who writes it.

    Attributes:
        name: The task.
        knew_more: Whether the journal went back to an older state since this was last set to False.
        task_changed: Set with every change of the task, for whoever clears it.
    """

    def __init__(self, name: str, journal: Journal, clock: Clock, holder: str) -> None:
        self.name = name
        self._journal = journal
        self._clock = clock
        self._holder = holder
        self._lease: Lease | None = None
        self._writing = asyncio.Lock()
        self._task = TaskAt(None, 0)
        self._rounds: dict[int, RoundAt] = {}
        self._latest, self._counted = 0, clock.steady_milliseconds()
        self.knew_more = False
        self.task_changed = asyncio.Event()

    @property
    def task(self) -> Task:
        """The task as it stands; only after `read`."""
        assert self._task.task is not None  # noqa: S101 - a task is registered after it was created
        return self._task.task

    @property
    def version(self) -> int:
        """Version of the task's stream."""
        return self._task.version

    @property
    def attempt(self) -> Round | None:
        """The last attempt of the round that runs or comes next; None before its first."""
        return self._rounds.get(self.task.number, RoundAt()).last

    def now(self) -> int:
        """Returns the time, never earlier than the last entry's.

        After the wall clock was set back it goes on at half speed until both agree: windows end late, but they end.
        """
        halved = (self._clock.steady_milliseconds() - self._counted) // 2
        self._counted += 2 * halved
        self._latest = max(self._latest + halved, self._clock.now_milliseconds())
        return self._latest

    async def acquire(self) -> bool:
        """Takes the lease.

        Returns:
            Whether it is held now.
        """
        if self._lease is None:
            self._lease = await self._journal.acquire(self.name, LEASE_NAME, self._holder, LEASE_MILLISECONDS)
        return self._lease is not None

    async def renew(self) -> None:
        """Lets the lease last anew.

        Raises:
            LeaseLost: Somebody else has taken it.
        """
        assert self._lease is not None  # noqa: S101 - held for as long as anybody renews it
        self._lease = await self._journal.renew(self._lease)

    def forget_lease(self) -> None:
        """Stops acting under a lease that was lost."""
        self._lease = None

    async def release(self) -> None:
        """Gives the lease back, if the journal can be reached."""
        if self._lease is not None:
            with contextlib.suppress(JournalUnavailable, TimeoutError):
                await asyncio.wait_for(self._journal.release(self._lease), _RELEASE_SECONDS)
            self._lease = None

    async def read(self) -> None:
        """Reads the task and the round that runs or comes next, and notes whether the journal knew more before."""
        task, known = await ledger.load_task(self._journal, self.name), self._rounds
        self.knew_more = self.knew_more or task.version < self._task.version
        self._task = task
        number = self.task.number
        self._rounds = {number: await ledger.load_round(self._journal, self.name, number)}
        self.knew_more = self.knew_more or self._rounds[number].version < known.get(number, RoundAt()).version
        if self.attempt is not None:  # written before the clock was set back, perhaps
            self._latest = max(self._latest, self.attempt.phase_since)
        self.task_changed.set()

    async def follow(self, wait_milliseconds: int) -> None:
        """Takes in what the one that leads writes to task and round, waiting for it."""
        await self.follow_task(0)
        number = self.task.number
        known = await self.round_at(number)
        try:
            recorded = await self._journal.tail(self.name, round_stream(number), known.version, wait_milliseconds)
        except HistoryCompacted:
            self._rounds.pop(number, None)
        else:
            self._rounds[number] = ledger.fold_round(known, recorded)

    async def confirm(self) -> None:
        """Asks whether the journal still knows all that this book knows.

        Raises:
            StaleWriter: It went back to an older state.
            LeaseLost: Somebody else acts for the task.
        """
        async with self._writing:
            number = self.task.number
            checks = [Append(TASK_STREAM, self._task.version, ())]
            if number in self._rounds:
                checks.append(Append(round_stream(number), self._rounds[number].version, ()))
            try:
                await self._journal.append(self.name, checks, lease=self._lease)
            except StaleWriter as stale:
                if stale.actual < stale.expected:
                    raise

    async def follow_task(self, wait_milliseconds: int) -> None:
        """Takes in what others write to the task's stream, waiting for it."""
        try:
            recorded = await self._journal.tail(self.name, TASK_STREAM, self._task.version, wait_milliseconds)
        except HistoryCompacted:  # what was written since it asked was condensed already
            loaded = await ledger.load_task(self._journal, self.name)
            async with self._writing:
                self._task = max(self._task, loaded, key=lambda at: at.version)
        else:
            async with self._writing:
                self._task = ledger.fold_task(self._task, recorded)
        self.task_changed.set()

    async def round_at(self, number: int) -> RoundAt:
        """Returns a round, also one that is over."""
        if number not in self._rounds:
            loaded = await ledger.load_round(self._journal, self.name, number)
            self._rounds.setdefault(number, loaded)
            self._drop_old(number)
        return self._rounds[number]

    async def record(self, number: int, event: round_events.Event, *task_events: tasks.Event) -> Applied:
        """Keeps an event of a round, with events of the task: all or nothing.

        Args:
            number: The round.
            event: What happened.
            *task_events: What it means for the task.

        Returns:
            What the event made of the round.

        Raises:
            IllegalEvent: The round or the task has moved on; nothing was kept.
            StaleWriter: Somebody else wrote; nothing was kept.
            LeaseLost: Somebody else acts for the task; nothing was kept.
            JournalUnavailable: Nobody knows whether it was kept.
        """
        async with self._writing:
            now = self.now()
            at = await self.round_at(number)  # an old one may have made room since it was asked for
            applied = ledger.apply(at.attempts, event, now)
            task = self._task.task
            for task_event in task_events:
                task = tasks.step(task, task_event, now)
            appends = [Append(round_stream(number), at.version, (round_entries.encode(now, event),))]
            if task_events:
                appends.append(self._task_append(now, *task_events))
            await self._journal.append(self.name, appends, lease=self._lease)
            self._rounds[number] = RoundAt(applied.attempts, at.version + 1)
            self._task = TaskAt(task, self._task.version + len(task_events))
            if task_events:
                self.task_changed.set()
            self._drop_old(number)
            return applied

    async def record_task(self, event: tasks.Event) -> None:
        """Keeps an event of the task alone. Raises as `record`."""
        async with self._writing:
            now = self.now()
            task = tasks.step(self._task.task, event, now)
            await self._journal.append(self.name, [self._task_append(now, event)], lease=self._lease)
            self._task = TaskAt(task, self._task.version + 1)
            self.task_changed.set()

    def _task_append(self, now: int, *events: tasks.Event) -> Append:
        return Append(TASK_STREAM, self._task.version, tuple(task_entries.encode(now, event) for event in events))

    def _drop_old(self, needed: int) -> None:
        for old in sorted(self._rounds)[:-_ROUNDS_KEPT]:
            if old != needed:
                del self._rounds[old]
