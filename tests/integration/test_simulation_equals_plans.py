"""Many clients at once in torch equal devices that run the compiled plan in ONNX Runtime, one by one and summed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.coordinator.specs import work_of
from fedrecon.device_sdk.errors import TooFewExamplesError
from fedrecon.device_sdk.plans import read_checkpoint
from fedrecon.device_sdk.runtime import Seeds, TrainingResult, train
from fedrecon.learning.client_optimizers import Adagrad
from fedrecon.learning.model import FederatedModel, FromGlobal
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter
from fedrecon.learning.rounds_in_process import RunnablePlan, open_plan
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.learning.simulation.evaluation import measure
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule, Vocabulary
from fedrecon.v1.task_pb2 import LocalWork, TaskSpec
from fedrecon.wire import manifests
from support.compiled_films import RECONSTRUCTIONS, compile_films

Arrays = dict[str, NDArray[Any]]

TOLERANCE = 1e-5
ROWS, FACTORS = 40, 4
KEYS = [f"film {row}" for row in range(ROWS)]
COUNTS = (9, 1, 30, 2, 0, 17, 3, 6, 24)
RATE = Hyperparameter(0.05, 0.0, 0.1)


def declare_films(**changes: Any) -> FederatedModel:
    return replace(matrix_factorization(ROWS, FACTORS, mean=3.6, bias=True), **changes)


MODELS: dict[str, Callable[[], FederatedModel]] = {
    "no biases": lambda: matrix_factorization(ROWS, FACTORS),
    "joint training": lambda: declare_films(joint_rate=RATE),
    "adagrad": lambda: declare_films(
        reconstruction=GradientSteps(RATE, optimizer=Adagrad(0.1)), update_rate=RATE, update_optimizer=Adagrad(0.1)
    ),
    "network": personal_network,
    "learned default": lambda: replace(personal_network(), local={"personal": FromGlobal("default")}),
}


@dataclass(frozen=True, slots=True)
class Way:
    """What clients are told to do, and in which round."""

    work: LocalWork
    round_number: int = 1


WAYS = {
    "one pass": Way(
        LocalWork(
            split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES,
            reconstruct_schedule=Schedule(batch_size=3, epochs=3, maximum_steps=8),
            update_schedule=Schedule(batch_size=4, epochs=1),
        )
    ),
    "several passes, split by time": Way(
        LocalWork(
            split=task_pb2.SPLIT_RULE_BY_TIME,
            support_fraction=0.3,
            reconstruct_schedule=Schedule(batch_size=2, epochs=1),
            update_schedule=Schedule(batch_size=3, epochs=3, maximum_steps=7),
            hyperparameters={"update.rate": 0.08},
        )
    ),
    "no split, epochs that grow": Way(
        LocalWork(
            split=task_pb2.SPLIT_RULE_NONE,
            reconstruct_schedule=Schedule(batch_size=5, epochs=4, epochs_grow=True),
            update_schedule=Schedule(batch_size=5, epochs=2, epochs_grow=True),
        ),
        round_number=3,
    ),
    "the plan's own schedules": Way(LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES)),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A model, its plan, and a checkpoint in which no parameter is at its first value."""

    model: FederatedModel
    runnable: RunnablePlan
    checkpoint: Arrays

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.checkpoint.items()}

    def initial_locals(self, seeds: Seeds) -> Arrays:
        return manifests.initial_locals(self.runnable.plan.manifest, self.checkpoint, seeds.initial)


def compile_named(name: str, folder: Path) -> Planned:
    if name in RECONSTRUCTIONS:
        films = compile_films(name, KEYS, FACTORS, folder)
        model, runnable = films.model, films.runnable
    else:
        model = MODELS[name]()
        vocabularies = {ITEMS: Vocabulary(name=ITEMS, version=1, keys=KEYS, titles=KEYS)} if model.vocabularies else {}
        compile_plan(model, vocabularies, Ed25519PrivateKey.generate(), folder)
        runnable = open_plan(folder)
    source = np.random.default_rng(8)
    checkpoint = {
        key: value + 0.1 * source.standard_normal(value.shape, dtype=np.float32)
        for key, value in read_checkpoint(runnable.initial_checkpoint, runnable.plan.manifest).items()
    }
    return Planned(model, runnable, checkpoint)


