"""How good the exported file is for users never seen: as good as the learning room says, and a real recommender.

Two models are trained by simulated rounds, exported to the file that is served, and the file is judged on all test
users of the fixed protocol: its error in stars beside the learning room's own evaluation of the same parameters, and
its ten best beside popularity and item neighbours, which have all choices in one place. The test users are read once,
after everything is trained.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.benchmarks.measures import Measure
from fedrecon.datasets import Ratings, generate
from fedrecon.inference.bundles import read_bundle
from fedrecon.inference.judging import Judged, Rater, judge_users
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.verifying import export_proved
from fedrecon.learning.experiments.movielens_models import Simulators
from fedrecon.learning.experiments.movielens_rows import BEST, Federated
from fedrecon.learning.experiments.movielens_rows import Judged as How
from fedrecon.learning.experiments.movielens_runs import judge as judge_run
from fedrecon.learning.experiments.movielens_runs import opened_of, part_of, run_training
from fedrecon.learning.experiments.protocol import ITEM, RATING, Choice, Clients, digest_of, open_protocol
from fedrecon.learning.experiments.ranking_models import (
    FederatedChoices,
    Neighbours,
    Popularity,
    Ranker,
    train_ranker,
    users_of,
)
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.implicit_feedback import implicit_feedback
from fedrecon.learning.models.matrix_factorization import ITEMS
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.ranking import judge_ranking
from fedrecon.ops.rating_files import load_ratings
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Vocabulary
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.tensors import write_safetensors
from fedrecon.wire.vocabularies import read_vocabulary

SAME_RMSE = 1e-4
LEAST_SHARE_OF_NEIGHBOURS = 0.95


@dataclass(frozen=True, slots=True)
class Recipes:
    """What is trained.

    Attributes:
        ratings: the model that predicts stars.
        choices: the default recommender.
        neighbours: the baseline to reach.
    """

    ratings: Federated
    choices: FederatedChoices
    neighbours: Neighbours


FULL = Recipes(replace(BEST, members=1, clamped=False), FederatedChoices(), Neighbours())
SMALL = Recipes(
    replace(BEST, members=1, clamped=False, factors=4, rounds=20, cohort=20, evaluate_every=10),
    FederatedChoices(factors=8, cohort=20, rounds=20),
    Neighbours(count=20),
)
"""Seconds instead of minutes: the file still has to say what the learning room says."""


def measure_quality(data: Path | None) -> list[Measure]:
    """Measure the quality of exported files on MovieLens, or on made-up ratings with small models.

    Args:
        data: Folder of MovieLens 1M, or the one that holds `ml-1m`; None: ratings are made up.
    """
    if data is None:
        return measure_recipes(generate(users=150, items=100, seed=3), SMALL)
    inside = data / "ml-1m"
    return measure_recipes(load_ratings(inside if inside.is_dir() else data), FULL)


def measure_recipes(ratings: Ratings, recipes: Recipes) -> list[Measure]:
    """Train, export, judge.

    Args:
        ratings: The whole data set.
        recipes: What is trained.
    """
    # Small tensors: a second thread costs more than it brings.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedrecon-quality-") as folder:
        protocol = open_protocol(ratings, Path(folder))
        opened = opened_of(protocol)
        run = run_training(
            recipes.ratings, How.RECONSTRUCTED, opened, 0, Simulators(protocol.items, compiled=False), _silent
        )
        rankers = {
            type(recipe).__name__: train_ranker(recipe, protocol, 0)
            for recipe in (Popularity(), recipes.neighbours, recipes.choices)
        }
        ours = rankers[FederatedChoices.__name__]
        chosen = recipes.choices
        model = implicit_feedback(protocol.items, chosen.factors, weight=chosen.weight, ridge=chosen.ridge)
        files = {
            "ratings": _export(run.simulator.model, run.global_parameters, protocol.items, run.simulator.work),
            "choices": _export(model, ours.parameters, protocol.items, LocalWork()),
        }
        found = {"rmse": run.curve[-1].figures.rmse}
        frozen = [Choice("ratings", 0, _words(recipes.ratings), found, digest_of(run.parameters))]
        frozen += [
            Choice(name, 0, {"recipe": name}, {"users": len(protocol.validation)}, digest_of(each.parameters))
            for name, each in rankers.items()
        ]
        test = protocol.test(frozen)
        learned = judge_run(run, How.RECONSTRUCTED, part_of(test.unseen, test.seen), 0).rmse
    raters = _raters(test.unseen)
    served = judge_users(files["ratings"], raters)
    listed = judge_users(files["choices"], raters)
    baselines = {name: _rank(each, test.unseen, protocol.items) for name, each in rankers.items()}
    return _measures(len(raters), learned, _rmse(served), listed, baselines)


def _measures(
    users: int, learned: float, served: float, listed: Judged, baselines: Mapping[str, tuple[float, float]]
) -> list[Measure]:
    recall, ndcg = float(np.nanmean(listed.recall)), float(np.nanmean(listed.ndcg))
    popular, neighbours = baselines[Popularity.__name__], baselines[Neighbours.__name__]
    in_torch = baselines[FederatedChoices.__name__]
    shown = np.unique(listed.listed[listed.listed >= 0]).size / listed.items
    return [
        Measure("unseen_users", users, "users"),
        Measure("file_rmse", served, "stars"),
        Measure("learning_rmse", learned, "stars"),
        Measure("rmse_difference", abs(served - learned), "stars", SAME_RMSE),
        Measure("recall_at_10", recall, "share", popular[0], "at least"),
        Measure("ndcg_at_10", ndcg, "share", popular[1], "at least"),
        Measure("coverage_at_10", shown, "share"),
        Measure("learning_recall_at_10", in_torch[0], "share"),
        Measure("popularity_recall_at_10", popular[0], "share"),
        Measure("popularity_ndcg_at_10", popular[1], "share"),
        Measure("neighbours_recall_at_10", neighbours[0], "share"),
        Measure("neighbours_ndcg_at_10", neighbours[1], "share"),
        Measure("recall_of_neighbours", recall / neighbours[0], "ratio", LEAST_SHARE_OF_NEIGHBOURS, "at least"),
    ]


def _export(model: FederatedModel, parameters: Mapping[str, Any], items: int, work: LocalWork) -> OpenRecommender:
    """Return the recommender of trained parameters, proved equal to its plan and opened as the service opens it."""
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=[str(row) for row in range(items)])
    with tempfile.TemporaryDirectory(prefix="fedrecon-quality-plan-") as folder:
        plan = Path(folder) / "plan"
        compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), plan)
        blobs = {path.name: path.read_bytes() for path in (plan / "blobs").iterdir()}

        def fetch(blob: BlobReference) -> bytes:
            return blobs[blob.digest.hex()]

        bundle = read_bundle((plan / "manifest.json").read_bytes(), fetch)
    checkpoint = write_safetensors({name: np.asarray(value) for name, value in parameters.items()})
    stored = fetch(bundle.vocabulary({}))
    exported = export_proved(bundle, checkpoint, stored, "quality", 0, work)
    return OpenRecommender.open(exported.recommender, read_vocabulary(stored))


def _raters(clients: Clients) -> list[Rater]:
    return [Rater([str(row) for row in each[ITEM].tolist()], each[RATING].astype(np.float64)) for each in clients]


def _rank(ranker: Ranker, clients: Clients, items: int) -> tuple[float, float]:
    """Return recall@10 and NDCG@10 of a ranker of the learning room."""
    users = users_of(clients, items)
    ranked = judge_ranking(ranker.score(users), users.known, users.wanted)
    return float(ranked.recall.mean()), float(ranked.ndcg.mean())


def _rmse(judged: Judged) -> float:
    assert judged.squares is not None  # noqa: S101 - the model predicts stars
    return math.sqrt(judged.squares.sum() / judged.counts.sum())


def _words(recipe: Federated) -> dict[str, Any]:
    return {name: str(value) for name, value in asdict(recipe).items()}


def _silent(done: int, most: int, said: str) -> None:
    """Takes the progress of a run."""
    del done, most, said
