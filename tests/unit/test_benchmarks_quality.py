"""The measurement of quality, in a small form: the file says what the learning room says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedrecon.benchmarks.quality import SMALL, measure_recipes
from fedrecon.datasets import generate


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_exported_files_are_as_good_as_what_was_trained() -> None:
    recipes = replace(
        SMALL, ratings=replace(SMALL.ratings, rounds=3, evaluate_every=3), choices=replace(SMALL.choices, rounds=3)
    )
    measures = {each.name: each for each in measure_recipes(generate(users=60, items=50, seed=3), recipes)}
    assert measures["unseen_users"].value == 6
    assert measures["rmse_difference"].holds
    assert 0.5 < measures["file_rmse"].value < 2.5
    # The lists of the file are those of the model in torch, user for user.
    assert measures["recall_at_10"].value == measures["learning_recall_at_10"].value > 0
    assert 0 < measures["coverage_at_10"].value <= 1
    assert measures["recall_of_neighbours"].limit == 0.95
