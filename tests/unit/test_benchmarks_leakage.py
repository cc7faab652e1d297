"""The attack on sums finds users whose rows nobody shares, and hardly any once rows have enough contributors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.benchmarks.collinearity import exposed_users, find_users
from fedrecon.benchmarks.leakage import Leakage, _measures, attack
from fedrecon.datasets import generate
from fedrecon.datasets.popularity import rows_with_contributors
from fedrecon.wire.fixed_point import FixedPoint, Segment, add, quantise, zero

FACTORS = 16
USERS, ITEMS, COHORT = 400, 1_500, 60


def masked_sum(updates: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """What an aggregator has after unmasking: integers, by the arithmetic of the wire."""
    rows, factors = updates[0].shape
    agreed = FixedPoint(
        (Segment(rows * factors, 0.5),), (), maximum_reports=len(updates), maximum_weight=20, ring_bits=32
    )
    total = zero(agreed)
    for number, update in enumerate(updates):
        add(total, quantise([update.ravel()], 20, (), agreed, bytes([number]) * 32))
    body: NDArray[np.float64] = total.body.view("<i4").reshape(rows, factors) / agreed.scales()[0]
    return body


@pytest.fixture(scope="module")
def cohort() -> tuple[NDArray[np.float64], NDArray[np.float32], dict[int, NDArray[np.int64]]]:
    """The sum of a cohort, its user vectors, and the rows that only one of them touched, by user."""
    ratings = generate(users=USERS, items=ITEMS, seed=3)
    generator = np.random.default_rng(3)
    members = generator.choice(USERS, COHORT, replace=False)
    vectors = generator.normal(size=(COHORT, FACTORS)).astype(np.float32)
    updates, touched = [], np.zeros((COHORT, ITEMS), dtype=bool)
    for place, member in enumerate(members):
        own = ratings.items[ratings.by_user()[member]][1::2]  # half of them are queried
        residuals = generator.normal(scale=0.02, size=len(own)).astype(np.float32)
        update = np.zeros((ITEMS, FACTORS), dtype=np.float32)
        update[own] = residuals[:, None] * vectors[place]
        updates.append(update)
        touched[place, own] = True
    single = touched.sum(axis=0) == 1
    return masked_sum(updates), vectors, {place: np.flatnonzero(touched[place] & single) for place in range(COHORT)}


def test_users_with_two_rows_of_their_own_are_found_in_the_sum_of_integers(
    cohort: tuple[NDArray[np.float64], NDArray[np.float32], dict[int, NDArray[np.int64]]],
) -> None:
    total, vectors, alone = cohort
    found = find_users(total, COHORT)
    linkable = {user for user, rows in alone.items() if len(rows) >= 2}
    assert len(linkable) > COHORT / 2
    exposed = exposed_users(found, vectors)
    assert exposed <= linkable
    assert len(exposed) > 0.9 * len(linkable)


def test_the_attack_names_rows_that_are_the_users_own(
    cohort: tuple[NDArray[np.float64], NDArray[np.float32], dict[int, NDArray[np.int64]]],
) -> None:
    total, vectors, alone = cohort
    first = find_users(total, COHORT)[0]
    (user,) = exposed_users([first], vectors)
    assert set(first.rows.tolist()) <= set(alone[user].tolist())
    assert len(first.rows) >= 2


def test_hardly_anybody_is_found_in_rows_with_five_contributors_expected(
    cohort: tuple[NDArray[np.float64], NDArray[np.float32], dict[int, NDArray[np.int64]]],
) -> None:
    total, vectors, _ = cohort
    rows = rows_with_contributors(generate(users=USERS, items=ITEMS, seed=3), COHORT, 5)
    assert len(rows) > 50
    assert len(exposed_users(find_users(total[rows], COHORT), vectors)) <= 1


def test_no_more_users_are_claimed_than_took_part(
    cohort: tuple[NDArray[np.float64], NDArray[np.float32], dict[int, NDArray[np.int64]]],
) -> None:
    total, _, _ = cohort
    assert len(find_users(total, COHORT)) > 5
    assert len(find_users(total, 5)) == 5


def test_nothing_is_claimed_of_a_sum_without_parallel_rows() -> None:
    random = np.random.default_rng(0).normal(size=(200, FACTORS))
    assert find_users(random, 100) == []
    assert exposed_users([], random) == set()
    assert find_users(np.zeros((50, FACTORS)), 100) == []


@pytest.mark.slow
def test_the_benchmark_finds_most_users_of_simulated_rounds_and_none_in_popular_rows() -> None:
    everything, *restricted = attack(generate(users=300, items=1_000, seed=1), [40], compiled=False)
    assert everything.contributors == 0
    assert everything.rows_kept == 1
    assert everything.exposed > 20
    assert everything.alone >= everything.exposed
    by_rule = {each.contributors: each for each in restricted}
    assert by_rule[5].exposed < 1
    assert 0 < by_rule[5].rows_kept < by_rule[1].rows_kept < 1
    assert by_rule[5].rows_kept < by_rule[5].ratings_kept


def test_rows_are_told_apart_in_the_names_of_measures() -> None:
    leakage = Leakage(cohort=100, contributors=5, exposed=1.0, alone=2.0, rows_kept=0.2, ratings_kept=0.6)
    assert [each.name for each in _measures(leakage)] == [
        "exposed_of_100_rows_5",
        "alone_of_100_rows_5",
        "rows_kept_of_100_rows_5",
        "ratings_kept_of_100_rows_5",
    ]
