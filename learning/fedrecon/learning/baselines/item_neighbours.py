"""Item neighbours: recommend what is like the items that a user has.

Two items are alike as far as the same users have them (cosine of their columns). An item's score is the sum of its
likenesses to the user's items, counted only where such an item is among its nearest neighbours.

Source: Sarwar, Karypis, Konstan and Riedl 2001, Item-based Collaborative Filtering Recommendation Algorithms;
Deshpande and Karypis 2004, Item-based Top-N Recommendation Algorithms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fit_neighbours(interactions: NDArray[np.bool_], neighbours: int) -> NDArray[np.float32]:
    """Returns the likeness of items to their nearest neighbours, and 0 to all others: `[neighbour, item]`.

    Scores of users are `known @ likeness`, `[users, items]`.

    Args:
        interactions: `[users, items]`, who has what.
        neighbours: how many an item has; of equally near ones that of the smaller number.

    Raises:
        ValueError: an item cannot have so many neighbours, or fewer than 1.

    Example:
        >>> fit_neighbours(np.array([[True, True, False], [True, True, True]]), 1).round(2)
        array([[0.  , 1.  , 0.71],
               [1.  , 0.  , 0.  ],
               [0.  , 0.  , 0.  ]], dtype=float32)
    """
    items = interactions.shape[1]
    if not 1 <= neighbours < items:
        raise ValueError(f"an item among {items} cannot have {neighbours} neighbours")
    columns = interactions.astype(np.float32)
    together = columns.T @ columns
    lengths = np.sqrt(np.maximum(together.diagonal(), 1.0))
    cosines = together / (lengths[:, None] * lengths)
    np.fill_diagonal(cosines, 0.0)
    nearest = np.argsort(-cosines, axis=0, kind="stable")[:neighbours]
    likeness: NDArray[np.float32] = np.zeros_like(cosines)
    np.put_along_axis(likeness, nearest, np.take_along_axis(cosines, nearest, axis=0), axis=0)
    return likeness
