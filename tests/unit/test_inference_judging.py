"""Figures of recommenders on users never seen: what counts, and how far two of them are apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedrecon.inference.judging import (
    LISTED,
    Judged,
    Rater,
    UnjudgeableError,
    evidence_of,
    judge_users,
)
from fedrecon.inference.recommending import Asked, KeysOrNumbers, OpenRecommender
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.v1.admin_pb2 import Evidence, Measured
from fedrecon.wire.vocabularies import read_vocabulary
from support.inference_sample import ITEMS, RETIRED, make_sample


def opened(**changes: Any) -> OpenRecommender:
    sample = make_sample(**changes)
    return OpenRecommender.open(sample.export(), read_vocabulary(sample.vocabulary))


@pytest.fixture(scope="module")
def recommender() -> OpenRecommender:
    return opened()


def raters(count: int, seed: int = 3) -> list[Rater]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        rows = random.permutation(ITEMS)[: random.integers(11, 25)]
        made.append(Rater([f"key-{row}" for row in rows], random.integers(1, 6, len(rows)).astype(np.float64)))
    return made


def test_figures_are_those_of_the_lists_that_users_would_get(recommender: OpenRecommender) -> None:
    users = raters(12)
    judged = judge_users(recommender, users)
    for place, user in enumerate(users):
        known = [position for position in range(len(user.keys)) if position // 5 % 2 == 0]
        rest = [position for position in range(len(user.keys)) if position // 5 % 2 == 1]
        columns = {
            "item": KeysOrNumbers(keys=[user.keys[each] for each in known]),
            "rating": KeysOrNumbers(numbers=user.ratings[known].tolist()),
        }
        best = recommender.recommend(Asked(columns, LISTED)).rows.tolist()
        everything = recommender.recommend(Asked(columns, ITEMS, exclude_seen=False))
        scores = dict(zip(everything.rows.tolist(), everything.scores.tolist(), strict=True))
        rows = {int(user.keys[each].removeprefix("key-")): user.ratings[each] for each in rest}
        served = {row: rating for row, rating in rows.items() if row not in RETIRED}
        errors = [(scores[row] - rating) ** 2 for row, rating in served.items()]
        assert judged.squares is not None
        assert judged.counts[place] == len(errors)
        assert judged.squares[place] == pytest.approx(sum(errors), rel=1e-5)
        assert judged.listed[place].tolist() == best
        hits = [row in served for row in best]
        assert judged.recall[place] == pytest.approx(sum(hits) / min(LISTED, len(served)))
        gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(LISTED, len(served))))
        assert judged.ndcg[place] == pytest.approx(gain / ideal)
    assert judged.squares is not None
    shown = set(judged.listed.ravel().tolist())
    evidence = evidence_of(judged, None, 0, "made up")
    assert (evidence.users, evidence.live_version, evidence.source) == (12, 0, "made up")
    by_name = {each.name: each for each in evidence.measures}
    assert set(by_name) == {"rmse", "recall", "ndcg", "coverage"}
    assert by_name["coverage"].value == pytest.approx(len(shown) / (ITEMS - len(RETIRED)))
    assert by_name["rmse"].value == pytest.approx(math.sqrt(judged.squares.sum() / judged.counts.sum()))
    assert by_name["recall"].value == pytest.approx(judged.recall.mean())


def test_a_recommender_differs_from_itself_by_nothing(recommender: OpenRecommender) -> None:
    judged = judge_users(recommender, raters(12))
    evidence = evidence_of(judged, judged, 4, "made up")
    assert evidence.live_version == 4
    for each in evidence.measures:
        assert (each.lowest_difference, each.highest_difference) == (0.0, 0.0)
        assert each.live_value == each.value
        assert each.lowest < each.value < each.highest


def made_up(seed: int, better: float) -> Judged:
    """Users who differ much from each other, and a model that is a little better for each."""
    random = np.random.default_rng(seed)
    users = np.random.default_rng(0)
    hard = users.gamma(2.0, 0.5, 300)
    counts = users.integers(5, 60, 300).astype(np.float64)
    squares = counts * hard * (1 - better + random.normal(0, 0.01, 300))
    recall = np.clip(users.random(300) + better + random.normal(0, 0.01, 300), 0, 1)
    listed = users.integers(0, 200, (300, LISTED))
    return Judged(squares, counts, recall, recall, listed, 500)


def test_what_is_hard_about_users_cancels_in_the_difference() -> None:
    evidence = evidence_of(made_up(1, 0.05), made_up(2, 0.0), 2, "made up")
    by_name = {each.name: each for each in evidence.measures}
    for name in ("rmse", "recall"):
        measured = by_name[name]
        alone = measured.highest - measured.lowest
        paired = measured.highest_difference - measured.lowest_difference
        assert paired < alone / 5
    assert by_name["rmse"].highest_difference < 0
    assert by_name["recall"].lowest_difference > 0
    assert evidence == evidence_of(made_up(1, 0.05), made_up(2, 0.0), 2, "made up")


def test_the_interval_of_a_mean_is_the_one_that_is_known_for_it() -> None:
    judged = made_up(1, 0.0)
    (recall,) = (each for each in evidence_of(judged, None, 0, "made up").measures if each.name == "recall")
    known = 1.96 * judged.recall.std(ddof=1) / math.sqrt(300)
    assert (recall.highest - recall.lowest) / 2 == pytest.approx(known, rel=0.1)


def test_a_model_of_choices_has_no_error_in_stars() -> None:
    fields = [
        plan_pb2.Field(name="item", role=plan_pb2.FIELD_ROLE_INPUT, dtype=common_pb2.DTYPE_INT64, vocabulary="items"),
        plan_pb2.Field(
            name="rating",
            role=plan_pb2.FIELD_ROLE_TARGET,
            dtype=common_pb2.DTYPE_FLOAT32,
            minimum=0.0,
            maximum=1.0,
            limited=True,
        ),
    ]
    judged = judge_users(opened(fields=fields), raters(6))
    assert judged.squares is None
    assert [each.name for each in evidence_of(judged, None, 0, "made up").measures] == ["recall", "ndcg", "coverage"]


def test_users_without_a_second_half_are_not_counted(recommender: OpenRecommender) -> None:
    few = Rater(["key-1", "key-2"], np.array([4.0, 5.0]))
    unknown = Rater([f"nobody knows {each}" for each in range(12)], np.full(12, 3.0))
    judged = judge_users(recommender, [*raters(3), few, unknown])
    assert judged.counts.tolist()[3:] == [0.0, 0.0]
    assert evidence_of(judged, None, 0, "made up").users == 3
    with pytest.raises(UnjudgeableError, match="no user has a rating left"):
        judge_users(recommender, [few, unknown])


def test_evidence_is_a_message_that_the_gate_reads() -> None:
    evidence = evidence_of(made_up(1, 0.0), None, 0, "made up")
    assert isinstance(evidence, Evidence)
    assert all(isinstance(each, Measured) for each in evidence.measures)
