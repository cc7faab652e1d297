"""The file that is served is as good as the learning room says of the same parameters, on users never seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedrecon.datasets import generate
from fedrecon.device_sdk.plans import read_checkpoint
from fedrecon.inference.bundles import read_bundle
from fedrecon.inference.judging import judge_users, raters_of
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.verifying import export_proved
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.learning.simulation.evaluation import measure
from fedrecon.ops.plan_folders import blob_file
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES, LocalWork
from fedrecon.wire import manifests
from fedrecon.wire.tensors import write_safetensors
from fedrecon.wire.vocabularies import read_vocabulary
from support.compiled_films import compile_films

ROWS, FACTORS, USERS = 40, 4, 30
KEYS = [f"film {row}" for row in range(ROWS)]


def test_the_files_error_is_that_of_the_learning_room(tmp_path: Path) -> None:
    films = compile_films("gradient", KEYS, FACTORS, tmp_path / "films")
    plan = films.runnable.plan
    source = np.random.default_rng(8)
    checkpoint = {
        name: value + 0.1 * source.standard_normal(value.shape, dtype=np.float32)
        for name, value in read_checkpoint(films.runnable.initial_checkpoint, plan.manifest).items()
    }

    def fetch(blob: BlobReference) -> bytes:
        return blob_file(films.folder, blob.digest).read_bytes()

    bundle = read_bundle((films.folder / "manifest.json").read_bytes(), fetch)
    items = fetch(bundle.vocabulary({}))
    exported = export_proved(bundle, write_safetensors(checkpoint), items, "films", 1, LocalWork())
    raters = raters_of(generate(users=USERS, items=ROWS, seed=6), np.arange(USERS))
    raters = [type(each)(tuple(f"film {int(key) - 1}" for key in each.keys), each.ratings) for each in raters]
    judged = judge_users(OpenRecommender.open(exported.recommender, read_vocabulary(items)), raters)

    simulator = Simulator(films.model, LocalWork(split=SPLIT_RULE_ALTERNATE_BATCHES))
    rows = {key: row for row, key in enumerate(KEYS)}
    clients = ClientExamples.from_clients(
        [
            {"item": np.array([rows[key] for key in each.keys]), "rating": each.ratings.astype(np.float32)}
            for each in raters
        ]
    )
    parameters = {name: torch.from_numpy(value) for name, value in checkpoint.items()}
    support, query = simulator.halves(clients, np.arange(USERS), np.random.default_rng(0))
    first = manifests.initial_locals(plan.manifest, checkpoint, bytes(32))
    starts = {name: torch.from_numpy(np.stack([value] * USERS)) for name, value in first.items()}
    found = simulator.reconstruct(parameters, starts, clients, support)
    learned = measure(simulator, parameters, found, clients, query)

    assert judged.squares is not None
    assert judged.counts.sum() == query.counts.sum()
    served = math.sqrt(judged.squares.sum() / judged.counts.sum())
    assert served == pytest.approx(math.sqrt(learned.mean("squared_error")), abs=1e-4)
    assert judged.squares == pytest.approx(learned.sums["squared_error"], rel=1e-3)
