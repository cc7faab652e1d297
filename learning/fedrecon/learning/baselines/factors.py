"""Ratings in one place, and the factors that are fitted to them.

rating = mean + <user vector, item vector> + user bias + item bias. Users and items are numbered from 0; every user and
item has a vector, rated or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HALF_A_STAR = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """Ratings of many users.

    Attributes:
        users: `[ratings] int64`.
        items: `[ratings] int64`.
        ratings: `[ratings] float32`, in stars.
    """

    users: Tensor
    items: Tensor
    ratings: Tensor

    def __len__(self) -> int:
        return len(self.ratings)


def observations_of(clients: Sequence[Mapping[str, NDArray[Any]]]) -> Observations:
    """Put the ratings of users together; a user's number is the place in the sequence.

    Args:
        clients: of each user `item [ratings] int64` and `rating [ratings] float32`.
    """
    counts = [len(client["item"]) for client in clients]
    return Observations(
        users=torch.from_numpy(np.repeat(np.arange(len(clients), dtype=np.int64), counts)),
        items=torch.from_numpy(np.concatenate([client["item"] for client in clients])),
        ratings=torch.from_numpy(np.concatenate([client["rating"] for client in clients])),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A fitted model.

    Attributes:
        mean: constant part of every prediction, in stars.
        user_vectors: `[users, factors] float32`.
        item_vectors: `[items, factors] float32`.
        user_biases: `[users] float32`, in stars.
        item_biases: `[items] float32`, in stars.
    """

    mean: float
    user_vectors: Tensor
    item_vectors: Tensor
    user_biases: Tensor
    item_biases: Tensor

    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """Give the rating of each pair, `[pairs] float32`."""
        products = (self.user_vectors[users] * self.item_vectors[items]).sum(-1)
        return self.mean + products + self.user_biases[users] + self.item_biases[items]

    def copy(self) -> Factors:
        """Give the same values in memory of their own."""
        return Factors(
            self.mean,
            self.user_vectors.clone(),
            self.item_vectors.clone(),
            self.user_biases.clone(),
            self.item_biases.clone(),
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """The best factors of a fit, by the score that it was stopped by.

    Attributes:
        factors: after the best sweep.
        best_sweep: number of the best sweep over the ratings, from 1.
        scores: after each sweep, less is better.
    """

    factors: Factors
    best_sweep: int
    scores: tuple[float, ...]


def accuracy_of(factors: Factors, observations: Observations) -> tuple[float, float]:
    """Give the root of the mean squared error in stars, and the share of ratings at most half a star off."""
    errors = factors.predict(observations.users, observations.items) - observations.ratings
    return float(errors.square().mean().sqrt()), float((errors.abs() <= HALF_A_STAR).double().mean())
