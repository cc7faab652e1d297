"""Centralised matrix factorisation by stochastic gradient descent: the paper's centralised model.

No biases, no mean: a rating is the product of a user vector and an item vector, both drawn from [-0.05, 0.05). Ratings
are shuffled anew before each sweep and taken in batches; every rating of a batch moves its two vectors by the gradient
of its own squared error at the batch's start, as one-by-one descent would move them if no vector appeared twice.

Source: Singhal et al. 2021, section 5.1.1; Koren, Bell and Volinsky 2009, Matrix Factorization Techniques for
Recommender Systems, "stochastic gradient descent".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedrecon.learning.baselines.factors import Factors, Fitted, Observations
from fedrecon.learning.baselines.stopping import Score, keep_the_best

INITIAL_BOUND = 0.05


@dataclass(frozen=True, slots=True)
class CentralSgd:
    """How the factors are fitted.

    Attributes:
        factors: length of the vectors.
        rate: of the step that one rating makes.
        batch_size: ratings whose steps are taken together.
        sweeps: passes over the ratings at most.
        patience: sweeps without a better score after which it ends.
    """

    factors: int = 50
    rate: float = 0.01
    batch_size: int = 1024
    sweeps: int = 100
    patience: int = 5


def draw_factors(users: int, items: int, factors: int, seed: int) -> Factors:
    """Draw the factors that descent starts from.

    Args:
        users: how many.
        items: how many.
        factors: length of the vectors.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    users_first = torch.empty(users, factors).uniform_(-INITIAL_BOUND, INITIAL_BOUND, generator=generator)
    items_next = torch.empty(items, factors).uniform_(-INITIAL_BOUND, INITIAL_BOUND, generator=generator)
    return Factors(0.0, users_first, items_next, torch.zeros(users), torch.zeros(items))


def descend(factors: Factors, batch: Observations, rate: float) -> None:
    """Take the steps of one batch, in place.

    Args:
        factors: whose vectors move.
        batch: ratings; several of one user or item add up.
        rate: of each rating's step.
    """
    users, items = factors.user_vectors[batch.users], factors.item_vectors[batch.items]
    slopes = 2.0 * ((users * items).sum(-1, keepdim=True) - batch.ratings[:, None])
    factors.user_vectors.index_add_(0, batch.users, slopes * items, alpha=-rate)
    factors.item_vectors.index_add_(0, batch.items, slopes * users, alpha=-rate)


def fit_by_sgd(
    observations: Observations, users: int, items: int, settings: CentralSgd, seed: int, score: Score
) -> Fitted:
    """Fit factors to ratings.

    Args:
        observations: ratings of all users together.
        users: how many.
        items: how many.
        settings: of the descent.
        seed: of the first factors and of the order of the ratings.
        score: on other ratings, less is better: decides when it ends and what is kept.
    """
    generator = torch.Generator().manual_seed(seed)

    def sweep(factors: Factors) -> Factors:
        for positions in torch.split(torch.randperm(len(observations), generator=generator), settings.batch_size):
            batch = Observations(
                observations.users[positions], observations.items[positions], observations.ratings[positions]
            )
            descend(factors, batch, settings.rate)
        return factors

    start = draw_factors(users, items, settings.factors, seed)
    return keep_the_best(start, sweep, score, most=settings.sweeps, patience=settings.patience)
