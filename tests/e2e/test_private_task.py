"""A task with a privacy budget: its sums are noisy, and it stops itself when the budget is spent."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from fedrecon.coordinator.accounting import epsilon_after
from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.privacy_commands import show
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.task_pb2 import Privacy
from support.town import TASK, Town

SUMS = 3
PRIVACY = Privacy(noise_multiplier=0.8, delta=1e-5, clip_norm=0.5, clip_quantile=0.5)


def test_a_task_with_a_small_budget_stops_at_the_right_round(
    town: Town, plan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = epsilon_after(PRIVACY, SUMS) * 1.001
    town.create_task(
        plan_folder,
        "rounds.maximum_rounds=50",
        "secure_sum.maximum_weight=1",
        f"privacy.noise_multiplier={PRIVACY.noise_multiplier}",
        f"privacy.clip_norm={PRIVACY.clip_norm}",
        f"privacy.clip_quantile={PRIVACY.clip_quantile}",
        f"privacy.delta={PRIVACY.delta}",
        f"privacy.epsilon_budget={budget}",
    )
    town.wake()
    task = town.wait_until(lambda task: task.state == admin.TASK_STATE_COMPLETED)
    assert "privacy budget is spent" in task.reason
    made = town.rounds()
    attempts = [each for each in made if each.phase == admin.ROUND_PHASE_COMMITTED]
    assert 1 <= len(attempts) <= SUMS
    assert all(not each.metric_sums for each in attempts), "no metric sum is released"
    with open_sync_channel(town.stack.roles["coordinator"].address, town.stack.home) as channel:
        told = AdminStub(channel).GetPrivacy(admin.GetPrivacyRequest(task=TASK), timeout=10)
    assert told.epsilon == pytest.approx(epsilon_after(PRIVACY, SUMS))
    assert "the budget is spent" in told.statement
    (mechanism,) = [line for line in told.assumptions if line.startswith("Mechanism")]
    assert "clip norm 0.5 now" not in mechanism, "it follows the norms"
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    said = io.StringIO()
    with redirect_stdout(said):
        show(TASK)
    assert "differentially private" in said.getvalue()
    assert "Accountant: dp-accounting" in said.getvalue()
