"""Recall and NDCG by hand, and what a ranking must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrecon.learning.ranking import best_items, judge_ranking


def places(items: int, *chosen: int) -> np.ndarray:
    found = np.zeros(items, dtype=bool)
    found[list(chosen)] = True
    return found


def test_recall_and_ndcg_are_those_computed_by_hand() -> None:
    # Item 0 is known, so the ranking is 1, 2, 3, 4, 5; of it 2 and 4 are wanted, and so is 5, which comes too late.
    scores = np.array([[99.0, 9.0, 8.0, 7.0, 6.0, 5.0]])
    ranked = judge_ranking(scores, places(6, 0)[None], places(6, 2, 4, 5)[None], k=4)
    assert ranked.recall == pytest.approx([2 / 3])
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ranked.ndcg == pytest.approx([gain / ideal])


def test_recall_counts_what_fits_into_the_list() -> None:
    wanted = places(6, 0, 1, 2, 3)[None]
    ranked = judge_ranking(np.array([[6.0, 5.0, 1.0, 2.0, 3.0, 4.0]]), np.zeros((1, 6), bool), wanted, k=2)
    assert ranked.recall.tolist() == [1.0]
    assert ranked.ndcg.tolist() == [1.0]


def test_an_earlier_place_is_worth_more() -> None:
    known = np.zeros((2, 3), bool)
    ranked = judge_ranking(np.array([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0]]), known, np.stack([places(3, 0)] * 2), k=2)
    assert ranked.recall.tolist() == [1.0, 1.0]
    assert ranked.ndcg == pytest.approx([1.0, 1 / math.log2(3)])


def test_users_are_judged_apart() -> None:
    scores = np.array([[2.0, 1.0], [2.0, 1.0]])
    ranked = judge_ranking(scores, np.zeros((2, 2), bool), np.stack([places(2, 0), places(2, 1)]), k=1)
    assert ranked.recall.tolist() == [1.0, 0.0]


def test_of_equal_scores_the_smaller_number_comes_first() -> None:
    assert best_items(np.zeros((1, 5)), places(5, 1)[None], 3).tolist() == [[0, 2, 3]]


@pytest.mark.parametrize(
    ("scores", "known", "wanted", "k", "reason"),
    [
        ([[1.0, 2.0]], [[False]], [[False, True]], 1, "shape"),
        ([[1.0, np.nan]], [[False, False]], [[False, True]], 1, "finite"),
        ([[1.0, 2.0]], [[False, True]], [[False, True]], 1, "both known and wanted"),
        ([[1.0, 2.0]], [[False, True]], [[False, False]], 1, "nothing to find"),
        ([[1.0, 2.0]], [[True, False]], [[False, True]], 2, "candidates"),
        ([[1.0, 2.0]], [[True, False]], [[False, True]], 0, "candidates"),
    ],
)
def test_what_means_nothing_is_refused(
    scores: list[list[float]], known: list[list[bool]], wanted: list[list[bool]], k: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        judge_ranking(np.array(scores), np.array(known), np.array(wanted), k)
