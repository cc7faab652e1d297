"""Whether pace steering spreads a large population and gathers a small one: a day and a half, call by call.

Devices are exchangeable, so only their numbers are simulated, in steps of ten seconds: ten million take as long as a
thousand. All learn of the task within ten minutes (an update of the app), call when their window says, but only when
they idle and charge, which most do at night; who does not then tries within the hour. Rounds, windows, the count of
devices and the hour of the day go through the coordinator's own cores.

Measured: for the large population, how far the busiest minute is above the mean one, on the second day; for the small
one, which share of its calls falls into a selection; for both, rounds in an hour. Beside them the same populations
with a wait of five minutes for everybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrecon.benchmarks.measures import Measure
from fedrecon.coordinator.pacing import Rhythm, Window, Windows, pace
from fedrecon.coordinator.population import Census

SMALL, LARGE = 1_000, 10_000_000
LARGEST_PEAK = 2.0
LEAST_SHARE_GATHERED = 0.7

STEP_MILLISECONDS = 10_000
HOURS = 48
COHORT = 130
SELECTION, REPORTING = 60_000, 150_000
"""Milliseconds of a round's phases: rounds of 2 to 3 minutes (Bonawitz et al. 2019, section 9)."""
_ROLL_OUT_MILLISECONDS = 600_000
_HOUR_MILLISECONDS = 3_600_000
_FIXED = Window(150_000, 450_000)
_MINUTE_STEPS = 60_000 // STEP_MILLISECONDS


@dataclass(frozen=True, slots=True)
class Course:
    """What happened.

    Attributes:
        calls: Check-ins in each step.
        selecting: Whether a selection was open in each step.
        rounds: Steps in which a cohort was drawn.
    """

    calls: NDArray[np.int64]
    selecting: NDArray[np.bool_]
    rounds: tuple[int, ...]

    @property
    def by_minute(self) -> NDArray[np.int64]:
        """Check-ins of each minute."""
        minutes: NDArray[np.int64] = self.calls.reshape(-1, _MINUTE_STEPS).sum(axis=1)
        return minutes


def measure_pacing(plot: Path | None) -> list[Measure]:
    """Simulate both populations, with pace steering and without.

    Args:
        plot: Where a chart of check-ins a minute is written; None: nowhere.
    """
    small, large = simulate(SMALL, steered=True), simulate(LARGE, steered=True)
    small_fixed, large_fixed = simulate(SMALL, steered=False), simulate(LARGE, steered=False)
    if plot is not None:
        _draw(plot, small, large, small_fixed, large_fixed)
    return [
        Measure("peak_over_mean_calls_of_10000000", _peak_over_mean(large), "ratio", LARGEST_PEAK),
        Measure("calls_a_second_of_10000000", _second_day(large).mean() / 60, "1/s"),
        Measure("calls_a_second_of_10000000_without", _second_day(large_fixed).mean() / 60, "1/s"),
        Measure("rounds_an_hour_of_10000000", _rounds_an_hour(large), "1/h"),
        Measure("share_of_calls_in_selections_of_1000", _gathered(small), "ratio", LEAST_SHARE_GATHERED, "at least"),
        Measure("share_of_calls_in_selections_of_1000_without", _gathered(small_fixed), "ratio"),
        Measure("rounds_an_hour_of_1000", _rounds_an_hour(small), "1/h"),
        Measure("rounds_an_hour_of_1000_without", _rounds_an_hour(small_fixed), "1/h"),
        Measure("rounds_an_hour_at_most", _HOUR_MILLISECONDS / (SELECTION + REPORTING), "1/h"),
    ]


