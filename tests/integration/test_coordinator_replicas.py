"""Several coordinators on one journal: one leads a task, all answer devices."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.tls import open_channel
from fedrecon.v1 import admin_pb2, coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Candidate, HandOverRequest
from fedrecon.v1.coordinator_pb2_grpc import CandidatesStub
from support.coordinating import TASK, Coordinator, House, house, make_spec, refused, until_true


async def pair(built: House, **rounds: Any) -> tuple[Coordinator, Coordinator]:
    """Starts a coordinator that leads the task and one that follows."""
    leader = await built.coordinator()
    await leader.create(make_spec(built.plan, **{"selection_milliseconds": 700, **rounds}))
    follower = await built.coordinator()
    await until_true(lambda: TASK in follower.roster.runners and follower.roster.runners[TASK].can_answer)
    return leader, follower


async def test_devices_that_wait_at_several_coordinators_are_one_cohort(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built, report_goal=6, over_selection=1.0, minimum_cohort=6, minimum_reports=6)
        told = await asyncio.gather(leader.assign(1, 2, 3), follower.assign(4, 5, 6))
        sessions = {each.session for part in told for each in part}
        assert len(sessions) == 6
        assert {each.round.round for part in told for each in part} == {1}
        attempt = await leader.until(Phase.REPORTING)
        assert {slot.session for slot in attempt.slots} == sessions
        assert attempt.assigned is not None
        assert attempt.assigned.waiting == 6


async def test_who_was_not_drawn_at_another_coordinator_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built, report_goal=3, over_selection=1.0, minimum_cohort=3)
        answers = await asyncio.gather(
            *(leader.check_in(n) for n in (1, 2, 3)), *(follower.check_in(n) for n in (4, 5, 6))
        )
        assert sum(answer.HasField("assignment") for answer in answers) == 3
        rejected = [answer.rejection for answer in answers if answer.HasField("rejection")]
        assert [each.reason for each in rejected] == [coordinator_pb2.REJECTION_REASON_FULL] * 3


async def test_a_session_is_the_same_at_every_coordinator_and_can_end_at_any(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built)
        first = (await leader.assign(1, 2, 3))[0]
        await until_true(lambda: getattr(follower.roster.runners[TASK].book.attempt, "phase", None) is Phase.REPORTING)
        again = [await follower.check_in(n) for n in (1, 2, 3)]
        assert first.session in {each.assignment.session for each in again}
        assert {each.HasField("assignment") for each in again} == {True}
        answer = await follower.finish(again[0].assignment)
        assert answer.fate == coordinator_pb2.REPORT_FATE_PENDING
        attempt = await leader.until(Phase.REPORTING)
        assert again[0].assignment.session in attempt.finishes
        wrong = follower.finish(again[1].assignment, round_token=b"no token")
        await refused(wrong, grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN")


async def test_devices_go_on_waiting_when_the_coordinator_that_led_is_killed(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built, selection_milliseconds=1_500)
        waiting = [asyncio.create_task(follower.check_in(n)) for n in (1, 2, 3)]
        await until_true(lambda: leader.roster.runners[TASK].handed_over.count(0) == 3)
        await leader.kill()
        answers = await asyncio.gather(*waiting)
        assert {answer.HasField("assignment") for answer in answers} == {True}
        await built.sums.report(answers[0].assignment.round, 3)
        await follower.until(Phase.COMMITTED)
        assert follower.roster.ready_runner(TASK) is not None


async def test_a_coordinator_that_does_not_lead_takes_nobody_over(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built)
        request = HandOverRequest(task=TASK, replica=b"other", candidates=[Candidate(priority=1, device_key=b"d" * 32)])
        for coordinator, leads in ((leader, True), (follower, False)):
            channel = open_channel(coordinator.target)
            assert (await CandidatesStub(channel).HandOver(request, timeout=5)).leads is leads
            await channel.close()


async def test_a_device_that_took_part_too_recently_elsewhere_is_not_drawn_again(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader = await built.coordinator()
        spec = make_spec(built.plan, selection_milliseconds=700)
        spec.eligibility.minimum_separation_milliseconds = 60_000
        await leader.create(spec)
        follower = await built.coordinator()
        await until_true(lambda: TASK in follower.roster.runners and follower.roster.runners[TASK].can_answer)
        assigned = await leader.assign(1, 2, 3)
        await built.sums.report(assigned[0].round, 3)
        await leader.until(Phase.COMMITTED)
        await until_true(lambda: follower.roster.runners[TASK].book.task.number == 2)
        answers = await asyncio.gather(
            follower.check_in(1), *(leader.check_in(n) for n in (4, 5)), follower.check_in(6)
        )
        assert [answer.HasField("assignment") for answer in answers] == [False, True, True, True]


@pytest.mark.parametrize("where", ["leads", "follows"])
async def test_a_paused_task_sends_devices_away_wherever_they_call(tmp_path: Path, where: str) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        leader, follower = await pair(built)
        await follower.admin.PauseTask(admin_pb2.PauseTaskRequest(task=TASK), timeout=10)
        coordinator = leader if where == "leads" else follower
        await until_true(lambda: coordinator.roster.runners[TASK].book.task.state == "paused")
        answer = await coordinator.check_in(1)
        assert answer.rejection.reason == coordinator_pb2.REJECTION_REASON_NO_TASK
