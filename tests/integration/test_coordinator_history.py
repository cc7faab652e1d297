"""How rounds went over a task's life: few points, whatever the number of rounds, and every round in one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedrecon.coordinator.book import Book
from fedrecon.coordinator.histories import Histories, figures_of, points_of
from fedrecon.coordinator.retention import Retention
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.callers import current_role
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import History, Journal
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.operators import Role
from fedrecon.v1 import admin_pb2, coordinator_pb2
from support.coordinating import TASK, house, make_spec, until_true
from support.many_rounds import make_task, run_round

COHORT = 4


class CountedLoads(MemoryJournal):
    """A journal that counts what is read of it."""

    loads = 0

    async def load(self, task: str, stream: str) -> History:
        self.loads += 1
        return await super().load(task, stream)


async def rounds_of(journal: Journal, rounds: int) -> Book:
    book = Book(TASK, journal, ManualClock(1_000), "me")
    await make_task(journal, TASK)
    assert await book.acquire()
    await book.read()
    for _ in range(rounds):
        await run_round(book, book._clock, COHORT)  # type: ignore[arg-type]  # the clock that was made above
    return book


async def test_every_round_is_in_one_point_and_figures_add_up() -> None:
    journal = CountedLoads()
    await rounds_of(journal, 23)
    figures = await Histories(journal).read(TASK, 23)
    assert [each.first_round for each in figures] == list(range(1, 24))
    points = points_of(figures, 10)
    assert [(each.first_round, each.last_round) for each in points] == [
        (first, min(first + 2, 23)) for first in range(1, 24, 3)
    ]
    assert sum(each.committed for each in points) == 23
    assert sum(each.abandoned for each in points) == 4, "in every fifth round the first attempt is abandoned"
    assert sum(each.counted for each in points) == 23 * COHORT
    assert points[0].training.metric_sums["squared_error"] == pytest.approx(3 * 12.25)
    assert points[0].training.weight == 3 * 10 * COHORT
    assert points[0].evaluation.rounds == 0
    assert points_of([], 10) == []


async def test_a_round_is_read_once_and_tells_the_same_when_it_is_condensed() -> None:
    journal = CountedLoads()
    book = await rounds_of(journal, 12)
    histories = Histories(journal)
    before = list(await histories.read(TASK, 12))
    journal.loads = 0
    assert list(await histories.read(TASK, 12)) == before
    assert journal.loads == 1, "of the rounds that are committed none is read again"
    await Retention(TASK, journal, 2, 2).tidy(book.task, book.version, 1 << 41)
    assert list(await Histories(journal).read(TASK, 12)) == before
    assert [each.first_round for each in await histories.read(TASK, 7)] == list(range(1, 8)), "the journal went back"


def test_attempts_that_were_abandoned_count_before_their_round_is_committed() -> None:
    abandoned = admin_pb2.Round(phase=admin_pb2.ROUND_PHASE_ABANDONED, ended_unix_milliseconds=7)
    under_way = admin_pb2.Round(phase=admin_pb2.ROUND_PHASE_REPORTING)
    point = figures_of(3, [abandoned, abandoned, under_way])
    assert (point.committed, point.abandoned, point.ended_unix_milliseconds) == (0, 2, 7)


async def test_operators_are_told_who_waits_how_sessions_ended_and_who_they_are(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan, maximum_rounds=1))
        assigned = await coordinator.assign(1, 2, 3)
        running = (await coordinator.task()).round
        assert running.waiting == 3
        window = running.phase_ends_unix_milliseconds - running.assigned_unix_milliseconds
        assert window == 15_000
        failed = coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED
        await coordinator.finish(assigned[0])
        await coordinator.finish(assigned[1], failed, shape="-v[!")
        await coordinator.finish(assigned[2], failed, shape="^^^^")
        told = (await coordinator.task()).round
        assert dict(told.outcomes) == {"UPLOADED": 1, "LOCAL_FAILED": 2}
        assert dict(told.shapes) == {"-v[]+^": 1, "-v[!": 1, "other": 1}
        await built.sums.report(assigned[0].round, 3)
        ended = await coordinator.until(Phase.COMMITTED)
        task = await coordinator.task()
        assert task.committed_unix_milliseconds == ended.ended_at == task.round.ended_unix_milliseconds
        assert task.live_round == 1
        assert task.leader == coordinator.target
        assert task.round.reporting_ended_unix_milliseconds >= task.round.assigned_unix_milliseconds > 0
        history = await coordinator.admin.GetHistory(admin_pb2.GetHistoryRequest(task=TASK), timeout=10)
        (point,) = history.points
        assert (point.committed, point.counted, point.report_goal) == (1, 3, 3)
        caller = await coordinator.admin.GetCaller(admin_pb2.GetCallerRequest(), timeout=10)
        assert (caller.name, caller.role) == ("unauthenticated", admin_pb2.OPERATOR_ROLE_VIEWER)


async def test_devices_that_wait_for_a_round_are_counted_before_it_begins(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan, selection_milliseconds=15_000))
        waiting = [asyncio.create_task(coordinator.check_in(device)) for device in (1, 2)]
        runner = coordinator.roster.ready_runner(TASK)
        assert runner is not None
        await until_true(lambda: runner.seen.waiting == 2)
        task = await coordinator.task()
        assert (task.round.phase, task.round.waiting) == (admin_pb2.ROUND_PHASE_SELECTING, 2)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def test_whoever_says_nothing_may_only_look() -> None:
    assert current_role.get() is Role.VIEWER
