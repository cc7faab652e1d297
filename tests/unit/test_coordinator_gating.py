"""When a candidate may be promoted, and the figures that evaluation rounds tell."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrecon.coordinator.gating import click_through, evidence_of_rounds, refusals
from fedrecon.coordinator.recommenders import Evidence, Measured
from fedrecon.coordinator.tasks import CheckpointEvaluated
from fedrecon.v1.task_pb2 import Gate
from fedrecon.wire.outcomes import outcome_metrics, outcome_sums
from fedrecon.wire.spread import spread_metrics, spread_sums

BETTER = Measured("rmse", 0.90, 0.88, 0.92, 0.91, -0.015, -0.005)
GOOD = Evidence("a folder", 500, 3, (BETTER,))
GATE = Gate(minimum_users=200, margins={"rmse": 0.01})


def test_a_candidate_that_is_no_worse_passes() -> None:
    assert refusals(GATE, GOOD, 3) == ()


def test_too_few_users_are_refused_with_both_numbers() -> None:
    assert refusals(GATE, replace(GOOD, users=199), 3) == ("it was judged on 199 users, and 200 are needed",)
    assert refusals(Gate(), replace(GOOD, users=99), 3) == ("it was judged on 99 users, and 100 are needed",)


def test_nothing_known_is_refused() -> None:
    (why,) = refusals(GATE, None, 3)
    assert "nothing is known" in why


def test_what_was_compared_with_another_version_is_refused() -> None:
    (why,) = refusals(GATE, GOOD, 4)
    assert why == "it was compared with version 3, but version 4 is live now"


def test_an_interval_that_reaches_beyond_the_margin_is_refused_though_its_middle_is_better() -> None:
    wide = replace(GOOD, measures=(replace(BETTER, lowest_difference=-0.03, highest_difference=0.0092),))
    (why,) = refusals(GATE, wide, 3)
    assert why == "its rmse 0.9000 may be higher than the live one's 0.9100 by 0.0092, and 0.0091 is allowed"


@pytest.mark.parametrize("name", ["recall", "ndcg", "coverage"])
def test_of_rankings_more_is_better(name: str) -> None:
    gate = Gate(minimum_users=10, margins={name: 0.05})
    lower = Evidence("a folder", 500, 3, (Measured(name, 0.42, 0.4, 0.44, 0.44, -0.03, 0.01),))
    assert refusals(gate, lower, 3) == (
        f"its {name} 0.4200 may be lower than the live one's 0.4400 by 0.0300, and 0.0220 is allowed",
    )
    higher = replace(lower, measures=(replace(lower.measures[0], lowest_difference=-0.02),))
    assert refusals(gate, higher, 3) == ()


def test_a_measure_that_nobody_knows_refuses() -> None:
    gate = Gate(minimum_users=10, margins={"rmse": 0.01, "recall": 0.05})
    assert refusals(gate, GOOD, 3) == ("its recall is not known from a folder",)


def test_a_difference_that_is_no_number_refuses() -> None:
    broken = replace(GOOD, measures=(replace(BETTER, highest_difference=math.nan),))
    assert len(refusals(GATE, broken, 3)) == 1


def test_the_first_version_has_nothing_to_be_compared_with() -> None:
    first = Evidence("a folder", 500, 0, (Measured("rmse", 0.9, 0.88, 0.92),))
    assert refusals(GATE, first, 0) == ()
    assert refusals(GATE, replace(first, users=3), 0) != ()


def evaluated(number: int, live_round: int, squares: list[np.ndarray]) -> CheckpointEvaluated:
    """What a round tells of users with these squared errors of their query examples."""
    totals = np.zeros(1 + len(spread_metrics([("squared_error", 25.0)])))
    for own in squares:
        totals += np.array([own.sum(), *spread_sums([float(own.sum())], len(own))])
    names = ("squared_error", *(name for name, _ in spread_metrics([("squared_error", 25.0)])))
    sums = tuple(zip(names, totals.tolist(), strict=True))
    return CheckpointEvaluated(number, 1, live_round, len(squares), int(sum(map(len, squares))), sums)


def made_up(seed: int, users: int, scale: float) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    own = random.gamma(4.0, 0.25, users)
    return [own[user] * scale * random.chisquare(1, random.integers(5, 80)) for user in range(users)]


def test_rounds_tell_the_pooled_error_with_the_interval_that_a_bootstrap_over_users_gives() -> None:
    squares = made_up(1, 300, 0.8)
    found = evidence_of_rounds([evaluated(4, 3, squares)], None, 0)
    assert found is not None
    (rmse,) = found.measures
    pooled = np.concatenate(squares)
    assert rmse.value == pytest.approx(math.sqrt(pooled.mean()), rel=1e-12)
    random = np.random.default_rng(2)
    errors, counts = np.array([own.sum() for own in squares]), np.array([len(own) for own in squares])
    drawn = random.integers(0, 300, (4_000, 300))
    roots = np.sqrt(errors[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(roots, [0.025, 0.975])
    assert rmse.highest - rmse.lowest == pytest.approx(high - low, rel=0.06)
    assert rmse.lowest == pytest.approx(low, abs=0.003)


def test_rounds_of_one_checkpoint_count_together_and_are_compared_with_those_of_the_live_one() -> None:
    squares, live = made_up(1, 200, 0.8), made_up(2, 250, 1.0)
    halves = [evaluated(4, 3, squares[:80]), evaluated(7, 3, squares[80:])]
    found = evidence_of_rounds(halves, [evaluated(10, 9, live)], 5)
    whole = evidence_of_rounds([evaluated(4, 3, squares)], [evaluated(10, 9, live)], 5)
    assert found is not None
    assert whole is not None
    assert (found.users, found.live_version) == (200, 5)
    assert found.source == "evaluation rounds 4, 7 against 10"
    assert found.measures[0].value == pytest.approx(whole.measures[0].value)
    (rmse,) = found.measures
    assert rmse.live_value == pytest.approx(math.sqrt(np.concatenate(live).mean()))
    assert rmse.highest_difference < 0
    assert refusals(GATE, found, 5) == ()


def test_rounds_without_a_spread_tell_nothing() -> None:
    plain = CheckpointEvaluated(4, 1, 3, 50, 500, (("examples", 500.0), ("squared_error", 400.0)))
    assert evidence_of_rounds([plain], None, 0) is None
    told = evidence_of_rounds([evaluated(4, 3, made_up(1, 200, 0.8))], [plain], 5)
    assert told is not None
    assert refusals(GATE, told, 5) == ("its rmse is not known from evaluation rounds 4",)


def shown_to(outcomes: list[tuple[int, int]], number: int = 4, **changes: float) -> CheckpointEvaluated:
    """A round in which devices told these outcomes of version 3."""
    totals = np.sum([outcome_sums([3], {3: each}) for each in outcomes], axis=0)
    sums = dict(zip((name for name, _ in outcome_metrics([3])), totals.tolist(), strict=True))
    sums |= {name.replace("_", "."): value for name, value in changes.items()}
    return CheckpointEvaluated(number, 1, 2, len(outcomes), 500, tuple(sums.items()))


def test_click_through_has_the_interval_that_a_bootstrap_over_devices_gives() -> None:
    random = np.random.default_rng(8)
    shown = random.integers(1, 400, 300)
    chosen = random.binomial(shown, random.beta(2, 18, 300))
    newest = shown_to(list(zip(shown.tolist(), chosen.tolist(), strict=True)), 8)
    found = click_through(3, [shown_to([(9, 9)] * 5), newest])
    assert found is not None
    measured, total = found
    assert total == shown.sum()
    assert measured.value == pytest.approx(chosen.sum() / shown.sum())
    drawn = random.integers(0, 300, (4_000, 300))
    low, high = np.quantile(chosen[drawn].sum(axis=1) / shown[drawn].sum(axis=1), [0.025, 0.975])
    assert measured.highest - measured.lowest == pytest.approx(high - low, rel=0.08)


@pytest.mark.parametrize(
    "told",
    [
        shown_to([(10, 2)] * 5, outcome_3_chosen=60.0),
        shown_to([(10, 2)] * 5, outcome_3_chosen=-1.0),
        shown_to([(10, 2)] * 5, outcome_3_shown=5_001.0),
        shown_to([(10, 2)] * 5, outcome_3_shown_squared=1.0),
        shown_to([(10, 2)] * 5, outcome_3_product=10_000.0),
        shown_to([(0, 0)] * 5),
        shown_to([(10, 2)]),
        evaluated(4, 3, made_up(1, 20, 0.8)),
    ],
)
def test_sums_that_honest_devices_could_not_have_told_say_nothing(told: CheckpointEvaluated) -> None:
    assert click_through(3, [told]) is None


def test_one_user_has_no_spread() -> None:
    assert evidence_of_rounds([evaluated(4, 3, made_up(1, 1, 0.8))], None, 0) is None
