"""The implicit-feedback model on a device: reconstruction with a background, whole tables, rankings, a round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.device_sdk.plans import read_checkpoint
from fedrecon.device_sdk.recommender import Recommender
from fedrecon.device_sdk.runtime import Seeds, reconstruct, score
from fedrecon.inference.bundles import read_bundle, read_items
from fedrecon.inference.exporting import Origin, export
from fedrecon.inference.linear_forms import find_linear_form
from fedrecon.inference.verifying import verify_export
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.implicit_feedback import ITEM_VECTORS, ITEMS, implicit_feedback
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.planning import read_bundle as read_plan
from fedrecon.learning.reference import solve_ridge
from fedrecon.learning.rounds_in_process import Client, RunnablePlan, open_plan, run_round
from fedrecon.ops.plan_folders import manifest_file
from fedrecon.ops.task_specs import build_spec
from fedrecon.v1.plan_pb2 import GRAPH_ROLE_TOUCH, Vocabulary
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_EXAMPLES, LocalWork
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors
from support.torch_clients import compare_with_torch

KEYS = [f"film {row}" for row in range(29)]
WORK = LocalWork(split=SPLIT_RULE_ALTERNATE_EXAMPLES)
NOTHING = bytes(32)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A model in torch, and its plan as a device and the inference service hold it."""

    model: FederatedModel
    folder: Path
    runnable: RunnablePlan


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = implicit_feedback(len(KEYS), 4, weight=8.0)
    with torch.no_grad():
        for value in model.parameters.values():
            value.copy_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    folder = tmp_path_factory.mktemp("films") / "plan"
    compile_plan(model, {ITEMS: Vocabulary(name=ITEMS, version=1, keys=KEYS)}, Ed25519PrivateKey.generate(), folder)
    return Compiled(model, folder, open_plan(folder))


def client_of(number: int, examples: int) -> Client:
    rows = np.random.default_rng(number).choice(len(KEYS), examples, replace=False)
    seeds = Seeds(*(bytes([number, each]) * 16 for each in (1, 2, 3)))
    return Client({"item": np.array([KEYS[row] for row in rows], dtype=object), "chosen": np.ones(examples)}, seeds)


@pytest.mark.parametrize("examples", [2, 9, 24])
def test_a_device_computes_what_torch_computes(compiled: Compiled, examples: int) -> None:
    compared = compare_with_torch(compiled, compiled.runnable.initial_checkpoint, client_of(examples, examples), WORK)
    assert compared.local_difference < 1e-5
    assert compared.update_difference < 1e-5
    assert compared.updates["default_user_vector"].any()


def test_every_item_vector_is_reported(compiled: Compiled) -> None:
    compared = compare_with_torch(compiled, compiled.runnable.initial_checkpoint, client_of(1, 6), WORK)
    told = compared.device.updates[ITEM_VECTORS]
    assert told.rows is None
    assert told.values.any(axis=1).all()
    assert not compiled.runnable.plan.runs(GRAPH_ROLE_TOUCH)


@pytest.mark.parametrize("examples", [0, 1, 12])
def test_a_device_scores_as_torch_scores(compiled: Compiled, examples: int) -> None:
    model, plan = compiled.model, compiled.runnable.plan
    checkpoint = read_checkpoint(compiled.runnable.initial_checkpoint, plan.manifest)
    rows = np.random.default_rng(examples).choice(len(KEYS), examples, replace=False)
    columns: dict[str, NDArray[Any]] = {"item": rows, "chosen": np.ones(examples, dtype=np.float32)}
    every = {"item": np.arange(len(KEYS))}
    own = reconstruct(plan, checkpoint, columns, WORK, NOTHING)
    found = score(plan, checkpoint, own, every)
    fields = {name: torch.from_numpy(column) for name, column in columns.items()}
    ridge = torch.tensor(model.hyperparameters["reconstruct.ridge"].default)
    start = model.at_default(model.global_parameters)
    exact = solve_ridge(model, model.global_parameters, start, fields, torch.ones(examples), ridge)
    expected = model.scores({**model.global_parameters, **exact}, {"item": torch.arange(len(KEYS))})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_recommender_ranks_for_users_with_and_without_choices(compiled: Compiled) -> None:
    stored = read_plan(compiled.folder)
    manifest = manifest_file(compiled.folder).read_bytes()
    served = read_bundle(manifest, lambda blob: stored.blobs[blob.digest])
    vocabulary = stored.blobs[served.manifest.vocabularies[ITEMS].digest]
    items = read_items(served, vocabulary)
    checkpoint = read_safetensors(compiled.runnable.initial_checkpoint)
    origin = Origin("films", 0, digest_of(compiled.runnable.initial_checkpoint), digest_of(vocabulary))
    form = find_linear_form(served, checkpoint, len(items.keys), WORK)
    assert form is not None
    assert form.background is not None
    content = export(served, checkpoint, items, origin, WORK, form)
    assert verify_export(content, served, checkpoint, items, WORK) <= 1e-5
    recommender = Recommender(content, items=vocabulary)
    default = checkpoint[ITEM_VECTORS] @ checkpoint["default_user_vector"]
    best = [each.key for each in recommender.recommend({"item": [], "chosen": []}, 5)]
    assert best == [KEYS[row] for row in np.argsort(-default)[:5]]
    columns: dict[str, NDArray[Any]] = {"item": np.arange(9), "chosen": np.ones(9, dtype=np.float32)}
    plan = compiled.runnable.plan
    scores = score(plan, checkpoint, reconstruct(plan, checkpoint, columns, WORK, NOTHING), {"item": np.arange(29)})
    found = recommender.recommend({"item": np.array(KEYS[:9], dtype=object), "chosen": np.ones(9)}, 20)
    assert [each.key for each in found] == [KEYS[row] for row in 9 + np.argsort(-scores[9:])]
    assert [each.score for each in found] == pytest.approx(np.sort(scores[9:])[::-1], abs=1e-5)


def test_a_round_of_devices_moves_the_whole_table(compiled: Compiled) -> None:
    start = compiled.runnable.initial_checkpoint
    spec = build_spec("films", None, ["work.split=ALTERNATE_EXAMPLES", "work.minimum_examples=4"])
    made = run_round(compiled.runnable, start, None, spec, [client_of(each, 8) for each in range(5)], round_number=1)
    before, after = read_safetensors(start), read_safetensors(made.checkpoint)
    assert (after[ITEM_VECTORS] != before[ITEM_VECTORS]).any(axis=1).all()
    assert (after["default_user_vector"] != before["default_user_vector"]).all()
