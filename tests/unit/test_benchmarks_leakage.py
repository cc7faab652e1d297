"""The attack on sums finds users whose rows nobody shares, and hardly any once rows have enough contributors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.benchmarks.collinearity import exposed_users, find_users
from fedrecon.benchmarks.leakage import Leakage, _measures, attack
from fedrecon.datasets import generate
from fedrecon.datasets.popularity import rows_with_contributors
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.restricting import restrict
from fedrecon.device_sdk.runtime import SparseUpdate, TrainingResult, report_vector
from fedrecon.v1.plan_pb2 import Layout, Segment
from fedrecon.wire.fixed_point import FixedPoint, add, zero
from fedrecon.wire.fixed_point import Segment as FixedSegment
from fedrecon.wire.row_sets import RowSet

FACTORS = 16
USERS, ITEMS, COHORT = 400, 1_500, 60
RATINGS = generate(users=USERS, items=ITEMS, seed=3)


@dataclass(frozen=True)
class Sample:
    """A cohort's updates, and what is true of them.

    Attributes:
        updates: One of each member.
        vectors: Their user vectors.
        alone: The rows that only one of them touched, by member.
    """

    updates: list[SparseUpdate]
    vectors: NDArray[np.float32]
    alone: dict[int, set[int]]

    def total(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """What an aggregator has after unmasking, where devices report all rows, or those of a row set."""
        count, segment = ITEMS, Segment(parameter="items", all_rows=True, bound=0.5, width=FACTORS)
        row_sets = {}
        if rows is not None:
            count, segment.row_set_digest = len(rows), b"s" * 32
            row_sets[b"s" * 32] = RowSet(rows, 5, COHORT)
        agreed = FixedPoint((FixedSegment(count * FACTORS, 0.5),), (), maximum_reports=COHORT, maximum_weight=20)
        total, layout = zero(agreed), Layout(segments=[segment])
        for number, update in enumerate(self.updates):
            result = TrainingResult({"items": update}, (), 20, LocalParameters({}), {"items": ITEMS}, ())
            kept = restrict(result, layout, row_sets)
            add(total, report_vector(kept, layout, agreed, bytes([number]) * 32))
        body: NDArray[np.float64] = total.body.view("<i4").reshape(count, FACTORS) / agreed.scales()[0]
        return body


@pytest.fixture(scope="module")
def sample() -> Sample:
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(COHORT, FACTORS)).astype(np.float32)
    updates, touched = [], np.zeros((COHORT, ITEMS), dtype=bool)
    for place, member in enumerate(generator.choice(USERS, COHORT, replace=False)):
        own = np.sort(RATINGS.items[RATINGS.by_user()[member]][1::2])  # half of them are queried
        residuals = generator.normal(scale=0.02, size=len(own)).astype(np.float32)
        updates.append(SparseUpdate(residuals[:, None] * vectors[place], own))
        touched[place, own] = True
    single = touched.sum(axis=0) == 1
    alone = {place: set(np.flatnonzero(touched[place] & single).tolist()) for place in range(COHORT)}
    return Sample(updates, vectors, alone)


def test_users_with_two_rows_of_their_own_are_found_in_the_sum_of_integers(sample: Sample) -> None:
    linkable = {user for user, rows in sample.alone.items() if len(rows) >= 2}
    assert len(linkable) > COHORT / 2
    exposed = exposed_users(find_users(sample.total(), COHORT), sample.vectors)
    assert exposed <= linkable
    assert len(exposed) > 0.9 * len(linkable)


def test_the_attack_names_rows_that_are_the_users_own(sample: Sample) -> None:
    first = find_users(sample.total(), COHORT)[0]
    (user,) = exposed_users([first], sample.vectors)
    assert set(first.rows.tolist()) <= sample.alone[user]
    assert len(first.rows) >= 2


def test_hardly_anybody_is_found_where_devices_report_rows_with_five_contributors_expected(sample: Sample) -> None:
    rows = rows_with_contributors(RATINGS, COHORT, 5)
    assert len(rows) > 50
    assert len(exposed_users(find_users(sample.total(rows), COHORT), sample.vectors)) <= 1


def test_a_set_of_rare_rows_hides_nobody(sample: Sample) -> None:
    """It is popularity that protects, not a set."""
    rare = np.setdiff1d(np.arange(ITEMS), rows_with_contributors(RATINGS, COHORT, 3))
    assert len(exposed_users(find_users(sample.total(rare), COHORT), sample.vectors)) > COHORT / 2


def test_no_more_users_are_claimed_than_took_part(sample: Sample) -> None:
    assert len(find_users(sample.total(), COHORT)) > 5
    assert len(find_users(sample.total(), 5)) == 5


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
