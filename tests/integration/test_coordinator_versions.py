"""A new plan for a running population: old SDKs keep the old task."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import coordinator_pb2
from support.coordinating import TASK, house, make_spec

NEWER = "films-2"


async def test_an_old_sdk_keeps_the_old_task_when_a_new_one_needs_a_newer(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        older, newer = make_spec(built.plan), make_spec(built.plan)
        older.eligibility.maximum_sdk_version = "0.1.9"
        await coordinator.create(older)
        before = await coordinator.assign(1, 2, 3)
        assert {each.round.task for each in before} == {TASK}
        newer.name, newer.eligibility.minimum_sdk_version = NEWER, "0.2.0"
        await coordinator.create(newer)
        await built.sums.report(before[0].round, 3)
        await coordinator.until(Phase.COMMITTED)

        async def check_in(device: int, version: str) -> coordinator_pb2.CheckInResponse:
            return await coordinator.check_in(device, sdk_version=version)

        answers = await asyncio.gather(
            *(check_in(device, "0.1.0") for device in (1, 2, 3)), *(check_in(device, "0.2.0") for device in (4, 5, 6))
        )
        assert [answer.assignment.round.task for answer in answers] == [TASK] * 3 + [NEWER] * 3
        assert [answer.assignment.round.round for answer in answers] == [2] * 3 + [1] * 3
        neither = await check_in(7, "0.1.10")
        assert neither.rejection.reason == coordinator_pb2.REJECTION_REASON_VERSION
        assert coordinator.counted("device_versions", version="0.1.0") == 3
