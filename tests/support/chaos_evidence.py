"""What a chaos run leaves behind: the journal's rounds and groups, the devices' log, and a reading of its times."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedrecon.aggregator import group_events
from fedrecon.aggregator.summing import CODEC
from fedrecon.coordinator import ledger, round_events
from fedrecon.coordinator.entries import Entry
from fedrecon.ops.journal import Journal
from support.chaos_programs import Stage

_STAGES: Mapping[type[round_events.Event], Stage] = {
    round_events.Opened: Stage.SELECTING,
    round_events.Assigned: Stage.REPORTING,
    round_events.ReportingEnded: Stage.CLOSING,
    round_events.GroupsClosed: Stage.MERGING,
    round_events.Committed: Stage.BETWEEN,
    round_events.Abandoned: Stage.BETWEEN,
}
"""The stage that an event leads to; others move none."""

RoundEntries = list[Entry[round_events.Event]]


@dataclass(frozen=True, slots=True)
class Trail:
    """The events of one sum group, in order; the first is `Opened`."""

    events: tuple[group_events.Event, ...]

    @property
    def opened(self) -> group_events.Opened:
        first = self.events[0]
        assert isinstance(first, group_events.Opened)
        return first


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the journal of a task was seen to hold.

    Attributes:
        rounds: Entries of every round as they were written, by number; the journal itself keeps summaries of old ones.
        trails: Its sum groups, by id.
    """

    rounds: Mapping[int, RoundEntries]
    trails: Mapping[bytes, Trail]


async def load_trails(journal: Journal, task: str) -> dict[bytes, Trail]:
    """Reads all sum groups of a task, by id."""
    trails = {}
    for stream in await journal.streams(task, "group/"):
        trail = Trail(tuple(CODEC.decode(one.event) for one in (await journal.load(task, stream)).events))
        trails[trail.opened.group] = trail
    return trails


async def load_checkpoints(journal: Journal, task: str, rounds: int) -> dict[int, bytes]:
    """Reads the digest of every committed round's checkpoint, also where only a summary of the round is left."""
    checkpoints = {}
    for number in range(1, rounds + 1):
        at = await ledger.load_round(journal, task, number)
        if at.summary is not None:
            checkpoints[number] = at.summary.messages[-1].checkpoint.digest
        elif at.last is not None and at.last.committed is not None:
            checkpoints[number] = at.last.committed.checkpoint.digest
    return checkpoints


@dataclass(frozen=True, slots=True)
class Times:
    """When rounds changed their stage, and when reports were accepted; Unix milliseconds, in order."""

    changes: list[tuple[int, Stage]]
    accepted: list[int]
    committed: list[int] = field(default_factory=list)

    def stage_at(self, instant: int) -> Stage:
        place = bisect.bisect_right(self.changes, instant, key=lambda change: change[0])
        return self.changes[place - 1][1] if place else Stage.BETWEEN

    def wait_for_report(self, instant: int) -> int | None:
        """Returns the milliseconds until the next report is accepted; None if none ever was."""
        return _wait(self.accepted, instant)

    def wait_for_commit(self, instant: int) -> int | None:
        """Returns the milliseconds until the next commit; None if there was none."""
        return _wait(self.committed, instant)

    def usual_lengths(self) -> dict[Stage, float]:
        """Returns the median length of each stage, in seconds."""
        lengths: dict[Stage, list[int]] = {}
        for (begun, stage), (ended, _) in zip(self.changes, self.changes[1:], strict=False):
            lengths.setdefault(stage, []).append(ended - begun)
        return {stage: sorted(each)[len(each) // 2] / 1000 for stage, each in lengths.items()}


def times_of(evidence: Evidence) -> Times:
    """Reads the times of a journal."""
    changes, committed = [], []
    for entries in evidence.rounds.values():
        for entry in entries:
            if type(entry.event) in _STAGES:
                changes.append((entry.at, _STAGES[type(entry.event)]))
            if isinstance(entry.event, round_events.Committed):
                committed.append(entry.at)
    accepted = [
        event.at_milliseconds
        for trail in evidence.trails.values()
        for event in trail.events
        if isinstance(event, group_events.Accepted)
    ]
    # Stable: of two changes in one millisecond the later one counts.
    return Times(sorted(changes, key=lambda change: change[0]), sorted(accepted), sorted(committed))


def _wait(instants: list[int], instant: int) -> int | None:
    place = bisect.bisect_right(instants, instant)
    return instants[place] - instant if place < len(instants) else None
