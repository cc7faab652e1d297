"""Whether one row beats another: the difference of their accuracies on the same users, with a bootstrap interval.

Users are drawn with repetition, and both rows are judged on the same drawn users: what makes a user easy or hard for
both leaves the difference.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13 (percentile interval).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrecon.learning.simulation.evaluation import Evaluation

RESAMPLES, RESAMPLING_SEED = 10_000, 0
TAILS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one row is, in percentage points of accuracy.

    Attributes:
        points: on all users.
        low: lower end of the 95% interval.
        high: its upper end.
    """

    points: float
    low: float
    high: float


def accuracy_of(evaluation: Evaluation, metric: str) -> float:
    """Give the pooled accuracy in percent.

    Args:
        evaluation: metric sums of users.
        metric: `right` or `right_among_words`.
    """
    return 100.0 * evaluation.mean(metric, over="counted")


def pooled(evaluations: list[Evaluation]) -> Evaluation:
    """Give the sums of the same users over several seeds."""
    sums = {name: np.sum([each.sums[name] for each in evaluations], axis=0) for name in evaluations[0].sums}
    return Evaluation(sums, np.sum([each.examples for each in evaluations], axis=0))


def difference(one: Evaluation, other: Evaluation, metric: str) -> Difference:
    """Compare two rows on the same users.

    Args:
        one: the row that may be better.
        other: what it is compared with; the same users in the same order.
        metric: `right` or `right_among_words`.

    Raises:
        ValueError: the positions that count differ, so that these are not the same users with one vocabulary.
    """
    counted = one.sums["counted"]
    if not np.array_equal(counted, other.sums["counted"]):
        raise ValueError("two rows are compared on the same users with one vocabulary; these differ in what counts")
    gained = one.sums[metric] - other.sums[metric]
    users = np.random.default_rng(RESAMPLING_SEED).integers(len(counted), size=(RESAMPLES, len(counted)))
    drawn = 100.0 * gained[users].sum(axis=1) / np.maximum(counted[users].sum(axis=1), 1.0)
    low, high = np.percentile(drawn, TAILS)
    return Difference(100.0 * float(gained.sum() / max(counted.sum(), 1.0)), float(low), float(high))
