"""Figures of a chaos run: kills by role and phase, and how long rounds took to go on, against undisturbed rounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedrecon.coordinator.book import LEASE_MILLISECONDS
from support.chaos_driver import Kill, Outcome
from support.chaos_evidence import Times, times_of
from support.chaos_programs import PHASES, VICTIMS, Stage

VOIDED_SHARE_LIMIT = 0.02
RECOVERY_LIMIT_SECONDS = 5.0
_SAMPLE_MILLISECONDS = 3


def stage_of(kill: Kill, times: Times) -> Stage:
    """Returns where the round was when somebody was killed, as the journal has it.

    No event tells that a checkpoint is being written: for that the driver's own look counts.
    """
    stage = times.stage_at(kill.at)
    return Stage.COMMITTING if (stage, kill.stage) == (Stage.MERGING, Stage.COMMITTING) else stage


def kills_by_phase(kills: Sequence[Kill], times: Times) -> dict[str, dict[str, int]]:
    """Returns how often each role was killed in each phase of the round machine."""
    stages = Counter((kill.victim, stage_of(kill, times)) for kill in kills)
    return {
        victim: {phase: sum(stages[victim, stage] for stage in members) for phase, members in PHASES.items()}
        for victim in VICTIMS
    }


def undisturbed_waits(times: Times, until: int) -> dict[Stage, float]:
    """Returns the median time to the next accepted report from any moment of a stage, in seconds, without kills."""
    waits: dict[Stage, list[int]] = {}
    for instant in range(times.accepted[0], until, _SAMPLE_MILLISECONDS):
        wait = times.wait_for_report(instant)
        if wait is not None:
            waits.setdefault(times.stage_at(instant), []).append(wait)
    return {stage: statistics.median(each) / 1000 for stage, each in waits.items()}


def recoveries(kills: Sequence[Kill], times: Times, calm: Mapping[Stage, float]) -> list[float]:
    """Returns how much longer than undisturbed the next accepted report took after each kill, in seconds.

    Where the usual wait is not known, nothing is taken off; a kill that cost nothing took 0.
    """
    found = []
    for kill in kills:
        wait = times.wait_for_report(kill.at)
        if wait is not None:
            found.append(max(0.0, wait / 1000 - calm.get(times.stage_at(kill.at), 0.0)))
    return found


def quantile(values: Sequence[float], share: float) -> float | None:
    """Returns the value that this share of the values does not exceed; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def figures_of(outcome: Outcome, seed: int) -> dict[str, Any]:
    """Returns a run as one JSON object."""
    times, verdict = times_of(outcome.evidence), outcome.verdict
    calm = undisturbed_waits(times, outcome.calm_until)
    alone = [kill for kill in outcome.kills if kill.alone]
    all_recoveries = recoveries(outcome.kills, times, calm)
    commits = [wait / 1000 for kill in outcome.kills if (wait := times.wait_for_commit(kill.at)) is not None]
    p95 = quantile(all_recoveries, 0.95)
    return {
        "kills": len(outcome.kills),
        "rounds": verdict.committed,
        "acknowledged": verdict.acknowledged,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "voided_share": round(verdict.voided_share, 5),
        "recovery_p50_seconds": quantile(all_recoveries, 0.5),
        "recovery_p95_seconds": p95,
        "counted": verdict.counted,
        "voided": verdict.voided,
        "open": verdict.open,
        "abandoned_attempts": verdict.abandoned,
        "faults": len(verdict.faults),
        "kills_by_phase": kills_by_phase(outcome.kills, times),
        "kills_by_stage": dict(sorted(Counter(stage_of(kill, times) for kill in outcome.kills).items())),
        "kills_together": len(outcome.kills) - len(alone),
        "recovery_by_role": {
            victim: {
                "p50_seconds": quantile(found, 0.5),
                "p95_seconds": quantile(found, 0.95),
            }
            for victim in VICTIMS
            for found in [recoveries([kill for kill in alone if kill.victim == victim], times, calm)]
        },
        "next_commit_p50_seconds": quantile(commits, 0.5),
        "next_commit_p95_seconds": quantile(commits, 0.95),
        "undisturbed_seconds_to_report": {stage: round(wait, 3) for stage, wait in sorted(calm.items())},
        "lease_seconds": LEASE_MILLISECONDS / 1000,
        "seconds": round(outcome.seconds, 1),
        "seed": seed,
        "holds": {
            "lost_is_0": verdict.lost == 0,
            "doubled_is_0": verdict.doubled == 0,
            "no_faults": not verdict.faults,
            "voided_share_below_0.02": verdict.voided_share < VOIDED_SHARE_LIMIT,
            "recovery_p95_below_5_seconds": p95 is not None and p95 < RECOVERY_LIMIT_SECONDS,
        },
    }
