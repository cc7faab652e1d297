"""`fedrecon experiment ranking` as a person runs it, and what its rankers may see."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrecon.datasets import Ratings, generate, load, split_users
from fedrecon.learning.experiments.protocol import Protocol, open_protocol, support_and_query
from fedrecon.learning.experiments.ranking import QUICK_ROWS, ROWS, Row, judge, judge_rows
from fedrecon.learning.experiments.ranking_models import (
    FederatedChoices,
    Neighbours,
    Popularity,
    Recipe,
    train_ranker,
    users_of,
)
from fedrecon.learning.models.implicit_feedback import ITEM_VECTORS
from fedrecon.ops.command import main

RATINGS = generate(users=100, items=60, seed=4)
OURS = FederatedChoices(factors=4, cohort=20, rounds=5)
KEYS = {"row", "recall_at_10", "recall_spread", "ndcg_at_10", "ndcg_spread", "recall_of_neighbours", "seeds"}


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    return open_protocol(RATINGS, tmp_path)


def test_the_table_has_all_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "ranking", "--quick", "--json", "--seeds", "2", "--out", str(tmp_path)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["row"] for row in rows] == [row.name for row in ROWS]
    for row in rows:
        assert set(row) == KEYS
        assert 0.0 < row["recall_at_10"] <= 1.0
        assert 0.0 < row["ndcg_at_10"] <= 1.0
        drawn = row["row"] not in {"popularity", "item neighbours"}
        assert row["seeds"] == (2 if drawn else 1)
        assert (row["recall_spread"] is not None) == drawn
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "ranking.csv").open(newline="") as file:
        written = {row["row"]: row for row in csv.DictReader(file)}
    # 120 item vectors of 8 factors and the default, each way; what lies in one place does not travel by rounds.
    assert written["FedRecon implicit"]["client_bytes_up_a_round"] == str(121 * 8 * 4)
    assert not written["implicit ALS, folded in"]["client_bytes_up_a_round"]


def test_a_folder_is_judged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment", "ranking", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "read already" in capsys.readouterr().err


def test_data_that_is_not_stated_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDRECON_DATA", raising=False)
    assert main(["experiment", "ranking"]) == 2
    assert "FEDRECON_DATA" in capsys.readouterr().err


def test_other_choices_of_test_users_change_no_choice(tmp_path: Path) -> None:
    def choices(ratings: Ratings, folder: Path) -> Any:
        judge_rows(QUICK_ROWS, ratings, folder, 1)
        return json.loads((folder / "choices.json").read_text())

    closed = np.isin(RATINGS.users, split_users(100).test)
    others = replace(RATINGS, items=np.where(closed, (RATINGS.items + 7) % 60, RATINGS.items))
    assert choices(RATINGS, tmp_path / "one") == choices(others, tmp_path / "other")


def test_halves_are_those_of_the_protocol(protocol: Protocol) -> None:
    users = users_of(protocol.validation, protocol.items)
    assert not (users.known & users.wanted).any()
    for number, client in enumerate(protocol.validation):
        support, query = support_and_query(len(client["item"]))
        assert set(np.flatnonzero(users.known[number])) == set(client["item"][support])
        assert set(np.flatnonzero(users.wanted[number])) == set(client["item"][query])
        own = users.support.positions[users.support.offsets[number] : users.support.offsets[number + 1]]
        assert users.examples.fields["item"][torch.from_numpy(own)].tolist() == client["item"][support].tolist()


@pytest.mark.parametrize(
    "recipe", [*dict.fromkeys(row.recipe for row in QUICK_ROWS)], ids=lambda each: type(each).__name__
)
def test_scores_depend_on_what_is_known_alone(protocol: Protocol, recipe: Recipe) -> None:
    ranker = train_ranker(recipe, protocol, seed=0)
    clients = protocol.validation
    changed = []
    for client in clients:
        _, query = support_and_query(len(client["item"]))
        items, stars = client["item"].copy(), client["rating"].copy()
        items[query], stars[query] = items[query][::-1], 1.0
        changed.append({"item": items, "rating": stars})
    first, second = (ranker.score(users_of(tuple(each), protocol.items)) for each in (clients, changed))
    assert first.shape == (len(clients), protocol.items)
    assert np.array_equal(first, second)


def test_a_user_of_whom_nothing_is_known_gets_the_default(protocol: Protocol) -> None:
    ranker = train_ranker(OURS, protocol, seed=0)
    scores = ranker.score(users_of(protocol.validation, protocol.items).forgotten())
    default = ranker.parameters[ITEM_VECTORS] @ ranker.parameters["default_user_vector"]
    assert default.any()
    np.testing.assert_allclose(scores, np.tile(default.numpy(), (len(scores), 1)), atol=1e-6)


def test_scores_of_ours_are_those_of_the_closed_form(protocol: Protocol) -> None:
    ranker = train_ranker(OURS, protocol, seed=0)
    users = users_of(protocol.validation, protocol.items)
    scores = ranker.score(users)
    items = ranker.parameters[ITEM_VECTORS].double().numpy()
    default = ranker.parameters["default_user_vector"].double().numpy()
    for number, known in enumerate(users.known):
        design = items[known]
        background = known.sum() * OURS.weight / len(items) * items.T @ items
        normal = design.T @ design + background + OURS.ridge * np.eye(OURS.factors)
        own = np.linalg.solve(normal, design.sum(0) + OURS.ridge * default)
        np.testing.assert_allclose(scores[number], items @ own, atol=1e-5)


def test_equal_seeds_give_equal_models(protocol: Protocol) -> None:
    one, same, other = (train_ranker(OURS, protocol, seed).parameters[ITEM_VECTORS] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.data
def test_ours_ranks_above_the_baselines_on_validation_users(tmp_path: Path) -> None:
    """With half of its rounds; on one core this takes half a minute."""
    folder = os.environ.get("FEDRECON_DATA")
    if not folder:
        pytest.skip("FEDRECON_DATA does not name a folder that holds ml-1m/")
    torch.set_num_threads(1)
    protocol = open_protocol(load(Path(folder) / "ml-1m"), tmp_path)
    users = users_of(protocol.validation, protocol.items)
    recipes = (Popularity(), Neighbours(), FederatedChoices(rounds=200))
    popular, neighbours, ours = (
        judge(Row("", recipe), train_ranker(recipe, protocol, seed=0), users) for recipe in recipes
    )
    assert popular.recall == pytest.approx(0.264, abs=0.001)
    assert neighbours.recall == pytest.approx(0.470, abs=0.001)
    assert ours.recall > 1.02 * neighbours.recall
    assert ours.ndcg > 1.02 * neighbours.ndcg
