"""The ranking that knows nothing of the user: the items that most users have.

Source: Dacrema, Cremonesi and Jannach 2019, Are We Really Making Much Progress? (arXiv 1907.06902), where it is the
first thing that a recommender must beat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def popularity(interactions: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns how many users have each item, `[items] float64`: the same scores for everybody.

    Args:
        interactions: `[users, items]`, who has what.
    """
    users: NDArray[np.float64] = interactions.sum(axis=0).astype(np.float64)
    return users
