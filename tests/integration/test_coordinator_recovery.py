"""Coordinators, aggregators and journals come and go: rounds go on, and none is committed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedrecon.coordinator import book, ledger, round_events, runner, tasks
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.common_pb2 import RoundKey
from support.coordinating import TASK, Coordinator, House, house, make_spec, until_true


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that a killed process still holds runs out at once, or every test would wait for it."""
    monkeypatch.setattr(book, "LEASE_MILLISECONDS", 400)
    monkeypatch.setattr(runner, "RENEW_MILLISECONDS", 100)
    monkeypatch.setattr(runner, "_ACQUIRE_MILLISECONDS", 20)


async def begun(built: House, **changes: Any) -> Coordinator:
    coordinator = await built.coordinator()
    await coordinator.create(make_spec(built.plan, **changes))
    return coordinator


async def replaced(built: House, coordinator: Coordinator) -> Coordinator:
    await coordinator.kill()
    following = await built.coordinator()
    await following.until_ready()
    return following


async def commits_of(journal: Journal, number: int) -> int:
    entries = await ledger.load_round_entries(journal, TASK, number)
    told = await ledger.load_task_entries(journal, TASK)
    in_round = sum(isinstance(entry.event, round_events.Committed) for entry in entries)
    in_task = sum(isinstance(entry.event, tasks.CheckpointCommitted) and entry.event.number == number for entry in told)
    assert in_round == in_task
    return in_round


async def test_a_coordinator_that_is_killed_in_every_phase_commits_the_round_once(
    tmp_path: Path, journal: Journal
) -> None:
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built)
        await coordinator.until(Phase.SELECTING)
        waiting = asyncio.create_task(coordinator.check_in(1))
        coordinator = await replaced(built, coordinator)
        await asyncio.gather(waiting, return_exceptions=True)

        assigned = await coordinator.assign(1, 2, 3)
        sessions = {each.session for each in assigned}
        await coordinator.finish(assigned[0])
        coordinator = await replaced(built, coordinator)
        assert {each.session for each in await coordinator.assign(2, 3)} < sessions

        built.sums.may_close.clear()
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.AGGREGATING)
        coordinator = await replaced(built, coordinator)
        built.sums.may_merge.clear()
        built.sums.may_close.set()
        leading = coordinator.roster.ready_runner(TASK)
        assert leading is not None
        await until_true(lambda: leading.book.attempt is not None and leading.book.attempt.closed is not None)
        coordinator = await replaced(built, coordinator)
        built.sums.may_merge.set()
        await coordinator.until(Phase.COMMITTED)
        coordinator = await replaced(built, coordinator)
        for each in assigned:
            assert (await coordinator.finish(each)).fate == coordinator_pb2.REPORT_FATE_COUNTED
        assert await commits_of(journal, 1) == 1
        following = await coordinator.assign(1, 2, 3)
        assert (following[0].round.round, following[0].round.attempt) == (2, 1)


async def test_a_coordinator_that_is_killed_before_a_retry_opens_the_next_attempt(
    tmp_path: Path, journal: Journal
) -> None:
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built, reporting_milliseconds=150, retry_milliseconds=500)
        await coordinator.assign(1, 2, 3)
        await coordinator.until(Phase.ABANDONED)
        coordinator = await replaced(built, coordinator)
        await coordinator.until(Phase.SELECTING, attempt=2)
        discarded = built.sums.attempts[TASK, 1, 1]
        await until_true(lambda: discarded.phase == aggregator_pb2.GROUP_PHASE_ABORTED)


async def test_two_coordinators_do_not_act_for_one_task(tmp_path: Path, journal: Journal) -> None:
    async with house(tmp_path, journal) as built:
        first = await begun(built)
        second = await built.coordinator()
        await asyncio.sleep(0.6)
        assert first.roster.ready_runner(TASK) is not None
        assert second.roster.ready_runner(TASK) is None
        await first.stop()
        await second.until_ready()
        assert len(await second.assign(1, 2, 3)) == 3


async def test_a_coordinator_that_lost_its_lease_stops_acting(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built)
        await coordinator.assign(1, 2, 3)
        acting = coordinator.roster.ready_runner(TASK)
        assert acting is not None
        journal._tasks[TASK].leases.clear()
        stolen = await journal.acquire(TASK, book.LEASE_NAME, "somebody-else", 600_000)
        assert stolen is not None
        await built.sums.report(RoundKey(task=TASK, round=1, attempt=1), 3)
        await until_true(lambda: not acting.is_ready.is_set())
        assert await commits_of(journal, 1) == 0
        await journal.release(stolen)
        await coordinator.until(Phase.COMMITTED)
        assert await commits_of(journal, 1) == 1


