"""Versions of what a task serves, over loopback: who promotes what, what stands in the way, what a kill leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.coordinator.assignments import is_held_out
from fedrecon.coordinator.named_blobs import digests_named, load_roots
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import admin_pb2
from fedrecon.v1.task_pb2 import Evaluation, Gate, Serving
from fedrecon.wire.outcomes import outcome_metrics
from fedrecon.wire.vocabularies import write_vocabulary
from support.coordinating import KEY, TASK, Coordinator, House, house, make_spec, refused

SECONDS = 20
SHARE = 0.3
HELD_OUT = [n for n in range(1, 60) if is_held_out(KEY, TASK, n.to_bytes(32, "little"), SHARE)]
TRAINED = [n for n in range(1, 60) if n not in HELD_OUT]


def judged(live_version: int = 0, users: int = 500, **changes: float) -> admin_pb2.Evidence:
    measured = {"value": 0.9, "lowest": 0.88, "highest": 0.92}
    if live_version:
        measured |= {"live_value": 0.91, "lowest_difference": -0.02, "highest_difference": 0.001}
    one = admin_pb2.Measured(name="rmse", **{**measured, **changes})
    return admin_pb2.Evidence(source="a folder", users=users, live_version=live_version, measures=[one])


async def begun(built: House, rounds: int, **serving: Any) -> Coordinator:
    """A task with some committed rounds."""
    coordinator = await built.coordinator()
    spec = make_spec(built.plan)
    spec.serving.CopyFrom(Serving(by_promotion=True, gate=Gate(minimum_users=200), **serving))
    await coordinator.create(spec)
    for number in range(1, rounds + 1):
        await committed(built, coordinator, number, [1, 2, 3])
    return coordinator


async def committed(built: House, coordinator: Coordinator, number: int, devices: list[int]) -> None:
    assigned = await coordinator.assign(*devices)
    await built.sums.report(assigned[0].round, len(assigned))
    await coordinator.until(Phase.COMMITTED, number)


async def admit(coordinator: Coordinator, number: int) -> admin_pb2.Recommender:
    request = admin_pb2.AdmitRecommenderRequest(task=TASK, round=number)
    return (await coordinator.admin.AdmitRecommender(request, timeout=SECONDS)).recommender


async def promote(coordinator: Coordinator, version: int, **fields: Any) -> admin_pb2.Recommender:
    request = admin_pb2.PromoteRecommenderRequest(task=TASK, version=version, **fields)
    return (await coordinator.admin.PromoteRecommender(request, timeout=SECONDS)).recommender


async def roll_back(coordinator: Coordinator, version: int = 0, reason: str = "") -> admin_pb2.Recommender:
    request = admin_pb2.RollBackRecommenderRequest(task=TASK, version=version, reason=reason)
    return (await coordinator.admin.RollBackRecommender(request, timeout=SECONDS)).recommender


async def listed(coordinator: Coordinator) -> admin_pb2.ListRecommendersResponse:
    request = admin_pb2.ListRecommendersRequest(task=TASK)
    answer: admin_pb2.ListRecommendersResponse = await coordinator.admin.ListRecommenders(request, timeout=SECONDS)
    return answer


async def until_listed(coordinator: Coordinator, versions: int) -> admin_pb2.ListRecommendersResponse:
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await listed(coordinator)
            if len(answer.recommenders) == versions:
                return answer
            await asyncio.sleep(0.01)


def stages(answer: admin_pb2.ListRecommendersResponse) -> dict[int, str]:
    name = admin_pb2.RecommenderStage.Name
    return {each.version: name(each.stage).removeprefix("RECOMMENDER_STAGE_") for each in answer.recommenders}


async def test_a_checkpoint_becomes_candidate_canary_live_and_is_rolled_back(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 2)
        first, second = await admit(coordinator, 1), await admit(coordinator, 2)
        assert (first.version, second.version) == (1, 2)
        assert (await admit(coordinator, 1)).version == 1
        assert not (await listed(coordinator)).follows_newest
        await promote(coordinator, 1, evidence=judged())
        canary = await promote(coordinator, 2, evidence=judged(1), canary_places=500)
        assert (canary.stage, canary.canary_places) == (admin_pb2.RECOMMENDER_STAGE_CANARY, 500)
        assert canary.evidence == judged(1)
        live = await promote(coordinator, 2, evidence=judged(1))
        assert (live.stage, live.checkpoint) == (admin_pb2.RECOMMENDER_STAGE_LIVE, second.checkpoint)
        # The same again changes nothing, and needs no evidence.
        assert (await promote(coordinator, 2)).since_unix_milliseconds == live.since_unix_milliseconds
        task = await coordinator.task()
        assert [each.version for each in task.recommenders] == [2, 1]
        assert (await roll_back(coordinator, reason="worse on phones")).version == 1
        assert stages(await listed(coordinator)) == {2: "RETIRED", 1: "LIVE"}
        audit = await coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(task=TASK), timeout=SECONDS)
        told = [(each.action, each.reason, each.operator) for each in audit.entries][::-1]
        assert told[1:] == [
            ("AdmitRecommender", "version 1: round 1", "unauthenticated"),
            ("AdmitRecommender", "version 2: round 2", "unauthenticated"),
            ("PromoteRecommender", "version 1", "unauthenticated"),
            ("PromoteRecommender", "version 2, canary of 5%", "unauthenticated"),
            ("PromoteRecommender", "version 2", "unauthenticated"),
            ("RollBackRecommender", "to version 1: worse on phones", "unauthenticated"),
        ]


async def test_a_closed_gate_says_why_and_an_override_is_audited(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 1)
        await admit(coordinator, 1)
        request = admin_pb2.PromoteRecommenderRequest(task=TASK, version=1)
        call = coordinator.admin.PromoteRecommender(request, timeout=SECONDS)
        explained = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "GATE_CLOSED")
        assert "nothing is known of its quality" in explained.message
        request.evidence.CopyFrom(judged(users=7))
        call = coordinator.admin.PromoteRecommender(request, timeout=SECONDS)
        explained = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "GATE_CLOSED")
        assert "judged on 7 users, and 200 are needed" in explained.message
        assert stages(await listed(coordinator)) == {1: "CANDIDATE"}
        live = await promote(coordinator, 1, override="the old one shows what was withdrawn")
        assert live.reason == "the old one shows what was withdrawn"
        audit = await coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(task=TASK), timeout=SECONDS)
        assert audit.entries[0].reason == "version 1: the old one shows what was withdrawn"


async def test_of_two_operators_who_promote_at_once_the_second_is_judged_against_the_first(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 3)
        other = await built.coordinator()
        for number in (1, 2, 3):
            await admit(coordinator, number)
        await promote(coordinator, 1, evidence=judged())
        outcomes = await asyncio.gather(
            promote(coordinator, 2, evidence=judged(1)),
            promote(other, 3, evidence=judged(1)),
            return_exceptions=True,
        )
        refusals = [refusal_of(each) for each in outcomes if isinstance(each, grpc.RpcError)]
        assert len(refusals) == 1
        assert refusals[0] is not None
        assert refusals[0].reason == "GATE_CLOSED"
        assert "it was compared with version 1, but version" in refusals[0].message
        assert sorted(stages(await listed(other)).values()) == ["CANDIDATE", "LIVE", "RETIRED"]
        # Both want the same: one event, and both are answered that it is live.
        live = next(each.version for each in (await coordinator.task()).recommenders)
        left = 5 - live
        both = await asyncio.gather(*(promote(each, left, evidence=judged(live)) for each in (coordinator, other)))
        assert {each.stage for each in both} == {admin_pb2.RECOMMENDER_STAGE_LIVE}
        assert both[0].since_unix_milliseconds == both[1].since_unix_milliseconds


async def test_a_coordinator_that_was_killed_knows_what_was_promoted(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 2)
        await admit(coordinator, 1)
        promoted = await promote(coordinator, 1, evidence=judged())
        await coordinator.kill()
        again = await built.coordinator()
        assert list((await again.task()).recommenders) == [promoted]


async def test_what_may_be_served_again_is_never_collected(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 4)
        versions = [await admit(coordinator, number) for number in (1, 2, 3)]
        await promote(coordinator, 1, evidence=judged())
        await promote(coordinator, 2, evidence=judged(1))
        named = digests_named(await load_roots(built.journal, 1), built.blobs)
        assert {each.checkpoint.digest for each in versions} <= named


async def test_watchers_hear_of_a_promotion_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 1)
        await admit(coordinator, 1)
        watch = coordinator.admin.WatchTask(admin_pb2.WatchTaskRequest(task=TASK), timeout=SECONDS)
        states = aiter(watch)
        assert not (await anext(states)).task.recommenders
        promoting = asyncio.create_task(promote(coordinator, 1, evidence=judged()))
        while not (served := (await anext(states)).task.recommenders):
            pass
        assert (served[0].version, served[0].round) == (1, 1)
        await promoting
        watch.cancel()


async def test_what_cannot_be_rolled_back_to_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 2)
        await admit(coordinator, 1)
        for request, reason in (
            (admin_pb2.RollBackRecommenderRequest(task=TASK), "NOTHING_RETIRED"),
            (admin_pb2.RollBackRecommenderRequest(task=TASK, version=1), "WRONG_STAGE"),
            (admin_pb2.RollBackRecommenderRequest(task=TASK, version=9), "UNKNOWN_RECOMMENDER"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await coordinator.admin.RollBackRecommender(request, timeout=SECONDS)
            explained = refusal_of(caught.value)
            assert explained is not None
            assert explained.reason == reason
        call = coordinator.admin.AdmitRecommender(
            admin_pb2.AdmitRecommenderRequest(task=TASK, round=7), timeout=SECONDS
        )
        await refused(call, grpc.StatusCode.NOT_FOUND, "UNKNOWN_CHECKPOINT")


async def test_a_roll_back_takes_a_canary_back_first(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 2)
        for number in (1, 2):
            await admit(coordinator, number)
        await promote(coordinator, 1, evidence=judged())
        await promote(coordinator, 2, evidence=judged(1), canary_places=10_000)
        assert (await roll_back(coordinator, reason="slow")).version == 1
        assert stages(await listed(coordinator)) == {2: "CANDIDATE", 1: "LIVE"}


async def test_items_that_come_later_reach_the_live_version(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, 2)
        await admit(coordinator, 1)
        live = await promote(coordinator, 1, evidence=judged())
        task = await coordinator.task()
        newer = write_vocabulary("items", 2, [f"item {row}" for row in range(8)])
        task.spec.vocabularies["items"].digest = built.blobs.put(newer)
        task.spec.vocabularies["items"].size = len(newer)
        request = admin_pb2.EditTaskRequest(spec=task.spec, version=task.version)
        edited = (await coordinator.admin.EditTask(request, timeout=SECONDS)).task
        (served,) = edited.recommenders
        assert served.spec.vocabularies["items"] == task.spec.vocabularies["items"]
        assert (
            built.blobs.read(served.checkpoint.digest).decode() == f"{live.checkpoint.digest.hex()} with {{'items': 8}}"
        )
        assert (served.version, served.round) == (1, 1)


def told(users: int, mean: float, each: float = 10.0) -> dict[str, float]:
    """Sums of users with as many query examples each, whose errors are a tenth above or below the mean."""
    examples = users * each
    return {
        "squared_error": mean * examples,
        "squared_error.squared": 1.01 * mean**2 * users * each**2,
        "squared_error.times_examples": mean * examples * each,
        "query_examples": examples,
        "query_examples.squared": users * each**2,
    }


async def test_evaluation_rounds_open_the_gate_where_the_server_has_no_data(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.evaluation.CopyFrom(Evaluation(every_rounds=1, held_out_share=SHARE, report_goal=6))
        gate = Gate(minimum_users=6, margins={"rmse": 0.05})
        spec.serving.CopyFrom(Serving(by_promotion=True, evaluated_are_candidates=True, gate=gate))
        await coordinator.create(spec)
        for number, mean in ((1, 0.81), (3, 0.36), (5, 1.0)):
            await committed(built, coordinator, number, TRAINED[:3])
            built.sums.evaluation_sums = told(6, mean)
            assigned = await coordinator.assign(*HELD_OUT[:6])
            assert all(each.tells_spread for each in assigned)
            opened = built.sums.find(assigned[0].round).request
            assert [each.name for each in opened.metrics][1:] == [
                "query_examples",
                "query_examples.squared",
                "loss.squared",
                "loss.times_examples",
            ]
            await built.sums.report(assigned[0].round, 6)
            await coordinator.until(Phase.COMMITTED, number + 1)
        found = await until_listed(coordinator, 3)
        assert found.refusals[1] == ""
        await promote(coordinator, 1)
        better = await promote(coordinator, 2)
        assert better.evidence.source == "evaluation rounds 4 against 2"
        (rmse,) = better.evidence.measures
        assert rmse.value == pytest.approx(0.6)
        assert rmse.live_value == pytest.approx(0.9)
        assert rmse.highest_difference < 0
        request = admin_pb2.PromoteRecommenderRequest(task=TASK, version=3)
        call = coordinator.admin.PromoteRecommender(request, timeout=SECONDS)
        explained = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "GATE_CLOSED")
        assert "its rmse 1.0000 may be higher than the live one's 0.6000" in explained.message


async def test_evaluations_tell_what_people_chose_of_live_and_canary(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.evaluation.CopyFrom(Evaluation(every_rounds=3, held_out_share=SHARE, report_goal=6))
        spec.serving.CopyFrom(Serving(gate=Gate()))
        await coordinator.create(spec)
        for number in (1, 2):
            await committed(built, coordinator, number, TRAINED[:3])
            await admit(coordinator, number)
        await promote(coordinator, 1, override="the first one")
        await promote(coordinator, 2, canary_places=500, override="to see what people choose")
        await committed(built, coordinator, 3, TRAINED[:3])
        of_live = (120.0, 12.0, 120.0**2 / 6, 12.0**2 / 6, 120.0 * 12.0 / 6)
        outcomes = {name: 0.0 for name, _ in outcome_metrics([2])}
        outcomes |= dict(zip((name for name, _ in outcome_metrics([1])), of_live, strict=True))
        built.sums.evaluation_sums = {"loss": 2.5} | outcomes
        assigned = await coordinator.assign(*HELD_OUT[:6])
        assert {tuple(each.outcome_versions) for each in assigned} == {(1, 2)}
        opened = built.sums.find(assigned[0].round).request
        assert [each.name for each in opened.metrics][-10:] == [name for name, _ in outcome_metrics([1, 2])]
        # What the round asks for was kept when it was opened: a promotion changes nothing about it.
        await promote(coordinator, 2, override="at once")
        await built.sums.report(assigned[0].round, 6)
        await coordinator.until(Phase.COMMITTED, 4)
        by_version = {each.version: each for each in (await listed(coordinator)).recommenders}
        assert by_version[1].click_through.value == pytest.approx(0.1)
        assert by_version[1].click_through.highest == pytest.approx(0.1)
        assert by_version[1].shown == 120
        assert not by_version[2].HasField("click_through")


async def test_an_evaluated_checkpoint_becomes_a_candidate_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.evaluation.CopyFrom(Evaluation(every_rounds=1, held_out_share=SHARE, report_goal=6))
        spec.serving.CopyFrom(Serving(evaluated_are_candidates=True))
        await coordinator.create(spec)
        await committed(built, coordinator, 1, TRAINED[:3])
        await committed(built, coordinator, 2, HELD_OUT[:6])
        found = await until_listed(coordinator, 1)
        assert [(each.version, each.round, each.operator) for each in found.recommenders] == [(1, 1, "")]
        assert found.follows_newest
        await committed(built, coordinator, 3, TRAINED[:3])

        async def killed(*_: Any) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as patched:
            patched.setattr("fedrecon.coordinator.upkeep.Upkeep.admit_evaluated", killed)
            await committed(built, coordinator, 4, HELD_OUT[:6])
            await coordinator.kill()
        again = await built.coordinator()
        found = await until_listed(again, 2)
        assert [(each.version, each.round) for each in found.recommenders] == [(2, 3), (1, 1)]
        assert "nothing is known" in found.refusals[2]
