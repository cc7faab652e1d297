"""Who holds which ratings: each user of a data set becomes one simulated device.

The protocol of Singhal et al. 2021: users shuffled once and cut 80/10/10, at most 300 ratings a user after a fixed
shuffle. Users of the training part take part in rounds; those of the test part never do: they are the unseen users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets import Ratings, cap_ratings, split_users
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES
from fedrecon.wire.schedules import split

ITEM, RATING = "item", "rating"
BATCH = 5


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One user.

    Attributes:
        key: what the data set calls the user.
        columns: the user's examples by field: item keys and ratings, in the order in which the device holds them.
    """

    key: str
    columns: Mapping[str, NDArray[Any]]

    @property
    def examples(self) -> int:
        """How many examples the user has."""
        return len(self.columns[RATING])


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """The users of a data set.

    Attributes:
        training: those whose devices may take part in rounds.
        unseen: those who never do.
    """

    training: tuple[Person, ...]
    unseen: tuple[Person, ...]


def people_of(ratings: Ratings) -> People:
    """Return the users of a data set as the fixed protocol splits them; users without ratings are left out."""
    own, keys = ratings.by_user(), np.array(ratings.item_keys, dtype=object)

    def person(user: int) -> Person:
        positions = own[user][cap_ratings(len(own[user]), user)]
        columns = {ITEM: keys[ratings.items[positions]], RATING: ratings.ratings[positions].astype(np.float64)}
        return Person(ratings.user_keys[user], columns)

    parts = split_users(len(ratings.user_keys))
    training, unseen = (
        tuple(person(int(user)) for user in users if len(own[user])) for users in (parts.train, parts.test)
    )
    return People(training=training, unseen=unseen)


def user_mean_rmse(people: tuple[Person, ...]) -> float:
    """Return the error of the simplest honest prediction: each user's own mean over the support half.

    Args:
        people: whose query halves are predicted.

    Returns:
        Root mean squared error, pooled over all query ratings; a user without support is predicted 3.
    """
    squares, count = 0.0, 0
    for person in people:
        support, query = split(person.examples, SPLIT_RULE_ALTERNATE_BATCHES, batch_size=BATCH)
        values = person.columns[RATING]
        mean = values[support].mean() if support.size else 3.0
        squares += float(((values[query] - mean) ** 2).sum())
        count += query.size
    return float(np.sqrt(squares / count)) if count else float("nan")
