"""The image classifier on a device is the one in torch, and its personal embedding is worth having."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.device_sdk.bench import prepare
from fedrecon.device_sdk.plans import read_checkpoint
from fedrecon.device_sdk.runtime import Seeds, score
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.image_classifier import IMAGE, LABEL, image_classifier
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.planning.graphs import compile_graphs
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.verification import verify
from fedrecon.learning.rounds_in_process import Client, RunnablePlan, open_plan
from fedrecon.learning.simulation import ClientExamples, Simulator, Training, evaluate, train
from fedrecon.v1.task_pb2 import (
    OPTIMIZER_RULE_ADAM,
    SPLIT_RULE_ALTERNATE_BATCHES,
    SPLIT_RULE_ALTERNATE_EXAMPLES,
    LocalWork,
    ServerOptimizer,
)
from support.torch_clients import compare_with_torch

CLASSES, SHAPE = 4, (1, 8, 8)
Columns = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Compiled:
    """The model in torch, and its plan as a device holds it."""

    model: FederatedModel
    runnable: RunnablePlan


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = image_classifier(CLASSES, SHAPE, filters=2, embedding=3, hidden=6, seed=1)
    with torch.no_grad():
        model.parameters["default"].copy_(torch.tensor([0.3, -0.2, 0.1]))
    folder = tmp_path_factory.mktemp("images") / "plan"
    compile_plan(model, {}, Ed25519PrivateKey.generate(), folder)
    return Compiled(model, open_plan(folder))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors here are too small to share: on a busy machine, threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(examples: int, seed: int, *, swapped: bool = False) -> Columns:
    """Returns images of four shapes with noise; some people call the first two each other's names."""
    source = np.random.default_rng(seed)
    shapes = np.random.default_rng(0).random((CLASSES, *SHAPE))
    labels = source.integers(0, CLASSES, examples)
    images = np.clip(shapes[labels] + 0.2 * source.standard_normal((examples, *SHAPE)), 0, 1).astype(np.float32)
    return {IMAGE: images, LABEL: np.where(labels < 2, 1 - labels, labels) if swapped else labels}


@pytest.mark.parametrize("examples", [13, 60])
def test_a_device_computes_what_torch_computes(compiled: Compiled, examples: int) -> None:
    client = Client(draw(examples, examples), Seeds(*(bytes([each]) * 32 for each in (1, 2, 3))))
    work = LocalWork(split=SPLIT_RULE_ALTERNATE_BATCHES)
    compared = compare_with_torch(compiled, compiled.runnable.initial_checkpoint, client, work)
    assert compared.local_difference < 1e-5
    assert compared.update_difference < 1e-5
    assert all(update.any() for update in compared.updates.values())


def test_a_device_scores_every_class(compiled: Compiled) -> None:
    plan = compiled.runnable.plan
    parameters = read_checkpoint(compiled.runnable.initial_checkpoint, plan.manifest)
    columns = draw(5, 2)
    personal = np.array([0.5, 0.0, -0.5], dtype=np.float32)
    bench = prepare(plan, parameters, columns, LocalWork())
    found = score(plan, bench.parameters, {"personal": personal}, {IMAGE: columns[IMAGE]})
    given = {**compiled.model.global_parameters, "personal": torch.from_numpy(personal)}
    expected = compiled.model.predict(given, {IMAGE: torch.from_numpy(np.asarray(columns[IMAGE]))})
    assert found.shape == (5, CLASSES)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_graphs_of_full_size_agree_with_torch() -> None:
    model = image_classifier()
    inspect(model)
    assert verify(model, compile_graphs(model), seed=0)[1] < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_reconstructed_embedding_tells_apart_what_one_model_for_all_cannot() -> None:
    """Half of the people swap two names: without reconstruction, half of those images cannot be told."""
    model = image_classifier(CLASSES, SHAPE, 4, 8, 32, reconstruct_rate=0.5, update_rate=0.1)
    people = ClientExamples.from_clients([draw(24, seed, swapped=seed % 2 == 1) for seed in range(100, 140)])
    unseen = ClientExamples.from_clients([draw(24, seed, swapped=seed % 2 == 1) for seed in range(200, 220)])
    simulator = Simulator(model, LocalWork(split=SPLIT_RULE_ALTERNATE_EXAMPLES), compiled=False)
    server = ServerOptimizer(rule=OPTIMIZER_RULE_ADAM, rate=0.03, momentum=0.9, second_momentum=0.99, adaptivity=1e-3)
    trained = train(simulator, people, Training(server, cohort_size=10, rounds=120)).global_parameters
    still = LocalWork(split=SPLIT_RULE_ALTERNATE_EXAMPLES, hyperparameters={"reconstruct.rate": 0.0})
    assert trained["default"].any()
    assert evaluate(simulator, trained, unseen).mean("right") > 0.9
    assert evaluate(Simulator(model, still, compiled=False), trained, unseen).mean("right") < 0.8
