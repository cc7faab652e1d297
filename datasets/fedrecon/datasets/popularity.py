"""Which items are popular enough that nobody stands alone in a row of a sum.

A row's expected contributors are the cohort size, times the share of users who rated the item, times the share of a
user's ratings that a device updates: the task's split keeps about half of them for the reconstruction. Popularity has
to be public, or at least no secret of the devices that train: a set chosen by looking at them would tell of them.
"""

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets.ratings import Ratings

UPDATED = 0.5


def rows_with_contributors(
    ratings: Ratings, cohort: int, contributors: float, updated: float = UPDATED
) -> NDArray[np.int64]:
    """Find the items whose rows enough members of a cohort are expected to update.

    Args:
        ratings: Public ones, in whose item order the model's rows are; no user rated an item twice.
        cohort: Devices whose reports are summed, at least 1.
        contributors: Least number expected.
        updated: Share of a user's ratings that a device updates: 0.5 where the task splits them in halves, 1 where it
            does not split them.

    Returns:
        `[rows] int64`, sorted.

    Example:
        >>> from fedrecon.datasets import generate
        >>> ratings = generate(users=100, items=200, seed=7)
        >>> all(ratings.ratings_per_item()[rows_with_contributors(ratings, 50, 5)] >= 20)
        True
    """
    users = int(np.count_nonzero(ratings.ratings_per_user()))
    expected = cohort * updated * ratings.ratings_per_item() / max(users, 1)
    return np.flatnonzero(expected >= contributors)
