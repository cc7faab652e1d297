"""How many devices a round is given, as its task learns how many of them report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrecon.coordinator import rounds
from fedrecon.coordinator.over_selection import cohort_size_for, learned_share
from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    Finish,
    GroupsClosed,
    Opened,
    Outcome,
    ReportingEnded,
    SessionsFinished,
    Slot,
    Terms,
)
from fedrecon.coordinator.round_state import Round

GOAL = 100
LEAST, LARGEST = 1.1, 3.0
GROUP = b"g" * 16


def opened(cohort: int, share: float) -> Round:
    terms = Terms(GOAL, cohort, 1, 1, 1_000, 60_000, 30_000, 500)
    event = Opened("films", 1, 1, terms, Blob(b"c" * 32, 9), None, b"", share)
    attempt, _ = rounds.step(None, event, 0)
    slots = tuple(Slot(n.to_bytes(16, "little"), n.to_bytes(16, "big")) for n in range(1, cohort + 1))
    return rounds.step(attempt, Assigned(slots, cohort, (GROUP,), "here:1", 999_999), 1_000)[0]


def finished(attempt: Round, **outcomes: int) -> Round:
    """Ends sessions: so many for each outcome."""
    free = (slot.session for slot in attempt.slots if slot.session not in attempt.finishes)
    finishes = tuple(Finish(next(free), Outcome[name]) for name, count in outcomes.items() for _ in range(count))
    return rounds.step(attempt, SessionsFinished(1, finishes), 2_000)[0]


def ended(attempt: Round, because: EndedBecause, reports: int) -> Round:
    at = 61_000 if because is EndedBecause.WINDOW_ENDED else 3_000
    attempt, _ = rounds.step(attempt, ReportingEnded(because, reports), at)
    attempt, _ = rounds.step(attempt, GroupsClosed((GROUP,), reports, 0), at)
    committed = Committed(Blob(b"n" * 32, 9), None, reports, 90, (), 0.5, b"s" * 32)
    return rounds.step(attempt, committed, at)[0]


def test_a_round_that_waited_for_all_shows_the_share_as_it_is() -> None:
    attempt = ended(finished(opened(130, 0.0), UPLOADED=80), EndedBecause.WINDOW_ENDED, 91)
    assert learned_share(attempt) == pytest.approx(91 / 130)


def test_newer_rounds_count_more_than_older_ones() -> None:
    attempt = ended(opened(200, 0.9), EndedBecause.WINDOW_ENDED, 80)
    assert learned_share(attempt) == pytest.approx(0.9 + 0.3 * (0.4 - 0.9))


def test_a_goal_met_early_shows_bounds_only() -> None:
    attempt = finished(opened(200, 0.7), UPLOADED=90, LOCAL_FAILED=20)
    assert learned_share(ended(attempt, EndedBecause.GOAL_MET, 100)) == pytest.approx(0.7 + 0.02 * (0.9 - 0.7))
    low = finished(opened(200, 0.3), UPLOADED=90, LOCAL_FAILED=20)
    assert learned_share(ended(low, EndedBecause.GOAL_MET, 100)) == pytest.approx(0.5 + 0.02 * (0.9 - 0.5))
    high = finished(opened(200, 0.99), UPLOADED=90, LOCAL_FAILED=20)
    assert learned_share(ended(high, EndedBecause.GOAL_MET, 100)) == pytest.approx(0.9)


def test_devices_that_came_too_late_would_have_reported() -> None:
    attempt = finished(opened(200, 0.5), UPLOADED=100, TOO_LATE=80)
    assert learned_share(ended(attempt, EndedBecause.GOAL_MET, 100)) >= 0.9


def test_an_attempt_that_was_given_up_for_another_reason_shows_nothing() -> None:
    attempt, _ = rounds.step(opened(130, 0.6), Abandoned("the task was cancelled", 0), 2_000)
    assert learned_share(attempt) == 0.6
    silent, _ = rounds.step(opened(130, 0.6), Abandoned("too few reports", 0), 61_000)
    assert learned_share(silent) == pytest.approx(0.42)
    unassigned, _ = rounds.step(replace(opened(130, 0.6), assigned=None), Abandoned("no aggregator", 0), 61_000)
    assert learned_share(unassigned) == 0.6


def test_the_cohort_stays_between_floor_and_ceiling() -> None:
    assert cohort_size_for(GOAL, LEAST, LARGEST, 1.0) == 110
    assert cohort_size_for(GOAL, LEAST, LARGEST, 0.01) == 300
    assert cohort_size_for(GOAL, LEAST, 0.0, 0.2) == 110
    for share in (0.9, 0.8, 0.6, 0.4):
        cohort = cohort_size_for(GOAL, LEAST, LARGEST, share)
        deviation = (cohort * share * (1 - share)) ** 0.5
        assert cohort * share - deviation == pytest.approx(GOAL, abs=1.0)


@pytest.mark.parametrize("told", [True, False], ids=["devices tell", "devices fall silent"])
def test_the_cohort_follows_the_drop_out(told: bool) -> None:
    """Drop-out of 30%, then 60%, then 5%: most rounds meet their goal early, and few devices work in vain."""
    generator = np.random.default_rng(5)
    share = 0.0
    for dropout in (0.3, 0.6, 0.05):
        cohorts, met = [], []
        for _ in range(60):
            cohort = cohort_size_for(GOAL, LEAST, LARGEST, share)
            faithful = int(generator.binomial(cohort, 1 - dropout))
            attempt = opened(cohort, share)
            failed = {"LOCAL_FAILED": cohort - faithful} if told else {}
            if faithful >= GOAL:
                late = {"TOO_LATE": faithful - GOAL} if told else {}
                attempt = ended(finished(attempt, UPLOADED=GOAL, **failed, **late), EndedBecause.GOAL_MET, GOAL)
            else:
                attempt = ended(finished(attempt, UPLOADED=faithful, **failed), EndedBecause.WINDOW_ENDED, faithful)
            share = learned_share(attempt)
            cohorts.append(cohort)
            met.append(faithful >= GOAL)
        settled, needed = float(np.mean(cohorts[-20:])), GOAL / (1 - dropout)
        assert needed * 0.95 <= settled <= needed * (1.2 if told else 1.3), (dropout, settled)
        assert np.mean(met[-40:]) >= 0.5, dropout