def simulate(devices: int, *, steered: bool, hours: int = HOURS) -> Course:
    """Simulate a population.

    Args:
        devices: How many there are.
        steered: Whether the coordinator paces them; otherwise everybody waits about five minutes.
        hours: How long.
    """
    generator = np.random.default_rng(0)
    steps = hours * _HOUR_MILLISECONDS // STEP_MILLISECONDS
    due = np.zeros(steps, dtype=np.int64)
    _spread(due, devices, 0, Window(0, _ROLL_OUT_MILLISECONDS), generator)
    calls, selecting = np.zeros(steps, dtype=np.int64), np.zeros(steps, dtype=bool)
    rounds: list[int] = []
    census, seen, waiting = Census(), 0, 0
    phase_ends, is_selecting = SELECTION, True
    for step in range(steps):
        now = step * STEP_MILLISECONDS
        able = int(generator.binomial(due[step], _availability(now)))
        _spread(due, int(due[step]) - able, step, Window(STEP_MILLISECONDS, _HOUR_MILLISECONDS), generator)
        seen = min(seen + able, devices)  # as if nobody called twice before all have called
        census.note(0, now)
        census.hours[now // _HOUR_MILLISECONDS % len(census.hours)] += able
        calls[step], selecting[step] = able, is_selecting
        windows = _windows(seen, census.busyness(now), max(phase_ends - now, 0), steered=steered)
        if is_selecting:
            waiting += able
        else:
            _spread(due, able, step, windows.rejected, generator)
        if now + STEP_MILLISECONDS < phase_ends:
            continue
        if not is_selecting:
            is_selecting, phase_ends = True, now + STEP_MILLISECONDS + SELECTION
        elif waiting < COHORT:
            phase_ends = now + STEP_MILLISECONDS + SELECTION
        else:
            rounds.append(step)
            told = _windows(seen, census.busyness(now), REPORTING, steered=steered)
            _spread(due, waiting - COHORT, step, told.rejected, generator)
            then = _windows(seen, census.busyness(now), 0, steered=steered).accepted
            after = Window(REPORTING + then.minimum, REPORTING + then.maximum)
            _spread(due, COHORT, step, after, generator)
            waiting, is_selecting, phase_ends = 0, False, now + STEP_MILLISECONDS + REPORTING
    return Course(calls, selecting, tuple(rounds))


def _windows(seen: int, busyness: float, until_phase_ends: int, *, steered: bool) -> Windows:
    if not steered:
        return Windows(_FIXED, _FIXED)
    rhythm = Rhythm(until_phase_ends, SELECTION, REPORTING, 0, COHORT)
    return pace(rhythm, seen, busyness)


def _spread(due: NDArray[np.int64], devices: int, step: int, window: Window, generator: np.random.Generator) -> None:
    """Adds devices to the steps in which they are due, each at a moment of its own in the window."""
    if devices == 0:
        return
    begin = step + max(math.floor(window.minimum / STEP_MILLISECONDS), 1 if step else 0)
    end = step + max(math.ceil(window.maximum / STEP_MILLISECONDS), begin - step + 1)
    within = min(end, len(due)) - begin
    if within <= 0:
        return
    inside = int(generator.binomial(devices, within / (end - begin)))
    due[begin : begin + within] += generator.multinomial(inside, np.full(within, 1.0 / within))


def _availability(now: int) -> float:
    """Share of devices that idle and charge: 90% at 3 in the night, 30% at 3 in the afternoon."""
    return 0.6 + 0.3 * math.cos(2 * math.pi * (now / _HOUR_MILLISECONDS - 3) / 24)


def _second_day(course: Course) -> NDArray[np.int64]:
    minutes = course.by_minute
    return minutes[len(minutes) // 2 :]


def _peak_over_mean(course: Course) -> float:
    minutes = _second_day(course)
    return float(minutes.max() / minutes.mean())


def _gathered(course: Course) -> float:
    half = len(course.calls) // 2
    calls, selecting = course.calls[half:], course.selecting[half:]
    return float(calls[selecting].sum() / calls.sum())


def _rounds_an_hour(course: Course) -> float:
    half = len(course.calls) // 2
    return sum(step >= half for step in course.rounds) / (HOURS / 2)


def _draw(plot: Path, small: Course, large: Course, small_fixed: Course, large_fixed: Course) -> None:
    """Draws check-ins a minute: two days of the large population, two hours of the small one."""
    from fedrecon.learning.experiments.charts import Line, Panel, draw_lines

    def hours(course: Course, begin: float, end: float, minutes: int, unit: float) -> tuple[list[float], list[float]]:
        rows = course.by_minute[int(begin * 60) : int(end * 60)].reshape(-1, minutes).mean(axis=1) / unit
        return [begin + position * minutes / 60 for position in range(len(rows))], [float(row) for row in rows]

    panels = []
    for title, course, fixed, span in (
        ("10,000,000 devices: thousands of check-ins a minute", large, large_fixed, (0.5, float(HOURS), 15, 1e3)),
        ("1,000 devices: check-ins a minute", small, small_fixed, (30.0, 31.0, 1, 1.0)),
    ):
        lines = tuple(
            Line(label, *hours(each, *span), marked=False) for label, each in (("paced", course), ("5 minutes", fixed))
        )
        panels.append(Panel(title, "hours since the app's update", lines))
    subtitle = (
        f"Rounds of {COHORT} devices, {(SELECTION + REPORTING) / 1000:.0f} s; devices call when idle and charging"
    )
    draw_lines(panels, "A large population is spread, a small one gathered", subtitle, plot)
