"""Programs of a chaos run: who is killed, in which stage of a round, and how far into it.

A program is drawn from its seed alone. What it hits depends on the moment, too: a seed gives the same blows again, not
the same run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

VICTIMS = ("coordinator", "aggregator", "valkey")
"""Processes that are killed."""


class Stage(StrEnum):
    """Where a round is: its phases, AGGREGATING in three parts, and the time between two attempts."""

    BETWEEN = "between"
    SELECTING = "selecting"
    REPORTING = "reporting"
    CLOSING = "closing"
    MERGING = "merging"
    COMMITTING = "committing"


AIMS = (Stage.SELECTING, Stage.REPORTING, Stage.CLOSING, Stage.MERGING, Stage.COMMITTING)
"""Stages that blows are aimed at."""

PHASES: dict[str, frozenset[Stage]] = {
    "selecting": frozenset({Stage.SELECTING}),
    "reporting": frozenset({Stage.REPORTING}),
    "aggregating": frozenset({Stage.CLOSING, Stage.MERGING, Stage.COMMITTING}),
}
"""Stages of each phase of the round machine."""

_SHARE_WITH_FOLLOWER = 0.15
_LONGEST_AFTER_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Follower:
    """Somebody who is killed after another, while that one may still be recovering.

    Attributes:
        victim: Who.
        after_seconds: How long after; 0: at once.
    """

    victim: str
    after_seconds: float


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill, and perhaps a second one.

    Attributes:
        victim: Who.
        stage: In which stage of a round.
        share: How far into it, as a share of the time that the stage usually takes.
        follower: Who is killed after.
    """

    victim: str
    stage: Stage
    share: float
    follower: Follower | None = None


def draw_program(seed: int, counts: dict[Stage, int]) -> tuple[Blow, ...]:
    """Returns blows in a random order: as many for each victim and stage as asked for."""
    source = random.Random(seed)
    blows = [
        Blow(victim, stage, round(source.random(), 3), _draw_follower(source))
        for victim in VICTIMS
        for stage in AIMS
        for _ in range(counts.get(stage, 0))
    ]
    source.shuffle(blows)
    return tuple(blows)


def _draw_follower(source: random.Random) -> Follower | None:
    if source.random() >= _SHARE_WITH_FOLLOWER:
        return None
    after = source.choice([0.0, source.random() * _LONGEST_AFTER_SECONDS])
    return Follower(source.choice(VICTIMS), round(after, 3))
