"""A sum that is nothing like those of recent rounds is refused, and its round tried again."""

from __future__ import annotations

from pathlib import Path

from fedrecon.coordinator.plausibility import FEWEST_ROUNDS
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import admin_pb2
from support.coordinating import TASK, house, make_spec


async def test_a_poisoned_sum_is_refused_and_the_round_tried_again(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan, retry_milliseconds=10))
        for number in range(1, FEWEST_ROUNDS + 1):
            (first, *_) = await coordinator.assign(1, 2, 3)
            await built.sums.report(first.round, 3)
            await coordinator.until(Phase.COMMITTED, number=number)
        built.sums.update_norm = 25.0
        (first, *_) = await coordinator.assign(1, 2, 3)
        await built.sums.report(first.round, 3)
        abandoned = await coordinator.until(Phase.ABANDONED, number=FEWEST_ROUNDS + 1)
        assert abandoned.abandoned is not None
        assert "not believed" in abandoned.abandoned.reason
        assert "100 times" in abandoned.abandoned.reason
        task = (await coordinator.admin.GetTask(admin_pb2.GetTaskRequest(task=TASK), timeout=5)).task
        assert task.committed == FEWEST_ROUNDS
        built.sums.update_norm = 0.3
        (again, *_) = await coordinator.assign(1, 2, 3)
        assert (again.round.round, again.round.attempt) == (FEWEST_ROUNDS + 1, 2)
        await built.sums.report(again.round, 3)
        await coordinator.until(Phase.COMMITTED, number=FEWEST_ROUNDS + 1, attempt=2)
