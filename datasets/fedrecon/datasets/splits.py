"""Who is trained on, and which of a user's ratings are kept: the paper's fixed protocol.

Pure functions of counts and seeds, so that simulation, service and benchmark split alike. The generator is numpy's
legacy `RandomState` (MT19937), whose stream is frozen for good (NEP 19), so a split written today is the split of
every later version.

Source: Singhal et al. 2021, "Federated Reconstruction", section 5 and appendix C: users 80/10/10, at most 300 ratings
a user after a fixed shuffle. Its alternate batches of 5 are `fedrecon.wire.schedules.split`, as devices make them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 42
MOST_RATINGS = 300


@dataclass(frozen=True, slots=True, eq=False)
class UserSplit:
    """Users in three disjoint parts that together are all users.

    Attributes:
        train: `[eight tenths] int64`, users who may take part in rounds.
        validation: `[one tenth] int64`, users for choices.
        test: `[one tenth] int64`, users for the final figure.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_users(users: int, seed: int = SPLIT_SEED) -> UserSplit:
    """Shuffle the users once and cut them 80/10/10.

    Args:
        users: How many there are.
        seed: Of the shuffle; 42 gives the paper's own split of MovieLens 1M.

    Returns:
        The three parts, each in shuffled order.

    Example:
        >>> parts = split_users(6040)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (4832, 604, 604)
    """
    order = np.arange(users, dtype=np.int64)
    np.random.RandomState(seed).shuffle(order)
    train, seen = users * 8 // 10, users * 9 // 10
    return UserSplit(train=order[:train], validation=order[train:seen], test=order[seen:])


def cap_ratings(ratings: int, user: int, seed: int = SPLIT_SEED, most: int = MOST_RATINGS) -> NDArray[np.int64]:
    """Shuffle one user's ratings and keep the first of them.

    The shuffle depends on the user and the seed alone: the same in training and evaluation, in every round.

    Args:
        ratings: How many ratings the user has.
        user: The user's index.
        seed: Of all shuffles.
        most: How many are kept at most.

    Returns:
        `[min(ratings, most)] int64`, positions among the user's ratings, in shuffled order.
    """
    order = np.arange(ratings, dtype=np.int64)
    np.random.RandomState([seed, user]).shuffle(order)
    return order[:most]
