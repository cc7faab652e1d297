"""Early stopping: sweeps go on until a score on other ratings has not improved for a while, and the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedrecon.learning.baselines.factors import Factors, Fitted

Score = Callable[[Factors], float]
"""Factors -> a figure on ratings that they were not fitted to; less is better."""


def keep_the_best(
    factors: Factors, sweep: Callable[[Factors], Factors], score: Score, *, most: int, patience: int
) -> Fitted:
    """Run sweeps and keep the factors with the best score.

    Args:
        factors: to start from.
        sweep: factors -> factors after one more pass over the ratings; may work in place.
        score: what decides.
        most: sweeps at most, at least 1.
        patience: sweeps without a better score after which it ends.

    Raises:
        FloatingPointError: the first sweep diverged already.
    """
    scores: list[float] = []
    best, best_sweep = math.inf, 0
    kept = factors
    for number in range(1, most + 1):
        factors = sweep(factors)
        scores.append(score(factors))
        if scores[-1] < best:
            best, best_sweep, kept = scores[-1], number, factors.copy()
        if number - best_sweep >= patience or not math.isfinite(scores[-1]):
            break
    if best_sweep == 0:
        raise FloatingPointError("the first sweep diverged: choose a smaller rate")
    return Fitted(kept, best_sweep, tuple(scores))
