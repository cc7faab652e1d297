"""A task with a past: rounds by the hundred or thousand, as a coordinator writes them, with good and bad days."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fedrecon.coordinator import round_events, tasks
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.registering import read_spec, register_task
from fedrecon.coordinator.round_events import Blob, EndedBecause, Finish, Kind, Outcome, Slot, Terms
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import Journal
from fedrecon.v1.task_pb2 import TaskSpec
from support.many_rounds import digest

GOAL, COHORT, MINIMUM = 20, 26, 16
EVALUATED_EVERY = 6
"""Of so many rounds the last is an evaluation."""

_ENDS = (
    (Outcome.UPLOADED, "-v[]+^", 0),
    (Outcome.LOCAL_FAILED, "-v[!", 4),
    (Outcome.UPLOAD_TIMEOUT, "-v[]+!", 3),
    (Outcome.TOO_LATE, "-v[]+#", 3),
    (Outcome.NOT_ELIGIBLE, "-v!", 2),
)
_TOO_FEW = f"the reporting window has ended with 9 of at least {MINIMUM} reports"


@dataclass
class Past:
    """Writes the past of a task.

    Attributes:
        journal: Where.
        blobs: Where its newest checkpoints lie, so that it can be rolled back.
        name: The task.
        began: Unix milliseconds.
        real_from: First round whose checkpoint is a blob that is there.
    """

    journal: Journal
    blobs: BlobStore
    name: str
    began: int
    real_from: int = 1
    _random: random.Random = field(default_factory=lambda: random.Random(11))

    async def write(self, spec: TaskSpec, rounds: int) -> Book:
        """Registers the task and writes its rounds; every tenth needs a second attempt."""
        clock = ManualClock(self.began)
        await register_task(self.journal, self.name, read_spec(spec, self.blobs, "olga"), self.began)
        book = Book(self.name, self.journal, clock, "past")
        assert await book.acquire()
        await book.read()
        for number in range(1, rounds + 1):
            if number % 10 == 7:
                await self._abandon(book, clock, number)
            await self._commit(book, clock, number)
        await book.release()
        return book

    async def _abandon(self, book: Book, clock: ManualClock, number: int) -> None:
        slots = await self._assign(book, clock, number, 1, Kind.TRAIN)
        clock._now += 9_000
        await self._finish(book, number, 1, slots[:9], uploaded=9)
        abandoned = round_events.Abandoned(_TOO_FEW, clock.now_milliseconds() + 500)
        await book.record(number, abandoned, tasks.AttemptAbandoned(number, 1, abandoned.reason, abandoned.retry_at))
        clock._now += 500

    async def _commit(self, book: Book, clock: ManualClock, number: int) -> None:
        attempt = book.task.attempt
        kind = Kind.EVALUATE if number % EVALUATED_EVERY == 0 else Kind.TRAIN
        slots = await self._assign(book, clock, number, attempt, kind)
        clock._now += self._random.randint(2_500, 5_500)
        reports = GOAL + self._random.randint(0, 4)
        await self._finish(book, number, attempt, slots, uploaded=reports)
        await book.record(number, round_events.ReportingEnded(EndedBecause.GOAL_MET, reports))
        clock._now += self._random.randint(350, 900)
        groups = (digest("group", number, attempt)[:16],)
        await book.record(number, round_events.GroupsClosed(groups, reports, 0))
        rmse = 0.90 + 0.16 * 0.985**number + self._random.gauss(0, 0.004) + (0.012 if kind is Kind.EVALUATE else 0)
        sums = (("squared_error", rmse**2 * 40 * reports), ("examples", 40.0 * reports))
        if kind is Kind.EVALUATE:
            task = book.task
            told = tasks.CheckpointEvaluated(number, attempt, task.live_round, reports, 40 * reports, sums)
            made = round_events.Committed(
                task.checkpoint, task.optimizer_state, reports, 40 * reports, sums, 0.0, digest("sum", number)
            )
            await book.record(number, made, told)
            return
        checkpoint, state = self._blob("checkpoint", number), self._blob("state", number)
        made = round_events.Committed(checkpoint, state, reports, 40 * reports, sums, 0.12, digest("sum", number))
        await book.record(
            number, made, tasks.CheckpointCommitted(number, attempt, checkpoint, state, reports, 40 * reports, sums)
        )

    async def _assign(self, book: Book, clock: ManualClock, number: int, attempt: int, kind: Kind) -> tuple[Slot, ...]:
        terms = Terms(GOAL, COHORT, 1, MINIMUM, 2_000, 9_000, 9_000, 500)
        task = book.task
        await book.record(
            number,
            round_events.Opened(
                book.name, number, attempt, terms, task.checkpoint, task.optimizer_state, task.spec, 0.88, kind
            ),
        )
        clock._now += self._random.randint(700, 2_200)
        slots = tuple(
            Slot(digest("session", number, attempt, place)[:16], digest("device", number, attempt, place)[:16])
            for place in range(COHORT)
        )
        groups = (digest("group", number, attempt)[:16],)
        waiting = COHORT + self._random.randint(0, 40)
        await book.record(number, round_events.Assigned(slots, waiting, groups, "aggregator:1", 1 << 44))
        return slots

    async def _finish(self, book: Book, number: int, attempt: int, slots: tuple[Slot, ...], uploaded: int) -> None:
        reported, *others = _ENDS
        drawn = [reported] * uploaded
        drawn += self._random.choices(others, [share for *_, share in others], k=len(slots) - uploaded)
        finished = tuple(
            Finish(slot.session, outcome, shape) for slot, (outcome, shape, _) in zip(slots, drawn, strict=True)
        )
        await book.record(number, round_events.SessionsFinished(attempt, finished))

    def _blob(self, kind: str, number: int) -> Blob:
        content = f"{kind} {number} of {self.name}".encode()
        if number < self.real_from:
            return Blob(digest(content), len(content))
        return Blob(self.blobs.put(content), len(content))
