"""Cohorts are drawn once, and groups are open no longer than somebody can report to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrecon.coordinator import ledger, runner
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from support.coordinating import TASK, House, house, make_spec


class Refusing:
    """A journal that is away for appends that write to a round in which a device was noted."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._has_noted = False
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def remember(self, task: str, key: str, until_milliseconds: int) -> bool:
        self._has_noted = True
        return await self._journal.remember(task, key, until_milliseconds)

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        if self._has_noted and self.failures == 0:
            self.failures += 1
            raise JournalUnavailable("the journal is away")
        await self._journal.append(task, appends, lease=lease)


def _separated(built: House) -> Any:
    spec = make_spec(built.plan, over_selection=1)
    spec.eligibility.minimum_separation_milliseconds = 60_000
    return spec


async def test_devices_whose_drawing_was_not_kept_are_drawn_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runner, "_AFTER_OUTAGE_MILLISECONDS", 20)
    journal = Refusing(MemoryJournal())
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        await coordinator.create(_separated(built))
        answers = await asyncio.gather(*(coordinator.check_in(device) for device in (1, 2, 3)))
        assert journal.failures == 1
        assert all(answer.HasField("assignment") for answer in answers)


async def test_groups_are_not_opened_before_there_is_a_cohort(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(_separated(built))
        first = await coordinator.assign(1, 2, 3)
        await built.sums.report(first[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        answers = await asyncio.gather(*(coordinator.check_in(device) for device in (1, 2, 3)))
        ineligible = coordinator_pb2.REJECTION_REASON_INELIGIBLE
        assert [answer.rejection.reason for answer in answers] == [ineligible] * 3
        assert (TASK, 2, 1) not in built.sums.attempts


async def test_a_round_whose_groups_were_all_given_up_is_tried_again_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan, reporting_milliseconds=600_000))
        await coordinator.assign(1, 2, 3)
        attempt = built.sums.attempts[TASK, 1, 1]
        async with attempt.changed:
            attempt.phase = aggregator_pb2.GROUP_PHASE_ABORTED
            attempt.changed.notify_all()
        await coordinator.until(Phase.SELECTING, attempt=2)
        given_up = (await ledger.load_round(built.journal, TASK, 1)).attempts[0].abandoned
        assert given_up is not None
        assert "gave all groups up" in given_up.reason
