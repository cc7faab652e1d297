"""The whole stack from outside: rounds are committed, and what dies comes back without loss."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from fedrecon.device_sdk import Outcome
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_EVALUATE, SESSION_KIND_TRAIN
from support.town import Town

MAXIMUM_WEIGHT = 100


def is_complete(task: admin.Task) -> bool:
    return task.state == admin.TASK_STATE_COMPLETED


def assert_every_acknowledged_report_counts_once(town: Town) -> None:
    """The sums of weights and examples tell: a lost or doubled report would change them."""
    weights: defaultdict[tuple[int, int], int] = defaultdict(int)
    examples: defaultdict[tuple[int, int], int] = defaultdict(int)
    reports: defaultdict[tuple[int, int], int] = defaultdict(int)
    unsure = [each for each in town.participations if each.outcome is Outcome.UNREACHABLE and "+" in each.shape]
    assert not unsure, "a device gave up in its upload: it cannot say whether it was acknowledged"
    for each in town.participations:
        if each.outcome is Outcome.UPLOADED:
            key = (each.round, each.attempt)
            weights[key] += min(each.examples, MAXIMUM_WEIGHT)
            examples[key] += each.examples
            reports[key] += 1
    rounds = town.rounds()
    committed = [each for each in rounds if each.phase == admin.ROUND_PHASE_COMMITTED]
    assert committed
    for made in committed:
        key = (made.key.round, made.key.attempt)
        assert made.counted == reports.pop(key)
        assert made.weight == weights[key]
        assert made.metric_sums["examples"] == pytest.approx(examples[key])
    abandoned = {(e.key.round, e.key.attempt) for e in rounds if e.phase == admin.ROUND_PHASE_ABANDONED}
    assert set(reports) <= abandoned, "an acknowledged report is in no checkpoint, and its attempt was not abandoned"


def test_rounds_are_committed_with_dropouts_and_every_report_counts_once(town: Town, plan_folder: Path) -> None:
    town.create_task(plan_folder)
    town.wake(dropout=0.2)
    task = town.wait_until(is_complete)
    town.sleep_when_told()
    assert task.committed == 4
    assert town.dropouts > 0
    assert_every_acknowledged_report_counts_once(town)


def test_held_out_devices_evaluate_what_others_have_trained(town: Town, plan_folder: Path) -> None:
    town.create_task(
        plan_folder, "evaluation.every_rounds=1", "evaluation.held_out_share=0.4", "evaluation.report_goal=5"
    )
    town.wake(awake=len(town.people.training))  # or those who are held out might be all that is awake
    town.wait_until(is_complete)
    town.sleep_when_told()
    rounds = {each.key.round: each for each in town.rounds() if each.phase == admin.ROUND_PHASE_COMMITTED}
    kinds = [rounds[number].kind for number in (1, 2, 3, 4)]
    assert kinds == [SESSION_KIND_TRAIN, SESSION_KIND_EVALUATE] * 2
    for number in (2, 4):
        assert rounds[number].checkpoint == rounds[number - 1].checkpoint
        assert rounds[number].counted >= 5
        sums = rounds[number].metric_sums
        assert 0 < sums["squared_error"] / sums["examples"] < 4
    assert_every_acknowledged_report_counts_once(town)


@pytest.mark.parametrize("victim", ["coordinator", "aggregator", "valkey"])
def test_a_round_ends_without_loss_when_this_is_killed(town: Town, plan_folder: Path, victim: str) -> None:
    town.create_task(plan_folder, "rounds.report_goal=30", "rounds.over_selection=1.2")
    town.wake(awake=60)

    def in_the_middle(task: admin.Task) -> bool:
        return task.round.key.round >= 2 and task.round.phase == admin.ROUND_PHASE_REPORTING

    town.wait_until(in_the_middle)
    valkey = town.stack.valkey
    assert valkey is not None
    process = town.stack.roles[victim].process if victim != "valkey" else None
    os.kill(valkey.pid if process is None else process.pid, signal.SIGKILL)
    if process is not None:
        process.wait()
    else:
        while valkey.running:
            pass
    assert town.stack.mend() == [victim]
    task = town.wait_until(is_complete)
    town.sleep_when_told()
    assert task.committed == 4
    assert_every_acknowledged_report_counts_once(town)
