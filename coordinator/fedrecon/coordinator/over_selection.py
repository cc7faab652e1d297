"""How many devices are assigned for the reports that a round wants, learned from the task's own drop-out.

Rules:
- What is learned is one number, the share of assigned devices that report. It travels from attempt to attempt in
  `Opened`, so that a replay gives it again.
- An attempt that waited for all its devices shows the share as it is. One that met its goal early shows only that it
  lies between those that reported and those that did not fail: within these bounds nothing is known, and the estimate
  moves up a little, so that fewer devices work in vain once devices have become more faithful.
- Attempts that ended for other reasons show nothing.
- The cohort is the smallest that meets the goal in five of six rounds, if devices report independently; never below the
  task's own over-selection, never above its largest.

Source: Bonawitz et al. 2019, "Towards Federated Learning at Scale", section 2.2 (over-selection 130%, drop-out 6-10%).
"""

from __future__ import annotations

import math

from fedrecon.coordinator.round_events import EndedBecause, Outcome, cohort_size_of
from fedrecon.coordinator.round_state import Round

_WEIGHT_OF_NEWEST = 0.3
_PROBE = 0.02
_DEVIATIONS = 1.0
"""Standard deviations between the reports expected and the goal: 84% of rounds meet it."""
_LEAST_SHARE = 0.01


def learned_share(attempt: Round) -> float:
    """Returns the share of assigned devices that are expected to report, after an attempt.

    Args:
        attempt: An attempt that is over, with the share that was expected when it opened.

    Returns:
        In (0, 1]; 0 while nothing is known.
    """
    expected = attempt.opened.report_share
    assigned = len(attempt.slots)
    if not assigned:
        return expected
    outcomes = [finish.outcome for finish in attempt.finishes.values()]
    acknowledged = attempt.reporting_ended.reports if attempt.reporting_ended is not None else 0
    # Who came too late would have reported, had the round waited.
    reported = max(acknowledged, outcomes.count(Outcome.UPLOADED)) + outcomes.count(Outcome.TOO_LATE)
    failed = sum(outcome not in {Outcome.UPLOADED, Outcome.TOO_LATE} for outcome in outcomes)
    lowest = min(reported / assigned, 1.0)
    highest = max(1.0 - failed / assigned, lowest)
    if _waited_for_all(attempt):
        shown = lowest if not expected else expected + _WEIGHT_OF_NEWEST * (lowest - expected)
    elif attempt.reporting_ended is not None:
        within = min(max(expected, lowest), highest)
        shown = within + _PROBE * (highest - within)
    else:
        return expected
    return max(shown, _LEAST_SHARE)


def cohort_size_for(report_goal: int, least: float, largest: float, share: float) -> int:
    """Returns how many devices to assign.

    Args:
        report_goal: Reports wanted.
        least: Devices for each report at least.
        largest: Devices for each report at most; 0: always as many as at least.
        share: Of assigned devices that are expected to report; 0: nothing is known.

    Example:
        >>> [cohort_size_for(100, 1.1, 2.0, share) for share in (0.0, 0.95, 0.7, 0.3)]
        [110, 110, 151, 200]
    """
    fewest = cohort_size_of(report_goal, least)
    if not largest or not share:
        return fewest
    # n share - deviations sqrt(n share (1 - share)) = goal, solved for the root of n.
    spread = _DEVIATIONS * math.sqrt(share * (1.0 - share))
    root = (spread + math.sqrt(spread * spread + 4.0 * share * report_goal)) / (2.0 * share)
    return max(fewest, min(math.ceil(root * root), cohort_size_of(report_goal, largest)))


def _waited_for_all(attempt: Round) -> bool:
    """Whether nobody who has not reported was still going to."""
    if attempt.reporting_ended is not None:
        return attempt.reporting_ended.because is not EndedBecause.GOAL_MET
    return attempt.closed is None and (
        len(attempt.finishes) >= len(attempt.slots) or attempt.ended_at >= attempt.reporting_ends
    )
