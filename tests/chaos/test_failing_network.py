"""Connections of devices are cut and stand still, in every phase of rounds: nothing is lost, rounds go on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from support.chaos_driver import failing_network, running
from support.hand_made_folder import write_hand_made_plan

ROUNDS = 8


async def test_nothing_is_lost_where_connections_are_cut_and_stand_still(tmp_path: Path) -> None:
    source = random.Random(1)
    async with (
        failing_network() as network,
        running(tmp_path / "home", write_hand_made_plan(tmp_path / "plan"), seed=1, network=network) as run,
    ):
        await run.rounds(2)
        done = asyncio.create_task(run.rounds(ROUNDS))
        while not done.done():
            await asyncio.sleep(source.random())
            proxy = source.choice([network.coordinator, network.aggregator])
            if source.random() < 0.7:
                proxy.cut()
            else:
                await proxy.stall(source.random())
        await done
        _, verdict = await run.end()
    assert network.coordinator.cuts > 0
    assert network.aggregator.cuts > 0
    assert verdict.faults == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.committed >= 2 + ROUNDS
