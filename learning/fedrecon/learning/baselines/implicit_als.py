"""Implicit-feedback matrix factorisation in one place, by alternating least squares (iALS).

Every pair of user and item pulls their product to 0 with a small weight, every interaction pulls it to 1 with weight 1
beside that:

    sum over interactions (x_u y_i - 1)^2 + weight * sum over all pairs (x_u y_i)^2 + ridge * sum of n^ |x|^2

where n^ = interactions of the user (or item) + weight * number of items (or users): the ridge grows with what there is
to fit. With one side fixed, each owner on the other side solves a ridge regression whose background, the Gram matrix of
the fixed side, is the same for all.

Source: Hu, Koren and Volinsky 2008, Collaborative Filtering for Implicit Feedback Datasets; objective and scaling of
the ridge (exponent 1) as in Rendle et al. 2021, Revisiting the Performance of iALS on Item Recommendation Benchmarks
(arXiv 2110.14037).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INITIAL_DEVIATION = 0.1
"""Of the initial item vectors' length, as in Rendle et al. 2021."""
ELEMENTS_AT_ONCE = 1 << 21
"""Of the vectors of several owners' interactions side by side: 8 MiB, and as much for their normal equations."""


@dataclass(frozen=True, slots=True)
class ImplicitAls:
    """How the factors are fitted.

    Attributes:
        factors: length of the vectors.
        weight: of the pull to 0 of every pair.
        ridge: of the pull of the vectors to 0.
        sweeps: passes over users and items.
    """

    factors: int = 64
    weight: float = 0.3
    ridge: float = 0.01
    sweeps: int = 6


def fit_implicitly(interactions: NDArray[np.bool_], settings: ImplicitAls, seed: int) -> Tensor:
    """Fits factors to interactions.

    Args:
        interactions: `[users, items]`, who has what.
        settings: of the solution.
        seed: of the item vectors that it starts from.

    Returns:
        The item vectors, `[items, factors] float32`; user vectors follow from them by `fold_in`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (interactions.shape[1], settings.factors)
    items: Tensor = torch.randn(shape, generator=generator) * (INITIAL_DEVIATION / settings.factors**0.5)
    by_item = np.ascontiguousarray(interactions.T)
    for _ in range(settings.sweeps):
        items = fold_in(by_item, fold_in(interactions, items, settings), settings)
    return items


def fold_in(interactions: NDArray[np.bool_], others: Tensor, settings: ImplicitAls) -> Tensor:
    """Solves for the vectors of owners, known before or not, whose interactions are with fixed others.

    Args:
        interactions: `[owners, others]`, who has what.
        others: vectors of the other side, `[others, factors] float32`.
        settings: weight and ridge.

    Returns:
        `[owners, factors] float32`; zero for an owner without interactions.
    """
    factors = others.shape[1]
    background = settings.weight * others.T @ others
    counts = interactions.sum(axis=1)
    solved = torch.zeros(len(interactions), factors)
    order = np.argsort(-counts, kind="stable")
    begin = 0
    while begin < len(order):
        # Padded to the first, who has the most; normal equations count as well.
        width = max(int(counts[order[begin]]), factors, 1)
        chosen = order[begin : begin + max(1, ELEMENTS_AT_ONCE // (width * factors))]
        own, mask = _padded(interactions[chosen])
        design = others[own] * mask[:, :, None]
        ridge = settings.ridge * (mask.sum(1) + settings.weight * len(others))
        normal = design.mT @ design + background + ridge[:, None, None] * torch.eye(factors)
        right = design.sum(1)[:, :, None]
        solved[torch.from_numpy(chosen)] = torch.cholesky_solve(right, torch.linalg.cholesky(normal)).squeeze(-1)
        begin += len(chosen)
    return solved


def _padded(interactions: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Returns numbers of what each owner has, padded with 0, and 1 where one is real: both `[owners, most]`."""
    counts = interactions.sum(axis=1)
    real = np.arange(max(int(counts.max(initial=0)), 1)) < counts[:, None]
    numbers = np.zeros(real.shape, dtype=np.int64)
    numbers[real] = np.nonzero(interactions)[1]
    return torch.from_numpy(numbers), torch.from_numpy(real.astype(np.float32))