async def test_a_round_waits_for_an_aggregator_that_was_killed(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, reporting_milliseconds=700)
        assigned = await coordinator.assign(1, 2, 3)
        await built.kill_aggregator()
        await asyncio.sleep(0.9)
        assert (await coordinator.until(Phase.REPORTING)).attempt == 1, "its count is waited for"
        await built.sums.report(assigned[0].round, 2)
        await built.open_aggregator()
        committed = await coordinator.until(Phase.COMMITTED)
        assert committed.attempt == 1
        assert committed.reporting_ended == round_events.ReportingEnded(round_events.EndedBecause.WINDOW_ENDED, 2)


async def test_an_aggregator_that_is_killed_while_merging_merges_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        built.sums.may_merge.clear()
        assigned = await coordinator.assign(1, 2, 3)
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.AGGREGATING)
        await asyncio.sleep(0.1)
        await built.kill_aggregator()
        built.sums.may_merge.set()
        await asyncio.sleep(0.3)
        await built.open_aggregator()
        assert (await coordinator.until(Phase.COMMITTED)).attempt == 1


async def test_an_aggregator_that_lost_its_groups_costs_the_attempt(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        await coordinator.assign(1, 2, 3)
        await built.kill_aggregator()
        built.sums.attempts.clear()
        await built.open_aggregator()
        await coordinator.until(Phase.SELECTING, attempt=2)
        attempts = (await ledger.load_round(coordinator.journal, TASK, 1)).attempts
        assert attempts[0].abandoned is not None
        assert "lost the groups" in attempts[0].abandoned.reason


class Outage:
    """A journal that can be away: calls wait for a while, then fail, as the real one's do."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.is_away = False
        self.fails_after_append = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._journal, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            if self.is_away:
                await asyncio.sleep(0.05)
                raise JournalUnavailable("the journal is away")
            return await method(*arguments, **named)

        return call

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        if self.is_away:
            await asyncio.sleep(0.05)
            raise JournalUnavailable("the journal is away")
        await self._journal.append(task, appends, lease=lease)
        if self.fails_after_append:
            self.fails_after_append -= 1
            raise JournalUnavailable("the answer was lost")


async def test_a_journal_that_is_away_stops_nothing_for_good(tmp_path: Path) -> None:
    journal = Outage(MemoryJournal())
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built)
        assigned = await coordinator.assign(1, 2, 3)
        journal.is_away = True
        ending = asyncio.create_task(coordinator.finish(assigned[0]))
        await built.sums.report(assigned[0].round, 3)
        await asyncio.sleep(0.7)
        assert not ending.done() or ending.exception() is not None
        journal.is_away = False
        await coordinator.until(Phase.COMMITTED)
        await asyncio.gather(ending, return_exceptions=True)
        for each in assigned:
            assert (await coordinator.finish(each)).fate == coordinator_pb2.REPORT_FATE_COUNTED


async def test_an_append_whose_answer_was_lost_is_not_repeated(tmp_path: Path) -> None:
    journal = Outage(MemoryJournal())
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built, maximum_rounds=1)
        assigned = await coordinator.assign(1, 2, 3)
        journal.fails_after_append = 3
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        assert journal.fails_after_append == 0
        assert await commits_of(journal, 1) == 1


@pytest.mark.parametrize("hours", [-2, 2])
async def test_rounds_go_on_when_the_clock_of_the_machine_is_set(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """In each phase: nothing that was reported is lost, and no round is committed twice."""
    wall, ahead = SystemClock.now_milliseconds, 0
    monkeypatch.setattr(SystemClock, "now_milliseconds", lambda self: wall(self) + ahead)
    async with house(tmp_path, journal) as built:
        coordinator = await begun(built, retry_milliseconds=20)
        for number, phase in enumerate([Phase.SELECTING, Phase.REPORTING, Phase.AGGREGATING], start=1):
            await coordinator.until(Phase.SELECTING, number)
            if phase is Phase.SELECTING:
                ahead += hours * 3_600_000
            assigned = await coordinator.assign(1, 2, 3)
            if phase is Phase.REPORTING:
                ahead += hours * 3_600_000
                if hours > 0:  # the window has ended: another attempt is for the devices
                    await coordinator.until(Phase.SELECTING, number, attempt=2)
                    assigned = await coordinator.assign(1, 2, 3)
            if phase is Phase.AGGREGATING:
                built.sums.may_close.clear()
            await built.sums.report(assigned[0].round, 3)
            if phase is Phase.AGGREGATING:
                await coordinator.until(Phase.AGGREGATING, number)
                ahead += hours * 3_600_000
                built.sums.may_close.set()
                if hours > 0:  # it has taken too long: its reports are void, and their devices are told
                    await coordinator.until(Phase.SELECTING, number, attempt=2)
                    assert (await coordinator.finish(assigned[0])).fate == coordinator_pb2.REPORT_FATE_VOID
                    assigned = await coordinator.assign(1, 2, 3)
                    await built.sums.report(assigned[0].round, 3)
            await coordinator.until(Phase.COMMITTED, number)
            assert (await coordinator.finish(assigned[0])).fate == coordinator_pb2.REPORT_FATE_COUNTED
            assert await commits_of(journal, number) == 1
