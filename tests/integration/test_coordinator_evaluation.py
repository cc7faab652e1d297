"""Evaluation rounds: on devices that were held out from training, and without any change."""

from __future__ import annotations

from pathlib import Path

from fedrecon.coordinator.assignments import is_held_out
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import admin_pb2, coordinator_pb2
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_EXAMPLES, Evaluation
from support.coordinating import KEY, TASK, Coordinator, House, house, make_spec

SHARE = 0.3
HELD_OUT = [n for n in range(1, 60) if is_held_out(KEY, TASK, n.to_bytes(32, "little"), SHARE)]
TRAINED = [n for n in range(1, 60) if n not in HELD_OUT]


async def begun(built: House) -> Coordinator:
    coordinator = await built.coordinator()
    spec = make_spec(built.plan)
    spec.evaluation.CopyFrom(Evaluation(every_rounds=2, held_out_share=SHARE, report_goal=6))
    await coordinator.create(spec)
    return coordinator


async def ended(built: House, coordinator: Coordinator, devices: list[int], number: int) -> None:
    assigned = await coordinator.assign(*devices)
    await built.sums.report(assigned[0].round, len(devices))
    await coordinator.until(Phase.COMMITTED, number)


def test_about_the_share_asked_for_is_held_out_and_stays_so_when_it_grows() -> None:
    keys = [n.to_bytes(32, "little") for n in range(4_000)]
    few = {key for key in keys if is_held_out(KEY, TASK, key, 0.1)}
    more = {key for key in keys if is_held_out(KEY, TASK, key, 0.2)}
    assert 0.08 < len(few) / len(keys) < 0.12
    assert few < more
    assert few != {key for key in keys if is_held_out(KEY, "books", key, 0.1)}
    assert few != {key for key in keys if is_held_out(KEY[::-1], TASK, key, 0.1)}


async def test_every_so_many_rounds_held_out_devices_evaluate_and_nothing_changes(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        await ended(built, coordinator, TRAINED[:3], 1)
        await ended(built, coordinator, TRAINED[3:6], 2)
        before = await coordinator.task()
        assigned = await coordinator.assign(*HELD_OUT[:8])
        assert len(assigned) == 8
        assert {each.kind for each in assigned} == {coordinator_pb2.SESSION_KIND_EVALUATE}
        assert all(not each.layout.segments for each in assigned)
        # Training has no split here; an evaluation always has one.
        assert {each.work.split for each in assigned} == {SPLIT_RULE_ALTERNATE_EXAMPLES}
        await built.sums.report(assigned[0].round, 6)
        await coordinator.until(Phase.COMMITTED, 3)
        after = await coordinator.task()
        assert after.checkpoint == before.checkpoint
        assert after.committed == 3
        listed = await coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task=TASK), timeout=10)
        evaluated = next(each for each in listed.rounds if each.key.round == 3)
        assert evaluated.kind == coordinator_pb2.SESSION_KIND_EVALUATE
        assert evaluated.metric_sums == {"loss": 2.5}
        checkpoints = await coordinator.admin.ListCheckpoints(admin_pb2.ListCheckpointsRequest(task=TASK), timeout=10)
        assert [(each.round, each.live) for each in checkpoints.checkpoints] == [(2, True), (1, False), (0, False)]
        explained = await coordinator.admin.ExplainRound(admin_pb2.ExplainRoundRequest(task=TASK, round=3), timeout=10)
        assert "evaluation round 3" in explained.story[0]
        assert any("Evaluated checkpoint" in sentence for sentence in explained.story)
        assert not any("Committed checkpoint" in sentence for sentence in explained.story)
        # Training goes on from the checkpoint that was evaluated.
        await ended(built, coordinator, TRAINED[:3], 4)
        made = (await coordinator.task()).checkpoint
        assert built.blobs.read(made.digest).decode().endswith(before.checkpoint.digest.hex())


async def test_held_out_devices_never_train_and_others_never_evaluate(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        answer = await coordinator.check_in(HELD_OUT[0])
        assert answer.rejection.reason == coordinator_pb2.REJECTION_REASON_INELIGIBLE
        trained = await coordinator.check_in(TRAINED[0], seconds=1.5)
        # Two rounds of training come before the evaluation: a held-out device comes back later than others.
        assert answer.retry_windows.rejected.min_milliseconds > trained.retry_windows.rejected.min_milliseconds
        await ended(built, coordinator, TRAINED[:3], 1)
        await ended(built, coordinator, TRAINED[:3], 2)
        await coordinator.until(Phase.SELECTING, 3)
        answer = await coordinator.check_in(TRAINED[0])
        assert answer.rejection.reason == coordinator_pb2.REJECTION_REASON_INELIGIBLE
