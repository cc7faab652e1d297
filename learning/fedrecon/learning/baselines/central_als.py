"""Centralised matrix factorisation with biases by alternating least squares.

With the item side fixed, each user's vector and bias solve a small ridge regression of their own, and the other way
round; a sweep solves all users, then all items. The ridge is the same for every user and item, so that those with few
ratings stay near zero.

Source: Zhou, Wilkinson, Schreiber and Pan 2008, Large-scale Parallel Collaborative Filtering for the Netflix Prize
(with a ridge that does not grow with the ratings); Koren, Bell and Volinsky 2009 for the biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrecon.learning.baselines.factors import Factors, Fitted, Observations
from fedrecon.learning.baselines.stopping import Score, keep_the_best

INITIAL_DEVIATION = 0.1
# Outer products of so many ratings are made at once: 58 MiB with 20 factors.
RATINGS_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True)
class CentralAls:
    """How the factors are fitted.

    Attributes:
        factors: length of the vectors.
        ridge: weight of the squared length of every vector and bias.
        sweeps: at most.
        patience: sweeps without a better score after which it ends.
    """

    factors: int = 10
    ridge: float = 5.0
    sweeps: int = 30
    patience: int = 3


def solve_side(design: Tensor, owners: Tensor, targets: Tensor, count: int, ridge: float) -> Tensor:
    """Solve one ridge regression for every owner.

    Args:
        design: `[ratings, unknowns] float32`, what the unknowns of the rating's owner are multiplied with.
        owners: `[ratings] int64`, whose unknowns.
        targets: `[ratings] float32`, what the products shall come close to.
        count: how many owners there are.
        ridge: positive.

    Returns:
        `[count, unknowns] float32`; zero for an owner without ratings.

    Example:
        >>> design = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
        >>> solve_side(design, torch.tensor([0, 0]), torch.tensor([1.0, 3.0]), 2, 1.0)
        tensor([[1.0000, 0.3333],
                [0.0000, 0.0000]])
    """
    unknowns = design.shape[1]
    normal = torch.zeros(count, unknowns, unknowns)
    right = torch.zeros(count, unknowns).index_add_(0, owners, design * targets[:, None])
    for start in range(0, len(owners), RATINGS_AT_ONCE):
        rows = design[start : start + RATINGS_AT_ONCE]
        normal.index_add_(0, owners[start : start + RATINGS_AT_ONCE], rows[:, :, None] * rows[:, None, :])
    normal.diagonal(dim1=1, dim2=2).add_(ridge)
    solved: Tensor = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(normal)).squeeze(-1)
    return solved


def fit_by_als(
    observations: Observations, users: int, items: int, settings: CentralAls, seed: int, score: Score
) -> Fitted:
    """Fit factors to ratings; the mean is that of the ratings.

    Args:
        observations: ratings of all users together.
        users: how many.
        items: how many.
        settings: of the solution.
        seed: of the item vectors that it starts from.
        score: on other ratings, less is better: decides when it ends and what is kept.
    """
    mean = float(observations.ratings.double().mean())
    centred = observations.ratings - mean

    def sweep(factors: Factors) -> Factors:
        by_user = _with_one(factors.item_vectors)[observations.items]
        solved = solve_side(
            by_user, observations.users, centred - factors.item_biases[observations.items], users, settings.ridge
        )
        user_vectors, user_biases = solved[:, :-1], solved[:, -1]
        by_item = _with_one(user_vectors)[observations.users]
        solved = solve_side(
            by_item, observations.items, centred - user_biases[observations.users], items, settings.ridge
        )
        return Factors(mean, user_vectors, solved[:, :-1], user_biases, solved[:, -1])

    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(items, settings.factors, generator=generator) * INITIAL_DEVIATION
    start = Factors(mean, torch.zeros(users, settings.factors), drawn, torch.zeros(users), torch.zeros(items))
    return keep_the_best(start, sweep, score, most=settings.sweeps, patience=settings.patience)


def _with_one(vectors: Tensor) -> Tensor:
    """Give the vectors with a one behind them, which the bias is multiplied with."""
    return torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1)