# Compiling takes seconds; that simulation and plans each equal plain torch, other tests look at quickly.
@pytest.fixture(
    scope="module",
    params=["gradient", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ridge", *MODELS))],
)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return compile_named(request.param, tmp_path_factory.mktemp("plans") / "plan")


def columns_of(planned: Planned, count: int, *, again: bool) -> Arrays:
    """Returns a client's examples by field; whether a film may come twice."""
    source = np.random.default_rng(count)
    if planned.model.vocabularies:
        return {
            "item": source.choice(ROWS, count, replace=again).astype(np.int64),
            "rating": source.integers(1, 11, count).astype(np.float32) / 2,
        }
    return {
        "features": source.standard_normal((count, 8), dtype=np.float32),
        "target": source.standard_normal(count, dtype=np.float32),
    }


def seeds_of(client: int) -> Seeds:
    return Seeds(*(hashlib.sha256(f"{client} {name}".encode()).digest() for name in ("initial", "split", "rounding")))


@dataclass(frozen=True, slots=True)
class Town:
    """Clients for the simulation, and what their devices computed; nothing where one has too few examples."""

    planned: Planned
    way: Way
    clients: ClientExamples
    devices: list[TrainingResult | None]

    @property
    def simulator(self) -> Simulator:
        return Simulator(self.planned.model, self.way.work, compiled=False)

    def initial_locals(self, clients: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        drawn = [self.planned.initial_locals(seeds_of(int(client))) for client in clients]
        return {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}

    def updates(self, client: int) -> Arrays:
        """Returns a device's updates, of all rows."""
        found = {name: np.zeros_like(value) for name, value in self.planned.checkpoint.items()}
        device = self.devices[client]
        for name, update in ({} if device is None else device.updates).items():
            found[name][slice(None) if update.rows is None else update.rows] = update.values
        return found


def open_town(planned: Planned, way: Way, *, again: bool = False) -> Town:
    told = work_of(TaskSpec(work=way.work), way.round_number)
    columns = [columns_of(planned, count, again=again) for count in COUNTS]
    devices: list[TrainingResult | None] = []
    for client, own in enumerate(columns):
        try:
            devices.append(train(planned.runnable.plan, planned.checkpoint, own, told, seeds_of(client)))
        except TooFewExamplesError:
            devices.append(None)
    return Town(planned, way, ClientExamples.from_clients(columns), devices)


@pytest.fixture(params=WAYS)
def town(request: pytest.FixtureRequest, planned: Planned) -> Town:
    return open_town(planned, WAYS[request.param])


def assert_close(found: torch.Tensor, expected: NDArray[Any], what: str, weight: float = 1.0) -> None:
    assert found.shape == expected.shape, what
    difference = np.abs(found.numpy().astype(np.float64) - expected).max(initial=0.0)
    assert difference <= TOLERANCE * weight, f"{what}: {difference:g} apart"


def check_clients(town: Town) -> None:
    """Asserts that every client alone comes to what its device came to."""
    simulator, generator = town.simulator, np.random.default_rng(0)
    for client, device in enumerate(town.devices):
        alone = np.array([client])
        found = simulator.run(
            town.planned.tensors, town.clients, alone, town.way.round_number, generator, town.initial_locals(alone)
        )
        assert found.weight == (0 if device is None else device.examples)
        for name, expected in town.updates(client).items():
            assert_close(found.updates[name] / max(found.weight, 1.0), expected, f"{name} of client {client}")
        # Joint training moves local parameters on, but a device keeps those that it reconstructed.
        if device is not None and town.planned.model.joint_rate is None:
            for name, value in found.local_parameters.items():
                assert_close(value[0], device.local_parameters[name], f"{name} of client {client}")


def test_every_client_comes_to_what_its_device_comes_to(town: Town) -> None:
    check_clients(town)


def test_a_cohort_sums_what_its_devices_would_report(town: Town) -> None:
    cohort = np.random.default_rng(1).permutation(len(COUNTS))
    found = town.simulator.run(
        town.planned.tensors,
        town.clients,
        cohort,
        town.way.round_number,
        np.random.default_rng(0),
        town.initial_locals(cohort),
    )
    weights = [0 if device is None else device.examples for device in town.devices]
    assert found.weight == sum(weights)
    assert found.dropped == 0
    for name in town.planned.checkpoint:
        expected = sum(weight * town.updates(client)[name].astype(np.float64) for client, weight in enumerate(weights))
        assert np.abs(expected).max() > 1e-3 * found.weight, f"{name} hardly moves: the comparison says nothing"
        assert_close(found.updates[name], np.asarray(expected), name, found.weight)


def test_reconstruction_and_metrics_are_a_devices(planned: Planned) -> None:
    town = open_town(planned, WAYS["one pass"])
    simulator, everyone = town.simulator, np.arange(len(COUNTS))
    support, query = simulator.halves(town.clients, everyone, np.random.default_rng(0))
    own = simulator.reconstruct(planned.tensors, town.initial_locals(everyone), town.clients, support)
    measured = measure(simulator, planned.tensors, own, town.clients, query)
    names = [metric.name for metric in planned.runnable.plan.manifest.metrics]
    for client, device in enumerate(town.devices):
        if device is None:
            assert not measured.examples[client]
            continue
        for name, value in own.items():
            assert_close(value[client], device.local_parameters[name], f"{name} of client {client}")
        for name, expected in zip(names, device.metric_sums, strict=True):
            assert measured.sums[name][client] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("way", ["one pass", "several passes, split by time"])
def test_a_film_that_comes_twice_is_stepped_in_turn(planned: Planned, way: str) -> None:
    if not planned.model.vocabularies:
        pytest.skip("the model has no rows")
    check_clients(open_town(planned, WAYS[way], again=True))
