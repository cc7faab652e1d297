"""An attack on sums: whose rows are multiples of one another belong to one user.

One pass over a user's ratings with the user vector frozen makes every row of the item table's update a multiple of that
vector. A sum over users keeps this wherever a row has one contributor. Rows with two or more point somewhere else, each
somewhere else again, so in a space of some tens of factors rows that are parallel are hardly ever so by chance. Whoever
holds the sum therefore needs no other knowledge to find users, what they rated, and their vectors up to scale.

This is the plainest attack of its kind, not the strongest: it uses one sum, and no rows with two contributors. What it
finds is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PARALLEL = 0.99999
"""Least |cosine| of two rows that are taken for one user's: the sum is exact but for rounding to fixed point."""

RIGHT = 0.999
"""Least |cosine| of a vector found and a true one for which the user counts as exposed."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A user that the attack claims.

    Attributes:
        rows: what the user rated, as far as it shows: `[rows] int64`, at least two.
        direction: the user vector up to scale and sign, `[factors] float64`, of length 1.
    """

    rows: NDArray[np.int64]
    direction: NDArray[np.float64]


def find_users(total: NDArray[np.floating], contributors: int) -> list[Found]:
    """Returns the users that a sum gives away, those with most rows first.

    Args:
        total: sum of all updates of a table, `[rows, factors]`.
        contributors: how many users it is of: more are never claimed.
    """
    rows, directions = _directions(total)
    parallel = np.abs(directions @ directions.T) > PARALLEL
    left = np.ones(len(rows), dtype=bool)
    found = []
    for first in range(len(rows)):
        together = np.flatnonzero(parallel[first] & left)
        if not left[first] or len(together) == 1:
            continue
        left[together] = False
        own = directions[together]
        mean = (own * np.sign(own @ own[0])[:, None]).mean(axis=0)
        found.append(Found(rows[together], mean / np.linalg.norm(mean)))
    return sorted(found, key=lambda user: -len(user.rows))[:contributors]


def exposed_users(found: Sequence[Found], true_vectors: NDArray[np.floating]) -> set[int]:
    """Returns which users an attack was right about.

    Args:
        found: what it claims.
        true_vectors: of all contributors, `[users, factors]`.
    """
    if not found:
        return set()
    users, directions = _directions(true_vectors)
    cosines = np.abs(np.stack([user.direction for user in found]) @ directions.T)
    return set(users[(cosines > RIGHT).any(axis=0)].tolist())


def _directions(total: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns which rows are not zero, and their directions."""
    lengths = np.linalg.norm(total.astype(np.float64), axis=1)
    rows = np.flatnonzero(lengths)
    return rows, total[rows] / lengths[rows, None]
