"""Cohorts are drawn once, and groups are open no longer than somebody can report to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrecon.coordinator import ledger, runner
from fedrecon.coordinator.assignments import is_sampled
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal import Append, Journal, JournalUnavailable, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from support.coordinating import KEY, TASK, House, house, make_spec


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


async def test_devices_are_gathered_for_the_next_round_while_this_one_is_merged(tmp_path: Path) -> None:
    window = 3_000
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan, selection_milliseconds=window))
        (first, *_) = await coordinator.assign(1, 2, 3)
        built.sums.may_merge.clear()
        await built.sums.report(first.round, 3)
        await coordinator.until(Phase.AGGREGATING)
        waiting = asyncio.create_task(coordinator.assign(4, 5, 6))
        await asyncio.sleep(window / 1000)
        assert not waiting.done(), "who is drawn is told when the checkpoint is there"
        built.sums.may_merge.set()
        assigned = await waiting
        assert {each.round.round for each in assigned} == {2}
        following = await coordinator.until(Phase.REPORTING, number=2)
        assert following.assigned_at - following.opened_at < window


async def test_only_sampled_devices_are_drawn_however_long_they_have_waited(tmp_path: Path) -> None:
    rate = 0.5
    privacy = task_pb2.Privacy(noise_multiplier=0.2, clip_norm=1, delta=1e-5, epsilon_budget=1000, sampling_rate=rate)
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.privacy.CopyFrom(privacy)
        spec.secure_sum.maximum_weight = 1
        await coordinator.create(spec)
        devices = range(1, 30)
        sampled = [one for one in devices if is_sampled(KEY, 1, 1, TASK, one.to_bytes(32, "little"), rate)]
        others = [one for one in devices if one not in sampled]
        assert len(sampled) > 3 < len(others)
        rejected = await asyncio.gather(*(coordinator.check_in(one) for one in others[:3]))
        assert {each.rejection.reason for each in rejected} == {coordinator_pb2.REJECTION_REASON_INELIGIBLE}
        assert len(await coordinator.assign(*sampled[:3])) == 3


async def test_a_device_is_drawn_once_for_a_tree_of_noise(tmp_path: Path) -> None:
    privacy = task_pb2.Privacy(noise_multiplier=1, clip_norm=1, delta=1e-5, epsilon_budget=1000, tree_sums=2)
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        spec.privacy.CopyFrom(privacy)
        spec.secure_sum.maximum_weight = 1
        await coordinator.create(spec)
        removed = []
        for number, devices in enumerate([(1, 2, 3), (4, 5, 6), (1, 2, 3)], start=1):
            if number == 2:
                again = await asyncio.gather(*(coordinator.check_in(device) for device in (1, 2, 3)))
                assert {each.rejection.reason for each in again} == {coordinator_pb2.REJECTION_REASON_INELIGIBLE}
            assigned = await coordinator.assign(*devices)
            await built.sums.report(assigned[0].round, 3)
            await coordinator.until(Phase.COMMITTED, number)
            removed.append(len(built.sums.merge_requests[-1].noise_removed))
        assert removed == [0, 1, 0], "the second tree begins anew"
        assert len({merge.noise_added for merge in built.sums.merge_requests}) == 3
