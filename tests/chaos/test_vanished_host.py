"""Packets are swallowed between devices and services, and nobody is told: rounds wait, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from support.chaos_driver import training
from support.far_network import far_network
from support.hand_made_folder import write_hand_made_plan

_SILENCES_SECONDS = (0.5, 2.0, 5.0, 10.0)


@pytest.mark.slow
async def test_no_report_is_lost_where_the_network_swallows_packets(tmp_path: Path) -> None:
    plan = write_hand_made_plan(tmp_path / "plan")
    with far_network() as network:
        host = {"FEDRECON_HOST": network.here}
        stack = Stack(Settings(home=tmp_path / "home", host=network.here), environment=host)
        try:
            await asyncio.to_thread(stack.start)
            coordinator = stack.roles["coordinator"].address
            assert coordinator.startswith(network.here)
            async with training(stack, plan, coordinator, seed=1, place=network.place) as run:
                await run.rounds(3)
                for seconds in _SILENCES_SECONDS:
                    async with network.swallowing():
                        await asyncio.sleep(seconds)
                    await run.rounds(2)
                _, verdict = await run.end()
        finally:
            await asyncio.to_thread(stack.stop)
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.committed >= 3 + 2 * len(_SILENCES_SECONDS)
