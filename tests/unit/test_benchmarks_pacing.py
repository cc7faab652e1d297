"""The simulation of check-ins: what pace steering does to populations of two sizes."""

from __future__ import annotations

import numpy as np

from fedrecon.benchmarks.pacing import Course, simulate

HOURS = 4


def settled(course: Course) -> tuple[np.ndarray, np.ndarray]:
    half = len(course.calls) // 2
    return course.calls[half:], course.selecting[half:]


def test_a_small_population_is_gathered_in_selections_and_has_more_rounds() -> None:
    paced, fixed = simulate(1_000, steered=True, hours=HOURS), simulate(1_000, steered=False, hours=HOURS)
    calls, selecting = settled(paced)
    calls_fixed, selecting_fixed = settled(fixed)
    assert calls[selecting].sum() / calls.sum() > 1.15 * calls_fixed[selecting_fixed].sum() / calls_fixed.sum()
    assert len(paced.rounds) > len(fixed.rounds)


def test_a_large_population_is_spread_and_never_short_of_devices() -> None:
    paced, fixed = simulate(3_000_000, steered=True, hours=HOURS), simulate(3_000_000, steered=False, hours=HOURS)
    calls, _ = settled(paced)
    assert calls.sum() < 0.05 * settled(fixed)[0].sum()
    minutes = calls.reshape(-1, 6).sum(axis=1)
    assert minutes.max() < 1.5 * minutes.mean()
    assert len(paced.rounds) == len(fixed.rounds)


def test_nobody_is_lost_between_calls() -> None:
    course = simulate(500, steered=False, hours=HOURS)
    # Everybody calls about every five minutes and is able to from 30% to 90% of the time.
    assert 500 * HOURS * 3 < course.calls.sum() < 500 * HOURS * 13
