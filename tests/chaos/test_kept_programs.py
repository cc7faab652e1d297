"""Kills lose nothing: a short program as `make test-chaos` runs it for long, and programs that found a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrecon.aggregator.group_events import TakenOver
from support.chaos_driver import run_program
from support.chaos_programs import Blow, Follower, Stage
from support.chaos_second import SECOND
from support.hand_made_folder import write_hand_made_plan

SHORT = "one of every role"

PROGRAMS: dict[str, tuple[Blow, ...]] = {
    SHORT: (
        Blow("valkey", Stage.REPORTING, 0.5),
        Blow("aggregator", Stage.CLOSING, 0.5),
        Blow("coordinator", Stage.COMMITTING, 0.0),
    ),
    "a few of every role": (
        Blow("aggregator", Stage.REPORTING, 0.5),
        Blow("valkey", Stage.MERGING, 0.5),
        Blow("coordinator", Stage.COMMITTING, 0.0),
        Blow("valkey", Stage.REPORTING, 0.5),
        Blow("aggregator", Stage.CLOSING, 0.5),
        Blow("coordinator", Stage.SELECTING, 0.5),
    ),
    "who starts is killed, or what it waits for": (
        Blow("coordinator", Stage.REPORTING, 0.5, Follower("valkey", 0.4)),
        Blow("aggregator", Stage.REPORTING, 0.5, Follower("aggregator", 0.4)),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == SHORT else pytest.mark.slow) for name in PROGRAMS]
)
async def test_nothing_is_lost_or_counted_twice(tmp_path: Path, name: str) -> None:
    program = PROGRAMS[name]
    plan = write_hand_made_plan(tmp_path / "plan")
    outcome = await run_program(tmp_path / "home", plan, program, seed=1, calm_rounds=2)
    verdict = outcome.verdict
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert len(outcome.kills) == len(program) + sum(blow.follower is not None for blow in program)
    assert verdict.committed > 2
    assert verdict.counted > 0


@pytest.mark.slow
async def test_nothing_is_lost_or_counted_twice_when_one_of_two_aggregators_stays_away(tmp_path: Path) -> None:
    plan = write_hand_made_plan(tmp_path / "plan")
    program = (
        Blow(SECOND, Stage.REPORTING, 0.5),
        Blow(SECOND, Stage.CLOSING, 0.0),
        Blow("aggregator", Stage.REPORTING, 0.5, Follower(SECOND, 0.2)),
        Blow("valkey", Stage.REPORTING, 0.5, Follower(SECOND, 0.0)),
        Blow(SECOND, Stage.MERGING, 0.0),
    )
    outcome = await run_program(tmp_path / "home", plan, program, seed=1, calm_rounds=2, has_second=True)
    verdict = outcome.verdict
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    trails = outcome.evidence.trails.values()
    assert len({trail.opened.holder for trail in trails}) == 2, "both had groups"
    assert any(isinstance(event, TakenOver) for trail in trails for event in trail.events)
    assert verdict.committed > 2 * len(program)
