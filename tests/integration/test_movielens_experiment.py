"""`fedrecon experiment movielens` as a person runs it: made-up ratings, small models, every path of the real one."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrecon.datasets import Ratings, generate, split_users
from fedrecon.learning.experiments.movielens_models import Simulators
from fedrecon.learning.experiments.movielens_results import Setting, run_rows
from fedrecon.learning.experiments.movielens_rows import TABLE_1, Federated, Judged, Row
from fedrecon.learning.experiments.movielens_runs import Run, judge, opened_of, part_of, run_training
from fedrecon.learning.experiments.protocol import Protocol, open_protocol, support_and_query
from fedrecon.learning.reconstruction import Ridge
from fedrecon.ops.command import main

# As an app that compares runs reads them.
ROWS = [
    "centralised STANDARD",
    "centralised RECON",
    "FedAvg STANDARD",
    "FedAvg RECON",
    "FedRecon SGD",
    "FedRecon no split",
    "FedRecon joint",
    "FedRecon Adagrad",
    "best",
]
PAPER = [0.923, 1.36, 0.939, 0.934, 0.907, 0.912, 0.915, 0.883, None]
KEYS = ["row", "rmse", "rmse_spread", "paper_rmse", "accuracy", "paper_accuracy", "seeds"]


def rows_printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["experiment", "movielens", "--quick", "--json", *arguments]) == 0
    printed = capsys.readouterr().out
    rows: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])["rows"]
    return rows


def test_table_1_has_the_papers_rows_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_printed(capsys, "--table", "1", "--seeds", "2", "--out", str(tmp_path))
    assert [row["row"] for row in rows] == ROWS
    assert [row["paper_rmse"] for row in rows] == PAPER
    for row in rows:
        assert sorted(row) == sorted(KEYS)
        assert row["seeds"] == 2
        assert 0.5 < row["rmse"] < 4.5
        assert 0.0 <= row["accuracy"] <= 100.0
        assert row["rmse_spread"] > 0.0
    assert (tmp_path / "table-1.png").read_bytes().startswith(b"\x89PNG")
    choices = json.loads((tmp_path / "choices.json").read_text())["choices"]
    assert [(choice["row"], choice["seed"]) for choice in choices] == [(row, seed) for row in ROWS for seed in (0, 1)]
    with (tmp_path / "table-1.csv").open(newline="") as file:
        written = {row["row"]: row for row in csv.DictReader(file)}
    # Item vectors of 4 factors, and for the best row a bias beside them; ratings of one place do not travel by rounds.
    assert written["FedRecon SGD"]["client_bytes_up_a_round"] == str(120 * 4 * 4)
    assert written["best"]["client_bytes_down_a_round"] == str(120 * 5 * 4)
    assert not written["centralised RECON"]["client_bytes_up_a_round"]


def test_a_folder_is_judged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment", "movielens", "--quick", "--figure", "3", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "read already" in capsys.readouterr().err


def test_table_3_adds_users_that_nobody_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["row"]: row for row in rows_printed(capsys, "--table", "3", "--out", str(tmp_path))}
    assert set(rows) > set(ROWS)
    assert rows["centralised STANDARD (UNSEEN)"]["paper_rmse"] == 3.80
    assert rows["centralised STANDARD (UNSEEN)"]["accuracy"] < 1.0
    assert rows["centralised STANDARD"]["rmse_spread"] is None


def test_figure_4_leaves_the_test_users_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_printed(capsys, "--figure", "4", "--out", str(tmp_path))
    assert [row["row"] for row in rows] == ROWS[4:]
    assert not (tmp_path / "choices.json").exists()
    assert (tmp_path / "figure-4.png").exists()


@pytest.mark.parametrize("asked", [[], ["--table", "2"], ["--figure", "1"], ["--table", "1", "--figure", "3"]])
def test_an_unknown_table_is_a_mistake(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "movielens", "--quick", *asked]) == 2
    assert "--table 1" in capsys.readouterr().err


def test_data_that_is_not_stated_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDRECON_DATA", raising=False)
    assert main(["experiment", "movielens", "--table", "1"]) == 2
    assert "FEDRECON_DATA" in capsys.readouterr().err


RATINGS = generate(users=100, items=60, seed=4)
SEEN_ROWS = tuple(row for row in TABLE_1 if row.judged is Judged.SEEN)
UNSEEN_ROWS = tuple(row for row in TABLE_1 if row.name in {"centralised RECON", "FedRecon SGD", "best"})


def run_of(training: Federated, judged: Judged, protocol: Protocol) -> Run:
    simulators = Simulators(protocol.items, compiled=False)
    return run_training(training, judged, opened_of(protocol), 0, simulators, lambda *_: None)


def choices_of(rows: tuple[Row, ...], ratings: Ratings, folder: Path) -> list[Any]:
    run_rows(rows, Setting(ratings, folder, seeds=1, quick=True, as_json=True))
    choices: list[Any] = json.loads((folder / "choices.json").read_text())["choices"]
    return choices


def turned(ratings: Ratings, where: np.ndarray) -> Ratings:
    """The same with other stars in some places."""
    return replace(ratings, ratings=np.where(where, 6.0 - ratings.ratings, ratings.ratings).astype(np.float32))


def newest_tenths(ratings: Ratings) -> np.ndarray:
    """Where a training user's newest tenth is, without the protocol's help: nobody here has more than 300 ratings."""
    newest = np.zeros(len(ratings), dtype=bool)
    by_user = ratings.by_user()
    for user in split_users(len(by_user)).train.tolist():
        own = by_user[user]
        newest[own[np.argsort(ratings.timestamps[own], kind="stable")][len(own) * 9 // 10 :]] = True
    return newest


def test_other_ratings_of_test_users_change_no_choice(tmp_path: Path) -> None:
    closed = np.isin(RATINGS.users, split_users(100).test)
    choices = choices_of(UNSEEN_ROWS, RATINGS, tmp_path / "one")
    assert choices == choices_of(UNSEEN_ROWS, turned(RATINGS, closed), tmp_path / "other")
    opened = choices_of(UNSEEN_ROWS, turned(RATINGS, ~closed), tmp_path / "open")
    assert all(one["parameters"] != other["parameters"] for one, other in zip(choices, opened, strict=True))


def test_other_newest_ratings_of_seen_users_change_no_choice(tmp_path: Path) -> None:
    newest = newest_tenths(RATINGS)
    assert newest.any()
    choices = choices_of(SEEN_ROWS, RATINGS, tmp_path / "one")
    assert choices == choices_of(SEEN_ROWS, turned(RATINGS, newest), tmp_path / "other")


def test_figures_are_those_computed_user_by_user(tmp_path: Path) -> None:
    protocol = open_protocol(RATINGS, tmp_path)
    training = Federated(
        factors=3, mean=3.5, bias=True, reconstruction=Ridge("rating"), cohort=20, rounds=6, evaluate_every=3
    )
    run = run_of(training, Judged.RECONSTRUCTED, protocol)
    vectors, biases = (run.global_parameters[name].double().numpy() for name in run.global_parameters)
    errors = []
    for client in protocol.validation:
        support, query = support_and_query(len(client["item"]))
        design = np.concatenate([vectors[client["item"]], np.ones((len(client["item"]), 1))], axis=1)
        target = client["rating"] - 3.5 - biases[client["item"], 0]
        normal = design[support].T @ design[support] + 5.0 * np.eye(4)
        own = np.linalg.solve(normal, design[support].T @ target[support])
        errors.append(design[query] @ own - target[query])
    pooled = np.concatenate(errors)
    figures = judge(run, Judged.RECONSTRUCTED, part_of(protocol.validation, protocol.seen.validation), 0)
    assert figures.rmse == pytest.approx(np.sqrt(np.square(pooled).mean()), abs=1e-5)
    assert figures.accuracy == pytest.approx(100.0 * (np.abs(pooled) <= 0.5).mean(), abs=0.5)
    assert figures == next(point.figures for point in run.curve if point.round == run.best)


def test_seen_users_are_judged_by_their_own_vectors(tmp_path: Path) -> None:
    protocol = open_protocol(RATINGS, tmp_path)
    training = Federated(factors=3, stateful=True, joint_rate=0.5, cohort=20, rounds=6, evaluate_every=3)
    run = run_of(training, Judged.SEEN, protocol)
    vectors, users = run.global_parameters["item_vectors.weight"], run.local_parameters["user_vector"]
    assert users.shape == (80, 3)
    errors = [
        vectors[torch.from_numpy(client["item"])] @ user - torch.from_numpy(client["rating"])
        for client, user in zip(protocol.seen.validation, users, strict=True)
    ]
    figures = judge(run, Judged.SEEN, part_of(protocol.validation, protocol.seen.validation), 0)
    assert figures.rmse == pytest.approx(float(torch.cat(errors).square().mean().sqrt()), abs=1e-5)
