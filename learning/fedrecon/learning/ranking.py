"""How well items are ranked for users: recall and NDCG of the best k, user by user.

Rules: the candidates of a user are all items but those known of the user; what is wanted lies among them. Of equal
scores the item of the smaller number comes first, so that a model which knows nothing gets no luck. Every user counts
alike, whatever there is to find.

    recall@k = wanted items among the best k / min(k, wanted items)
    NDCG@k   = sum over ranks r <= k of wanted(r) / log2(r + 1), divided by the largest value that it could have

Source: Jarvelin and Kekalainen 2002, Cumulated Gain-based Evaluation of IR Techniques; recall truncated to k as in
Liang et al. 2018, Variational Autoencoders for Collaborative Filtering (arXiv 1802.05814).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 10
"""Length of the list that is judged: what fits on a screen."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """What the rankings of users are worth.

    Attributes:
        recall: `[users] float64`, from 0 to 1.
        ndcg: `[users] float64`, from 0 to 1.
    """

    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]


def judge_ranking(scores: NDArray[Any], known: NDArray[np.bool_], wanted: NDArray[np.bool_], k: int = MOST) -> Ranked:
    """Judges the k best candidates of every user.

    Args:
        scores: `[users, items]`, the higher the better.
        known: `[users, items]`, items that are no candidates since the user has them.
        wanted: `[users, items]`, items to be found.
        k: length of the lists; at least 1, and no user has fewer candidates.

    Raises:
        ValueError: the arrays differ in shape, a score is not finite, an item is both known and wanted, or a user has
            nothing to find or fewer than k candidates.

    Example:
        >>> known = np.array([[True, False, False, False]])
        >>> wanted = np.array([[False, False, True, True]])
        >>> judge_ranking(np.array([[9.0, 3.0, 2.0, 1.0]]), known, wanted, k=2).recall
        array([0.5])
    """
    _check(scores, known, wanted, k)
    best = best_items(scores, known, k)
    found = np.take_along_axis(wanted, best, axis=1)
    findable = np.minimum(wanted.sum(axis=1), k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[findable - 1]
    return Ranked(found.sum(axis=1) / findable, found @ discounts / ideal)


def best_items(scores: NDArray[Any], known: NDArray[np.bool_], k: int = MOST) -> NDArray[np.int64]:
    """Returns the k best candidates of every user, the best first: `[users, k] int64`.

    Args:
        scores: `[users, items]`, the higher the better.
        known: `[users, items]`, items that are no candidates.
        k: how many.
    """
    candidates = np.where(known, -np.inf, scores)
    return np.argsort(-candidates, axis=1, kind="stable")[:, :k]


def _check(scores: NDArray[Any], known: NDArray[np.bool_], wanted: NDArray[np.bool_], k: int) -> None:
    if not scores.shape == known.shape == wanted.shape:
        raise ValueError(
            f"scores {list(scores.shape)}, known {list(known.shape)} and wanted {list(wanted.shape)} must be of one "
            "shape, [users, items]"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: such a ranking means nothing")
    if (known & wanted).any():
        raise ValueError("an item is both known and wanted: it could not be found")
    if not wanted.any(axis=1).all():
        raise ValueError("a user has no wanted item: there is nothing to find; leave such users out")
    if k < 1 or ((~known).sum(axis=1) < k).any():
        raise ValueError(f"lists of {k}: every user needs at least as many candidates, and lists at least one place")
