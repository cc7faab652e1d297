"""Whether a sum can be believed, by what recent rounds were like.

Under a secure sum nobody sees a single report: a device that lies about its own can only be noticed in the sum. So the
norm of the mean update and the mean weight of a report are held against those of recent rounds; a sum far beyond them
is refused whole, and the round is tried again with another cohort. This bounds what a few liars can do in a round, and
does not find those who lie a little.

Rules: pure; too few rounds tell nothing; what an operator changes begins a new history. Medians, so that one odd round
moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FEWEST_ROUNDS = 5
REMEMBERED_ROUNDS = 20
_MOST_TIMES_THE_NORM = 10.0
_MOST_TIMES_THE_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a committed round was like.

    Attributes:
        update_norm: Euclidean norm of its mean update.
        mean_weight: Weight of a report, on average.
    """

    update_norm: float
    mean_weight: float


def doubt(sum_now: Likeness, recent: Sequence[Likeness]) -> str | None:
    """Returns why a sum is not believed; None if it is.

    Args:
        sum_now: What it is like.
        recent: What recent rounds were like.

    Example:
        >>> recent = [Likeness(1.0, 40.0)] * 5
        >>> doubt(Likeness(1.8, 41.0), recent) is None
        True
        >>> doubt(Likeness(25.0, 41.0), recent)
        'the norm of its mean update is 25 times that of recent rounds'
    """
    if not math.isfinite(sum_now.update_norm):
        return "its mean update is not finite"
    if len(recent) < FEWEST_ROUNDS:
        return None
    usual_norm = median(one.update_norm for one in recent)
    usual_weight = median(one.mean_weight for one in recent)
    if usual_norm > 0 and sum_now.update_norm > _MOST_TIMES_THE_NORM * usual_norm:
        return f"the norm of its mean update is {sum_now.update_norm / usual_norm:.3g} times that of recent rounds"
    times = max(sum_now.mean_weight / usual_weight, usual_weight / sum_now.mean_weight)
    if times > _MOST_TIMES_THE_WEIGHT:
        return f"its reports weigh {sum_now.mean_weight:.3g} on average, those of recent rounds {usual_weight:.3g}"
    return None
