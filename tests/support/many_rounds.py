"""Rounds by the hundred, written as a coordinator writes them, and the room that a journal takes."""

from __future__ import annotations

import hashlib

from fedrecon.coordinator import round_events, tasks
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.entries import TASK_STREAM, task_entries
from fedrecon.coordinator.round_events import Blob, EndedBecause, Finish, Outcome, Slot, Terms
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import Append, Journal
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal

WINDOW_MILLISECONDS = 1_000
ROUND_MILLISECONDS = 3_000


def digest(*parts: object) -> bytes:
    """Returns 32 bytes that follow from the parts, and look random."""
    return hashlib.sha256(repr(parts).encode()).digest()


def blob_of(number: int) -> Blob:
    return Blob(digest("checkpoint", number), 1_000 + number)


async def make_task(journal: Journal, name: str, spec: bytes = b"spec") -> None:
    created = tasks.TaskCreated(spec, blob_of(0), 0, 0, "olga")
    await journal.append(name, [Append(TASK_STREAM, 0, (task_entries.encode(0, created),))])


async def run_round(book: Book, clock: ManualClock, cohort: int, batches: int = 4) -> None:
    """Runs a round of a task: a first attempt that is abandoned in every fifth, then one that is committed."""
    task = book.task
    number = task.number
    if number % 5 == 0:
        await _assign(book, number, 1, cohort)
        abandoned = round_events.Abandoned("the reporting window has ended with 0 of at least 1 reports", clock._now)
        told = tasks.AttemptAbandoned(number, 1, abandoned.reason, abandoned.retry_at)
        await book.record(number, abandoned, told)
    attempt = book.task.attempt
    slots = await _assign(book, number, attempt, cohort)
    size = max(1, cohort // batches)
    for first in range(0, cohort, size):
        finished = tuple(Finish(slot.session, Outcome.UPLOADED, "-v[]+^") for slot in slots[first : first + size])
        await book.record(number, round_events.SessionsFinished(attempt, finished))
    await clock.advance(ROUND_MILLISECONDS)
    groups = (digest("group", number, attempt)[:16],)
    await book.record(number, round_events.ReportingEnded(EndedBecause.GOAL_MET, cohort))
    await book.record(number, round_events.GroupsClosed(groups, cohort, 0))
    state = Blob(digest("state", number), 2_000)
    sums = (("loss", 0.5), ("squared_error", 12.25))
    committed = round_events.Committed(blob_of(number), state, cohort, 10 * cohort, sums, 0.125, digest("sum", number))
    told_commit = tasks.CheckpointCommitted(number, attempt, blob_of(number), state, cohort, 10 * cohort, sums)
    await book.record(number, committed, told_commit)


async def _assign(book: Book, number: int, attempt: int, cohort: int) -> tuple[Slot, ...]:
    terms = Terms(cohort, cohort, 1, 1, 60, WINDOW_MILLISECONDS, WINDOW_MILLISECONDS, 20)
    task = book.task
    opened = round_events.Opened(
        book.name, number, attempt, terms, task.checkpoint, task.optimizer_state, task.created.spec
    )
    await book.record(number, opened)
    slots = tuple(
        Slot(digest("session", number, attempt, place)[:16], digest("device", number, attempt, place)[:16])
        for place in range(cohort)
    )
    groups = (digest("group", number, attempt)[:16],)
    await book.record(number, round_events.Assigned(slots, cohort, groups, "aggregator:1", 1 << 40))
    return slots


async def bytes_of(journal: Journal, task: str) -> int:
    """Returns how much room a task's streams take: in memory their contents, on Valkey all their keys."""
    if isinstance(journal, RedisJournal):
        call = journal._shared.call
        keys = await call("KEYS", f"fedrecon:{{{task}}}:*")
        return sum([await call("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys])
    assert isinstance(journal, MemoryJournal)
    streams = journal._tasks[task].streams
    return sum(
        len(name) + len(stream.snapshot or b"") + sum(map(len, stream.events)) for name, stream in streams.items()
    )
