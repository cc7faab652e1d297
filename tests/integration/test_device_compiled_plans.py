"""The device runs what the compiler makes: equal to torch for training, equal to the exported file for serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.device_sdk.columns import map_examples, rule_of
from fedrecon.device_sdk.material import Material
from fedrecon.device_sdk.plans import Plan, load_plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.recommender import Recommender
from fedrecon.device_sdk.runtime import Seeds, train
from fedrecon.device_sdk.serving import predict_from, recommend_from, reconstruct_from
from fedrecon.inference.bundles import read_bundle as read_inference_bundle
from fedrecon.inference.exporting import Origin, export
from fedrecon.inference.linear_forms import find_linear_form
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.planning import compile_plan, read_bundle
from fedrecon.learning.reconstruction import Ridge
from fedrecon.learning.reference import Steps, client_update
from fedrecon.v1 import plan_pb2, task_pb2
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import manifests, schedules
from fedrecon.wire.vocabularies import read_vocabulary

ROWS = 31
KEYS = [f"film-{row}" for row in range(ROWS)]
SEEDS = Seeds(bytes([3]) * 32, bytes([4]) * 32, bytes([5]) * 32)
MODELS: dict[str, Callable[[], FederatedModel]] = {
    "gradient": lambda: matrix_factorization(ROWS, 6, mean=3.5, bias=True),
    "ridge": lambda: matrix_factorization(ROWS, 6, mean=3.5, bias=True, reconstruction=Ridge("rating")),
    "network": personal_network,
}


class Compiled:
    """A model, and its plan as a device holds it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model: FederatedModel = MODELS[name]()
        vocabulary = plan_pb2.Vocabulary(name=ITEMS, version=1, keys=KEYS, titles=[key.title() for key in KEYS])
        named = {ITEMS: vocabulary} if self.model.vocabularies else {}
        self.path = compile_plan(self.model, named, Ed25519PrivateKey.generate(), folder / "plan").path
        self.blobs = dict(read_bundle(self.path).blobs)
        self.plan: Plan = load_plan((self.path / "manifest.json").read_bytes(), self.blobs.__getitem__)
        manifest = self.plan.manifest
        self.checkpoint = read_checkpoint(self.blobs[manifest.initial_checkpoint.digest], manifest)
        self.items = {name: read_vocabulary(self.blobs[blob.digest]) for name, blob in manifest.vocabularies.items()}

    def examples(self, count: int) -> dict[str, NDArray[Any]]:
        """Returns columns of random examples, with repeated items."""
        source = np.random.default_rng(count)
        if self.model.vocabularies:
            keys = np.array([KEYS[row] for row in source.integers(0, ROWS, count)], dtype=np.str_)
            return {"item": keys, "rating": source.integers(1, 11, count) / 2}
        return {"features": source.normal(size=(count, 8)), "target": source.normal(size=count)}

    def mapped(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rules = [rule_of(field) for field in self.plan.manifest.fields]
        return map_examples(rules, columns, self.items, rows_in_force(self.plan.manifest, self.checkpoint)).columns


# Compiling the network takes seconds and shows nothing more of ranking: fields of several numbers, a learned default.
ranking = ["gradient", "ridge"]
everything = [*ranking, pytest.param("network", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("count", [6, 23])
@pytest.mark.parametrize("compiled", everything, indirect=True)
def test_a_device_trains_as_torch_does(compiled: Compiled, count: int) -> None:
    columns, manifest = compiled.mapped(compiled.examples(count)), compiled.plan.manifest
    work = LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES)
    result = train(compiled.plan, compiled.checkpoint, columns, work, SEEDS)

    support, query = np.arange(0, count, 2), np.arange(1, count, 2)
    schedule = manifest.reconstruct_schedule if manifest.HasField("reconstruct_schedule") else manifest.update_schedule
    steps = {
        name: Steps(*(torch.from_numpy(array) for array in schedules.order(positions, which)))
        for name, positions, which in [("support", support, schedule), ("query", query, manifest.update_schedule)]
    }
    lengths = {"reconstruct.rate": len(steps["support"].order), "update.rate": len(steps["query"].order)}
    numbers = {
        name: torch.full((lengths[name],), each.default_value) if each.per_step else torch.tensor(each.default_value)
        for name, each in manifest.hyperparameters.items()
    }
    initial = manifests.initial_locals(manifest, compiled.checkpoint, SEEDS.initial)
    expected = client_update(
        compiled.model,
        {name: torch.from_numpy(np.array(value)) for name, value in compiled.checkpoint.items()},
        {name: torch.from_numpy(value) for name, value in initial.items()},
        {name: torch.from_numpy(value) for name, value in columns.items()},
        steps["support"],
        steps["query"],
        {name: number.float() for name, number in numbers.items()},
    )
    for name, local in expected.local_parameters.items():
        np.testing.assert_allclose(result.local_parameters[name], local.numpy(), atol=1e-5, rtol=1e-4)
    assert result.updates.keys() == expected.updates.keys()
    for name, update in expected.updates.items():
        dense = np.zeros(compiled.checkpoint[name].shape, dtype=np.float32)
        told = result.updates[name]
        dense[slice(None) if told.rows is None else told.rows] = told.values
        np.testing.assert_allclose(dense, update.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("compiled", everything, indirect=True)
def test_a_device_without_examples_keeps_its_initial_local_parameters(compiled: Compiled) -> None:
    material = Material(compiled.plan, compiled.checkpoint, compiled.items)
    local = reconstruct_from(material, {}, LocalWork())
    initial = manifests.initial_locals(compiled.plan.manifest, compiled.checkpoint, bytes(32))
    for name, value in initial.items():
        np.testing.assert_array_equal(local[name], value)


@pytest.mark.parametrize("count", [0, 1, 17])
@pytest.mark.parametrize("compiled", ranking, indirect=True)
def test_the_exported_file_recommends_what_the_plan_does(compiled: Compiled, count: int) -> None:
    manifest = compiled.plan.manifest
    vocabulary = manifest.vocabularies[ITEMS]
    bundle = read_inference_bundle(
        (compiled.path / "manifest.json").read_bytes(), lambda blob: compiled.blobs[blob.digest]
    )
    origin = Origin("films", 0, manifest.initial_checkpoint.digest, vocabulary.digest)
    items = compiled.items[ITEMS]
    form = find_linear_form(bundle, compiled.checkpoint, len(items.keys), LocalWork())
    assert form is not None
    file = export(bundle, compiled.checkpoint, items, origin, LocalWork(), form)
    recommender = Recommender(file, compiled.blobs[vocabulary.digest])
    columns = compiled.examples(count) if count else {}
    found = recommender.recommend(columns, 5, exclude=["film-3"])
    material = Material(compiled.plan, compiled.checkpoint, compiled.items)
    local = reconstruct_from(material, columns, LocalWork())
    expected = recommend_from(material, local, columns, 5, ["film-3"], exclude_seen=True)
    assert [each.key for each in found] == [each.key for each in expected]
    np.testing.assert_allclose([each.score for each in found], [each.score for each in expected], atol=1e-5)
    candidates = {"item": ["film-3", "film-0"]}
    scores = predict_from(material, local, candidates)
    np.testing.assert_allclose(recommender.predict(columns, candidates), scores, atol=1e-5)
    for name, value in local.items():
        np.testing.assert_allclose(recommender.reconstruct(columns)[name], value, atol=1e-5)
