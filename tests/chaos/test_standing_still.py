"""A process that stands still for longer than a lease lasts, and goes on as if nothing had been, harms nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrecon.coordinator.book import LEASE_MILLISECONDS
from support.chaos_driver import running
from support.chaos_programs import VICTIMS
from support.hand_made_folder import write_hand_made_plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "seconds"), [*((each, 2 * LEASE_MILLISECONDS / 1000) for each in VICTIMS), ("valkey", 60)]
)
async def test_rounds_go_on_and_nothing_is_lost(tmp_path: Path, victim: str, seconds: float) -> None:
    async with running(tmp_path / "home", write_hand_made_plan(tmp_path / "plan"), seed=1) as run:
        await run.rounds(3)
        await run.stop_for(victim, seconds)
        _, verdict = await run.end()
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.counted > 0
