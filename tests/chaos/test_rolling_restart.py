"""Every service is restarted, one replica after the other, while rounds go on: nobody who takes part is the worse."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_channel
from support.chaos_driver import SPEC as SPEC_OF_CHAOS
from support.chaos_driver import training
from support.chaos_log import Took, read_notes
from support.chaos_replicas import PAIRS, Deployment, ReplicatedStack, deployed
from support.hand_made_folder import write_hand_made_plan

ROUNDS = 20
SPEC = (
    *SPEC_OF_CHAOS,
    "rounds.report_goal=12",
    "rounds.minimum_cohort=20",
    "rounds.minimum_reports=6",
    "secure_sum.maximum_reports=12",
)
"""Groups large enough that none falls below its threshold by the chance of who comes first: rounds that nobody disturbs
are never abandoned."""

_WARM_ROUNDS = 2
_ROUNDS_BETWEEN = 3
_LOOK_SECONDS = 0.05


class Caller:
    """Calls inference through its balancer, all the time, as one whose channel is kept does."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.answers: Counter[str] = Counter()

    async def run(self) -> None:
        settings = self._deployment.stack.settings
        async with open_channel(self._deployment.inferences.address, settings.tls_server_authority) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                    self.answers[health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)] += 1
                except grpc.aio.AioRpcError as error:
                    self.answers[error.code().name] += 1
                await asyncio.sleep(_LOOK_SECONDS)


@pytest.mark.slow
async def test_a_rolling_restart_of_everything_costs_no_report_and_no_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_hand_made_plan(tmp_path / "plan")
    stack = ReplicatedStack(Settings(home=tmp_path / "home"))
    async with (
        deployed(stack) as deployment,
        training(stack, plan, deployment.coordinators.address, seed=1, spec=SPEC) as run,
    ):
        caller = Caller(deployment)
        calling = asyncio.create_task(caller.run())
        await run.rounds(_WARM_ROUNDS)
        began = run.watch.number
        for role in PAIRS:
            for is_second in (False, True):
                await deployment.roll(role, is_second=is_second)
                await run.rounds(_ROUNDS_BETWEEN)
        await run.rounds(max(0, began + ROUNDS - run.watch.number))
        calling.cancel()
        evidence, verdict = await run.end()
        took = [note for note in read_notes(run.log) if isinstance(note, Took)]
    figures: dict[str, Any] = {
        "restarts": [(one.name, one.exit_code, round(one.drain_seconds, 2)) for one in deployment.restarts],
        "rounds": verdict.committed,
        "acknowledged": verdict.acknowledged,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "voided": verdict.voided,
        "abandoned_attempts": verdict.abandoned,
        "sessions": dict(Counter(note.outcome for note in took)),
        "failed": dict(Counter(note.reason for note in took if note.outcome == "failed")),
        "inference": dict(caller.answers),
    }
    with capsys.disabled():
        print(json.dumps(figures))  # noqa: T201 - the figures are asked for
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.abandoned == 0
    assert verdict.committed >= began + ROUNDS - 1
    assert [one.exit_code for one in deployment.restarts] == [0] * 2 * len(PAIRS)
    assert len({trail.opened.holder for trail in evidence.trails.values()}) == 2, "both aggregators had groups"
    assert caller.answers.keys() == {"SERVING"}
