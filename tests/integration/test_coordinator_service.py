"""A coordinator over loopback: what devices may rely on."""

from __future__ import annotations

import asyncio
import base64
import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.tokens import verify_token
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Floors
from support.coordinating import KEY, TASK, Coordinator, House, house, make_spec, refused


async def prepared(built: House, **rounds: Any) -> Coordinator:
    coordinator = await built.coordinator()
    await coordinator.create(make_spec(built.plan, **rounds))
    return coordinator


async def test_reports_of_a_drawn_cohort_are_counted(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, maximum_rounds=1)
        assignments = await coordinator.assign(1, 2, 3, 4)
        assert len({each.session for each in assignments}) == 4
        for each in assignments:
            assert (each.round.task, each.round.round, each.round.attempt) == ("films", 1, 1)
            assert each.kind == coordinator_pb2.SESSION_KIND_TRAIN
            assert each.plan == built.plan
            assert each.checkpoint.digest == built.blobs.put(b"initial checkpoint")
            assert list(each.vocabularies) == ["items"]
            assert (each.aggregator, each.blobs) == ("aggregator:1", "aggregator:1")
            assert each.layout.segments[0].bound == 1.0
            assert 0 < each.report_within_milliseconds <= 15_000
            verify_token(KeyRing(KEY), each.round, each.session, each.round_token, 0)
        pending = await coordinator.finish(assignments[0])
        assert pending.fate == coordinator_pb2.REPORT_FATE_PENDING
        await built.sums.report(assignments[0].round, 4)
        committed = await coordinator.until(Phase.COMMITTED)
        for each in assignments:
            assert (await coordinator.finish(each)).fate == coordinator_pb2.REPORT_FATE_COUNTED
        again = await coordinator.finish(assignments[0], coordinator_pb2.SESSION_OUTCOME_CANCELLED)
        assert again.fate == coordinator_pb2.REPORT_FATE_COUNTED, "the first end stands"
        assert committed.committed is not None
        assert committed.committed.reports == 4
        assert coordinator.counted("assignments_total", state="uploaded") == 4
        assert coordinator.counted("check_ins_total", task="films", outcome="assigned") == 4
        assert coordinator.counted("rounds_total", task="films", outcome="committed") == 1


async def test_the_next_round_starts_from_the_new_checkpoint(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built)
        first = await coordinator.assign(1, 2, 3)
        await built.sums.report(first[0].round, 3)
        committed = await coordinator.until(Phase.COMMITTED)
        second = await coordinator.assign(1, 2, 3)
        assert (second[0].round.round, second[0].round.attempt) == (2, 1)
        assert committed.committed is not None
        assert second[0].checkpoint.digest == committed.committed.checkpoint.digest
        await built.sums.report(second[0].round, 3)
        await coordinator.until(Phase.COMMITTED, 2)
        assert built.sums.merges == {("films", 1, 1): 1, ("films", 2, 1): 1}


async def test_a_device_that_asks_again_gets_the_same_session(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built)
        answers = await coordinator.assign(1, 2, 3)
        again = await coordinator.check_in(1)
        assert again.assignment.session in {each.session for each in answers}
        assert again.assignment.round_token in {each.round_token for each in answers}
        stranger = await coordinator.check_in(9)
        assert stranger.rejection.reason == coordinator_pb2.REJECTION_REASON_FULL
        assert stranger.minimum_examples == 7
        assert stranger.retry_windows.rejected.max_milliseconds > stranger.retry_windows.rejected.min_milliseconds > 0
        await coordinator.finish(again.assignment)
        ended = await coordinator.check_in(1)
        assert ended.rejection.reason == coordinator_pb2.REJECTION_REASON_FULL


async def test_the_newest_call_of_a_device_has_its_place(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, selection_milliseconds=400)
        calls = []
        for device in (1, 1, 2, 3):
            calls.append(asyncio.create_task(coordinator.check_in(device)))
            await asyncio.sleep(0.02)
        older, newer, *_ = await asyncio.gather(*calls)
        assert "newer check-in" in older.rejection.message
        assert newer.HasField("assignment")
        attempt = await coordinator.until(Phase.REPORTING)
        assert len(attempt.slots) == 3


async def test_devices_beyond_the_cohort_are_sent_away(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, selection_milliseconds=300)
        answers = await asyncio.gather(*(coordinator.check_in(device) for device in range(1, 21)))
        assert sum(answer.HasField("assignment") for answer in answers) == 4
        reasons = {answer.rejection.reason for answer in answers if answer.HasField("rejection")}
        assert reasons == {coordinator_pb2.REJECTION_REASON_FULL}


async def test_a_call_that_was_given_up_is_not_drawn(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, selection_milliseconds=500, over_selection=1)
        gone = asyncio.create_task(coordinator.check_in(9))
        await asyncio.sleep(0.1)
        gone.cancel()
        drawn = await coordinator.assign(1, 2, 3)
        assert len(drawn) == 3


async def test_a_long_window_answers_with_a_ticket_that_keeps_the_place(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, selection_milliseconds=1_200)
        first = await coordinator.check_in(1, seconds=1.2)
        assert first.HasField("ticket")
        assert len(first.ticket.ticket) > 8
        again, *_ = await asyncio.gather(
            coordinator.check_in(1, ticket=first.ticket.ticket), coordinator.check_in(2), coordinator.check_in(3)
        )
        assert again.HasField("assignment")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"population": "theatre"}, coordinator_pb2.REJECTION_REASON_NO_TASK),
        ({"plan_formats": [7]}, coordinator_pb2.REJECTION_REASON_VERSION),
        ({"sdk_version": "0.0.9"}, coordinator_pb2.REJECTION_REASON_VERSION),
        ({"floors": Floors(trusted_plans=[bytes(32)])}, coordinator_pb2.REJECTION_REASON_FLOORS),
        ({"floors": Floors(secure_sum_required=True)}, coordinator_pb2.REJECTION_REASON_FLOORS),
        ({"floors": Floors(minimum_group=2)}, coordinator_pb2.REJECTION_REASON_FLOORS),
    ],
)
async def test_a_device_that_does_not_fit_is_told_why(tmp_path: Path, fields: dict[str, Any], reason: int) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.eligibility.minimum_sdk_version = "0.1.0"
        await coordinator.create(spec)
        answer = await coordinator.check_in(1, **fields)
        assert answer.rejection.reason == reason
        assert answer.rejection.message
        assert answer.retry_windows.rejected.min_milliseconds >= 60_000


