"""Centralised baselines: right by hand, better than the obvious, the best sweep kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrecon.datasets import generate
from fedrecon.learning.baselines.central_als import CentralAls, fit_by_als, solve_side
from fedrecon.learning.baselines.central_sgd import CentralSgd, descend, fit_by_sgd
from fedrecon.learning.baselines.factors import Factors, Fitted, Observations, accuracy_of, observations_of
from fedrecon.learning.baselines.stopping import keep_the_best

USERS, ITEMS = 400, 150


def halves() -> tuple[Observations, Observations]:
    """Ratings to fit, and others of the same users to score on."""
    ratings = generate(users=USERS, items=ITEMS, seed=5)
    fitted: list[dict[str, NDArray[Any]]] = []
    held: list[dict[str, NDArray[Any]]] = []
    for own in ratings.by_user():
        shuffled = np.random.default_rng(len(own)).permutation(own)
        cut = len(own) * 4 // 5
        for part, chosen in ((fitted, shuffled[:cut]), (held, shuffled[cut:])):
            part.append({"item": ratings.items[chosen], "rating": ratings.ratings[chosen]})
    return observations_of(fitted), observations_of(held)


FITTED, HELD = halves()


def rmse_of_user_means() -> float:
    sums = torch.zeros(USERS).index_add_(0, FITTED.users, FITTED.ratings)
    means = sums / torch.bincount(FITTED.users, minlength=USERS)
    return float((means[HELD.users] - HELD.ratings).square().mean().sqrt())


def score(factors: Factors) -> float:
    return accuracy_of(factors, HELD)[0]


def test_als_beats_each_users_mean() -> None:
    result = fit_by_als(FITTED, USERS, ITEMS, CentralAls(factors=6, ridge=5.0), 0, score)
    assert score(result.factors) < rmse_of_user_means() - 0.1
    assert score(result.factors) == min(result.scores)


def test_sgd_beats_each_users_mean() -> None:
    settings = CentralSgd(factors=6, rate=0.02, batch_size=64, sweeps=40)
    result = fit_by_sgd(FITTED, USERS, ITEMS, settings, 0, score)
    assert score(result.factors) < rmse_of_user_means() - 0.05
    assert score(result.factors) == min(result.scores)


def test_seeds_decide_everything() -> None:
    settings = CentralSgd(factors=3, sweeps=2)
    one, same, other = (fit_by_sgd(FITTED, USERS, ITEMS, settings, seed, score) for seed in (1, 1, 2))
    assert torch.equal(one.factors.item_vectors, same.factors.item_vectors)
    assert not torch.equal(one.factors.item_vectors, other.factors.item_vectors)


def test_a_step_of_descent_is_the_one_computed_by_hand() -> None:
    factors = Factors(0.0, torch.tensor([[0.5]]), torch.tensor([[0.4]]), torch.zeros(1), torch.zeros(1))
    batch = Observations(torch.tensor([0]), torch.tensor([0]), torch.tensor([4.0]))
    descend(factors, batch, 0.1)
    # error 0.5 * 0.4 - 4 = -3.8; the vectors move by 0.1 * 2 * 3.8 times each other
    assert factors.user_vectors.item() == pytest.approx(0.5 + 0.76 * 0.4)
    assert factors.item_vectors.item() == pytest.approx(0.4 + 0.76 * 0.5)


def test_ratings_of_one_batch_add_up() -> None:
    factors = Factors(0.0, torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0]]), torch.zeros(1), torch.zeros(2))
    batch = Observations(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))
    descend(factors, batch, 0.1)
    # errors -1 and -2: the user moves by 0.2 * (1 * 1 + 2 * 2), each item by its own
    assert factors.user_vectors.flatten().tolist() == pytest.approx([2.0])
    assert factors.item_vectors.flatten().tolist() == pytest.approx([1.2, 2.4])


def test_a_ridge_regression_is_the_one_computed_by_hand() -> None:
    # normal equations [[1 + 4 + 1, 1 + 2], [3, 2 + 1]] x = [1 + 6, 1 + 3]: x = [1, 1/3]; the other owner has 5 = 2 y
    design = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    solved = solve_side(design, torch.tensor([0, 2, 0]), torch.tensor([1.0, 5.0, 3.0]), 3, 1.0)
    assert solved.flatten().tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0, 2.5, 0.0])


def test_a_sweep_of_als_never_raises_its_objective() -> None:
    settings = CentralAls(factors=4, ridge=3.0, sweeps=6, patience=6)

    def objective(factors: Factors) -> float:
        errors = factors.predict(FITTED.users, FITTED.items) - FITTED.ratings
        kept = (factors.user_vectors, factors.item_vectors, factors.user_biases, factors.item_biases)
        return float(errors.double().square().sum()) + 3.0 * sum(float(part.double().square().sum()) for part in kept)

    scores = fit_by_als(FITTED, USERS, ITEMS, settings, 0, objective).scores
    assert len(scores) == 6
    assert list(scores) == sorted(scores, reverse=True)


def count_to(*scores: float, most: int, patience: int) -> Fitted:
    """Sweeps that count, with these scores."""
    start = Factors(0.0, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))

    def sweep(factors: Factors) -> Factors:
        factors.user_biases.add_(1.0)
        return factors

    return keep_the_best(
        start, sweep, lambda factors: scores[int(factors.user_biases.item()) - 1], most=most, patience=patience
    )


def test_the_best_sweep_is_kept_and_patience_ends() -> None:
    result = count_to(0.9, 0.8, 0.85, 0.84, 0.1, most=5, patience=2)
    assert (result.best_sweep, result.scores) == (2, (0.9, 0.8, 0.85, 0.84))
    assert result.factors.user_biases.item() == 2.0


def test_divergence_ends_and_never_wins() -> None:
    assert count_to(0.9, float("nan"), 0.1, most=3, patience=3).best_sweep == 1
    with pytest.raises(FloatingPointError, match="smaller rate"):
        count_to(float("inf"), 0.1, most=2, patience=2)
