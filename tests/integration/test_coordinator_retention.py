"""Months of rounds: the journal stays small, and still tells what happened."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.coordinator import ledger, retention, stories
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.entries import TASK_STREAM, round_entries, round_stream
from fedrecon.coordinator.ledger import RoundAt
from fedrecon.coordinator.reading import Reader
from fedrecon.coordinator.retention import Retention
from fedrecon.coordinator.round_events import Finish, Outcome, SessionsFinished
from fedrecon.coordinator.round_state import Phase
from fedrecon.coordinator.tasks import TaskCompleted
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import Append, Journal, JournalUnavailable
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import admin_pb2
from support.coordinating import CALL_SECONDS, TASK, Coordinator, House, house, make_spec, refused, until_true
from support.many_rounds import ROUND_MILLISECONDS, bytes_of, make_task, run_round

COHORT = 20
KEPT_ROUNDS = 10
KEPT_CHECKPOINTS = 5


class Told:
    """A task whose rounds are run and kept tidy."""

    def __init__(self, journal: Journal, name: str = TASK) -> None:
        self.journal = journal
        self.clock = ManualClock(1_000)
        self.book = Book(name, journal, self.clock, "me")
        self.retention = Retention(name, journal, KEPT_ROUNDS, KEPT_CHECKPOINTS)

    async def begin(self) -> None:
        await make_task(self.journal, self.book.name)
        assert await self.book.acquire()
        await self.book.read()

    async def run(self, rounds: int, *, tidy: bool = True) -> None:
        for _ in range(rounds):
            await run_round(self.book, self.clock, COHORT)
            if tidy:
                await self.tidy()

    async def tidy(self) -> None:
        await self.retention.tidy(self.book.task, self.book.version, self.book.now())

    async def is_whole(self, number: int) -> bool:
        return (await self.journal.load(self.book.name, round_stream(number))).snapshot is None


async def test_hundreds_of_rounds_take_the_same_little_room_each(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(50)
    sizes = []
    for _ in range(3):
        # As many events of the task since its last snapshot at each look, or its stream would swing the sizes.
        await told.run(50)
        await told.retention._tidy_task()
        history = await journal.load(TASK, TASK_STREAM)
        sizes.append(await bytes_of(journal, TASK) - sum(len(each.event) for each in history.events))
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    whole = await _room_of_whole_rounds(told)
    assert abs(grown[1] - grown[0]) < 0.3 * grown[0]
    assert grown[1] / 50 < 0.25 * whole, "a summary is small"


async def _room_of_whole_rounds(told: Told) -> float:
    before = await bytes_of(told.journal, TASK)
    await told.run(20, tidy=False)
    return (await bytes_of(told.journal, TASK) - before) / 20


async def test_only_the_newest_rounds_are_whole_and_all_are_told(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(30, tidy=False)
    stories_before = {
        number: stories.tell_all(
            (entry.at, entry.event) for entry in await ledger.load_round_entries(journal, TASK, number)
        )
        for number in range(1, 31)
    }
    await told.tidy()
    assert [number for number in range(1, 31) if await told.is_whole(number)] == list(range(21, 31))
    for number in range(1, 21):
        summary = (await ledger.load_round(journal, TASK, number)).summary
        assert summary is not None
        assert list(summary.story) == stories_before[number]
        last = summary.messages[-1]
        assert (last.phase, last.key.round) == (admin_pb2.ROUND_PHASE_COMMITTED, number)
        assert (last.assigned, last.counted, last.dropped) == (COHORT, COHORT, 0)
        assert len(summary.messages) == (2 if number % 5 == 0 else 1)


async def test_tidying_goes_on_where_another_process_was_killed(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(30, tidy=False)
    compactions = 0

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(journal, name)

        async def compact(self, *arguments: Any) -> None:
            nonlocal compactions
            compactions += 1
            if compactions == 8:
                raise ConnectionAbortedError
            await journal.compact(*arguments)

    dying = Retention(TASK, Dying(), KEPT_ROUNDS, KEPT_CHECKPOINTS)
    with pytest.raises(ConnectionAbortedError):
        await dying.tidy(told.book.task, told.book.version, told.book.now())
    assert [number for number in range(1, 31) if not await told.is_whole(number)] == list(range(1, 8))
    await told.tidy()
    assert [number for number in range(1, 31) if not await told.is_whole(number)] == list(range(1, 21))


async def test_a_round_is_whole_while_its_devices_may_ask(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(KEPT_ROUNDS + 3, tidy=False)
    task, now = told.book.task, told.book.now()
    third = (await ledger.load_round(journal, TASK, 3)).last
    assert third is not None
    earlier = now - KEPT_ROUNDS * ROUND_MILLISECONDS
    assert earlier < third.ended_at + third.terms.reporting_milliseconds + third.terms.aggregating_milliseconds
    await told.retention.tidy(task, told.book.version, earlier)
    assert [await told.is_whole(number) for number in (1, 2, 3)] == [False, False, True]
    await told.retention.tidy(task, told.book.version, now)
    assert not await told.is_whole(3)


async def test_an_end_that_came_after_the_summary_changes_nothing(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(KEPT_ROUNDS + 2)
    before = await ledger.load_round(journal, TASK, 1)
    late = round_entries.encode(told.book.now(), SessionsFinished(1, (Finish(bytes(16), Outcome.UPLOADED),)))
    await journal.append(TASK, [Append(round_stream(1), before.version, (late,))])
    after = await ledger.load_round(journal, TASK, 1)
    assert (after.summary, after.attempts) == (before.summary, ())
    assert after.version == before.version + 1


async def test_a_stream_that_cannot_be_read_does_not_stop_the_others(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(KEPT_ROUNDS + 3, tidy=False)
    version = (await journal.load(TASK, round_stream(2))).version
    await journal.append(TASK, [Append(round_stream(2), version, (b'{"at":1,"event":"FromTheFuture"}',))])
    await told.tidy()
    assert [await told.is_whole(number) for number in (1, 2, 3)] == [False, True, False]


async def test_whoever_reads_on_past_a_snapshot_reads_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CONDENSED_EVENTS", 20)
    told = Told(journal)
    await told.begin()
    reader, follower = Reader(journal), Book(TASK, journal, told.clock, "another")
    assert (await reader.task(TASK)).version == 1
    await follower.read()
    await told.run(1)
    first = (await journal.load(TASK, round_stream(1))).events[:1]
    reader._rounds[TASK] = {1: ledger.fold_round(RoundAt(), first)}
    await told.run(25)
    assert (await journal.load(TASK, TASK_STREAM)).snapshot_version >= 20
    assert (await reader.task(TASK)).task == told.book.task
    assert (await reader.round(TASK, 1)).summary is not None
    while follower.version < told.book.version:
        await follower.follow_task(0)
    assert follower.task == told.book.task


async def test_an_ended_task_keeps_its_last_round_whole(journal: Journal) -> None:
    told = Told(journal)
    await told.begin()
    await told.run(8)
    await told.book.record_task(TaskCompleted("its end has come"))
    await told.clock.advance(10 * ROUND_MILLISECONDS)
    await told.tidy()
    assert [number for number in range(1, 9) if await told.is_whole(number)] == [8]


class Away(MemoryJournal):
    """A journal that can be away."""

    is_away = False

    async def load(self, task: str, stream: str) -> Any:
        if self.is_away:
            raise JournalUnavailable("the journal is away")
        return await super().load(task, stream)


async def test_a_journal_that_is_away_is_not_an_unreadable_round() -> None:
    journal = Away()
    told = Told(journal)
    await told.begin()
    await told.run(KEPT_ROUNDS + 2)
    await told.run(2, tidy=False)
    journal.is_away = True
    with pytest.raises(JournalUnavailable):
        await told.tidy()
    journal.is_away = False
    await told.tidy()
    assert not await told.is_whole(4)


async def _commit(built: House, coordinator: Coordinator, number: int) -> list[Any]:
    assigned = await coordinator.assign(1, 2, 3)
    for each in assigned:
        await coordinator.finish(each)
    await built.sums.report(assigned[0].round, 3)
    await coordinator.until(Phase.COMMITTED, number)
    return assigned


async def test_operators_are_told_of_condensed_rounds_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TIDY_MILLISECONDS", 20)
    monkeypatch.setattr("fedrecon.coordinator.upkeep.TIDY_MILLISECONDS", 20)
    journal = MemoryJournal()
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        coordinator.roster.around = replace(coordinator.roster.around, kept_rounds=1)
        await coordinator.create(make_spec(built.plan, reporting_milliseconds=1_000, aggregating_milliseconds=1_000))
        assigned = await _commit(built, coordinator, 1)
        asked = admin_pb2.ExplainRoundRequest(task=TASK, round=1)
        told = await coordinator.admin.ExplainRound(asked, timeout=CALL_SECONDS)
        listed = await coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task=TASK), timeout=CALL_SECONDS)
        await _commit(built, coordinator, 2)
        async with asyncio.timeout(CALL_SECONDS):
            while (await ledger.load_round(journal, TASK, 1)).summary is None:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        again = await coordinator.admin.ExplainRound(asked, timeout=CALL_SECONDS)
        assert again == told
        relisted = await coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task=TASK), timeout=CALL_SECONDS)
        assert relisted.rounds[-1] == listed.rounds[-1]
        runner = coordinator.roster.ready_runner(TASK)
        assert runner is not None
        runner.book._rounds.pop(1, None)
        await refused(coordinator.finish(assigned[0]), grpc.StatusCode.NOT_FOUND, "UNKNOWN_SESSION")
        # An end on its way when its round was condensed is dropped, and stops nothing.
        await runner.endings.keep(1, 1, Finish(assigned[0].session, Outcome.UPLOADED))
        await until_true(lambda: coordinator.roster.ready_runner(TASK) is runner)
        await _commit(built, coordinator, 3)