async def test_a_device_takes_part_again_only_after_the_separation(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan, over_selection=1)
        spec.eligibility.minimum_separation_milliseconds = 60_000
        await coordinator.create(spec)
        first = await coordinator.assign(1, 2, 3)
        await built.sums.report(first[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        others = [asyncio.create_task(coordinator.check_in(device)) for device in (4, 5)]
        again = await coordinator.check_in(1)  # the third, so that it is drawn whatever its priority
        assert again.rejection.reason == coordinator_pb2.REJECTION_REASON_INELIGIBLE
        assert again.retry_windows.accepted.min_milliseconds >= 60_000
        others.append(asyncio.create_task(coordinator.check_in(6)))
        assert all(answer.HasField("assignment") for answer in await asyncio.gather(*others))


@pytest.mark.parametrize(
    "fields", [{"session": bytes(16)}, {"round_token": bytes(40)}, {"round_token": b""}, {"session": b"short"}]
)
async def test_a_session_cannot_be_ended_without_its_token(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built)
        assignment, *_ = await coordinator.assign(1, 2, 3)
        await refused(coordinator.finish(assignment, **fields), grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN")
        attempt = await coordinator.until(Phase.REPORTING)
        assert not attempt.finishes


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built)
        assignment, *_ = await coordinator.assign(1, 2, 3)
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        await refused(coordinator.check_in(1, credentials=None), invalid, "DEVICE_KEY_REQUIRED")
        await refused(coordinator.check_in(1, population=""), invalid, "POPULATION_REQUIRED")
        await refused(coordinator.finish(assignment, shape="<script>"), invalid, "BAD_SHAPE")
        unspecified = coordinator_pb2.SESSION_OUTCOME_UNSPECIFIED
        await refused(coordinator.finish(assignment, unspecified), invalid, "OUTCOME_REQUIRED")


async def test_reports_of_an_abandoned_round_are_void_and_the_next_attempt_follows(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, reporting_milliseconds=300)
        assignments = await coordinator.assign(1, 2, 3)
        await built.sums.report(assignments[0].round, 1)
        await coordinator.finish(assignments[0])
        await coordinator.until(Phase.SELECTING, attempt=2)
        fate = (await coordinator.finish(assignments[0])).fate
        assert fate == coordinator_pb2.REPORT_FATE_VOID
        late = await coordinator.finish(assignments[1], coordinator_pb2.SESSION_OUTCOME_TOO_LATE)
        assert late.fate == coordinator_pb2.REPORT_FATE_UNSPECIFIED
        second = await coordinator.assign(1, 2, 3)
        assert (second[0].round.round, second[0].round.attempt) == (1, 2)
        assert {each.session for each in second}.isdisjoint({each.session for each in assignments})
        await built.sums.report(second[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        assert built.sums.merges == {("films", 1, 2): 1}


async def test_a_merge_that_is_refused_abandons_the_round_with_its_reason(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        built.sums.refuse_merge = True
        coordinator = await prepared(built, maximum_attempts=1)
        assignments = await coordinator.assign(1, 2, 3)
        await built.sums.report(assignments[0].round, 3)
        abandoned = await coordinator.until(Phase.ABANDONED)
        assert abandoned.abandoned is not None
        assert "not finite" in abandoned.abandoned.reason


async def test_devices_of_two_tasks_are_shared_out(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, selection_milliseconds=300)
        other = make_spec(built.plan, selection_milliseconds=300)
        other.name = "series"
        await coordinator.create(other)
        drawn = await coordinator.assign(*range(1, 9))
        assert {each.round.task for each in drawn} == {"films", "series"}


async def test_a_population_without_devices_journals_nothing_but_its_opening(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with house(tmp_path, journal) as built:
        await prepared(built, selection_milliseconds=10)
        await asyncio.sleep(0.3)
        assert (await journal.load("films", "round/00000001")).version == 1


async def test_no_device_key_is_in_the_journal(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with house(tmp_path, journal) as built:
        coordinator = await prepared(built)
        keys = [int.from_bytes(secrets.token_bytes(31), "little") for _ in range(3)]
        assert len(await coordinator.assign(*keys)) == 3
        kept = b"".join(each.event for each in (await journal.load("films", "round/00000001")).events)
        for key in keys:
            raw = key.to_bytes(32, "little")
            for written in (raw, raw.hex().encode(), base64.b64encode(raw)[:40]):
                assert written not in kept


async def test_as_many_devices_may_wait_as_the_learned_cohort_takes(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await prepared(built, maximum_over_selection=3.0, reporting_milliseconds=300)
        assigned = await coordinator.assign(1, 2, 3)
        await built.sums.report(assigned[0].round, 2)
        await coordinator.until(Phase.COMMITTED)
        attempt = await coordinator.until(Phase.SELECTING, 2)
        assert attempt.opened.report_share == pytest.approx(2 / 3)
        runner = coordinator.roster.ready_runner(TASK)
        assert runner is not None
        assert runner.terms == attempt.terms
        assert attempt.terms.cohort_size > 4
