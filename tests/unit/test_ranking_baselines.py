"""Popularity, item neighbours and implicit ALS, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrecon.learning.baselines.implicit_als import ImplicitAls, fit_implicitly, fold_in
from fedrecon.learning.baselines.item_neighbours import fit_neighbours
from fedrecon.learning.baselines.popularity import popularity
from fedrecon.learning.ranking import judge_ranking

GENERATOR = np.random.default_rng(3)
INTERACTIONS = GENERATOR.random((30, 12)) < np.linspace(0.1, 0.6, 12)
INTERACTIONS[4] = False


def two_tastes(users: int, generator: np.random.Generator) -> np.ndarray:
    """Users who have most items of one half and hardly any of the other."""
    first = generator.random(users) < 0.5
    likely = np.where(np.arange(40) < 20, 0.6, 0.05)
    return generator.random((users, 40)) < np.where(first[:, None], likely, likely[::-1])


def test_popularity_counts_users() -> None:
    assert popularity(np.array([[True, False], [True, True]])).tolist() == [2.0, 1.0]


def test_likeness_is_the_cosine_of_two_items() -> None:
    likeness = fit_neighbours(INTERACTIONS, 11)
    columns = INTERACTIONS.astype(float)
    wanted = columns[:, 2] @ columns[:, 7] / np.sqrt(columns[:, 2].sum() * columns[:, 7].sum())
    assert likeness[2, 7] == pytest.approx(wanted)
    assert likeness[7, 2] == pytest.approx(wanted)
    assert not likeness.diagonal().any()


def test_only_the_nearest_neighbours_of_an_item_count() -> None:
    everyone, nearest = fit_neighbours(INTERACTIONS, 11), fit_neighbours(INTERACTIONS, 3)
    for item in range(12):
        kept = np.sort(nearest[nearest[:, item] > 0, item])
        assert kept.tolist() == np.sort(everyone[:, item])[-3:].tolist()


def test_an_item_without_users_is_like_nothing() -> None:
    interactions = INTERACTIONS.copy()
    interactions[:, 5] = False
    assert not fit_neighbours(interactions, 4)[:, 5].any()


@pytest.mark.parametrize("neighbours", [0, 12])
def test_impossible_numbers_of_neighbours_are_refused(neighbours: int) -> None:
    with pytest.raises(ValueError, match="neighbours"):
        fit_neighbours(INTERACTIONS, neighbours)


def objective(users: torch.Tensor, items: torch.Tensor, settings: ImplicitAls) -> torch.Tensor:
    """The objective as it is written down, over every pair."""
    products = users @ items.T
    has = torch.from_numpy(INTERACTIONS)
    fit = (products - 1).square()[has].sum() + settings.weight * products.square().sum()
    of_users = has.sum(1) + settings.weight * len(items)
    of_items = has.sum(0) + settings.weight * len(users)
    ridge = (of_users * users.square().sum(1)).sum() + (of_items * items.square().sum(1)).sum()
    return fit + settings.ridge * ridge


def test_folding_in_finds_where_the_objective_is_flat() -> None:
    settings = ImplicitAls(factors=3, weight=0.2, ridge=0.1)
    items = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    users = fold_in(INTERACTIONS, items, settings).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(users, items, settings), users)
    assert gradient.abs().max() < 1e-4
    assert not users[4].any()


def test_owners_are_solved_alike_however_many_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ImplicitAls(factors=3)
    items = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    whole = fold_in(INTERACTIONS, items, settings)
    monkeypatch.setattr("fedrecon.learning.baselines.implicit_als.ELEMENTS_AT_ONCE", 1)
    torch.testing.assert_close(fold_in(INTERACTIONS, items, settings), whole)


def test_every_sweep_lowers_the_objective() -> None:
    settings = [ImplicitAls(factors=3, weight=0.2, ridge=0.1, sweeps=sweeps) for sweeps in (1, 2, 4)]
    values = []
    for each in settings:
        items = fit_implicitly(INTERACTIONS, each, seed=0)
        values.append(float(objective(fold_in(INTERACTIONS, items, each), items, each)))
    assert values == sorted(values, reverse=True)


def test_tastes_are_found_by_all_that_know_the_user() -> None:
    generator = np.random.default_rng(5)
    train, users = two_tastes(200, generator), two_tastes(50, generator)
    known = users & (generator.random(users.shape) < 0.5)
    wanted = users & ~known
    kept = wanted.any(axis=1)
    known, wanted = known[kept], wanted[kept]
    items = fit_implicitly(train, ImplicitAls(factors=4, weight=0.1, ridge=0.05), seed=0)
    folded = fold_in(known, items, ImplicitAls(factors=4, weight=0.1, ridge=0.05)) @ items.T
    recall = {
        "popularity": judge_ranking(np.tile(popularity(train), (len(known), 1)), known, wanted),
        "neighbours": judge_ranking(known @ fit_neighbours(train, 20), known, wanted),
        "implicit": judge_ranking(folded.numpy(), known, wanted),
    }
    assert recall["neighbours"].recall.mean() > recall["popularity"].recall.mean() + 0.1
    assert recall["implicit"].recall.mean() > recall["popularity"].recall.mean() + 0.1
