"""Many clients at once equal a loop over single clients, for every model, optimizer and way of working."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import Adagrad, Adam, Sgd
from fedrecon.learning.model import FederatedModel, FromGlobal
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Ridge
from fedrecon.learning.reference import Steps, client_update
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import schedules

ITEMS, FACTORS = 40, 4
generator = np.random.default_rng(5)


def rating_clients(clients: int = 9, *, again: bool = False) -> ClientExamples:
    """Ragged clients: one without examples, one with a single one."""
    counts = [0, 1, *generator.integers(2, 30, clients - 2)]
    return ClientExamples.from_clients(
        [
            {
                "item": generator.choice(ITEMS, count, replace=again).astype(np.int64),
                "rating": generator.integers(1, 6, count).astype(np.float32),
            }
            for count in counts
        ]
    )


def feature_clients(clients: int = 7) -> ClientExamples:
    counts = generator.integers(3, 25, clients)
    return ClientExamples.from_clients(
        [
            {
                "features": generator.standard_normal((count, 8)).astype(np.float32),
                "target": generator.standard_normal(count).astype(np.float32),
            }
            for count in counts
        ]
    )


def work(split: task_pb2.SplitRule.ValueType = task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, **changes: int) -> LocalWork:
    return LocalWork(
        split=split,
        support_fraction=0.5,
        reconstruct_schedule=Schedule(batch_size=3, epochs=changes.get("epochs", 2), maximum_steps=7),
        update_schedule=Schedule(batch_size=3, epochs=changes.get("update_epochs", 1), maximum_steps=6),
    )


def compare(model: FederatedModel, clients: ClientExamples, how: LocalWork, *, compiled: bool = False) -> None:
    simulator = Simulator(model, how, compiled=compiled)
    starts = simulator.initial_locals(model.global_parameters, len(clients), np.random.default_rng(1))
    cohort = np.arange(len(clients))[::-1].copy()
    own = {name: value[torch.from_numpy(cohort)] for name, value in starts.items()}
    found = simulator.run(model.global_parameters, clients, cohort, 1, np.random.default_rng(2), own)
    sums: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in model.global_parameters.items()}
    weight = with_query = 0
    for number in range(len(clients)):
        fields = clients.select([number]).fields
        count = int(clients.counts[number])
        support, query = schedules.split(count, how.split, batch_size=3, support_fraction=how.support_fraction)
        laid_out = [
            Steps(*map(torch.from_numpy, schedules.order(half, schedule)))
            for half, schedule in ((support, simulator.reconstruct_schedule), (query, how.update_schedule))
        ]
        numbers = {
            name: torch.full((len(laid_out[not name.startswith("reconstruct")].order),), each.default)
            if name.endswith("rate")
            else torch.tensor(each.default)
            for name, each in model.hyperparameters.items()
        }
        initial = {name: value[number] for name, value in starts.items()}
        expected = client_update(model, model.global_parameters, initial, fields, laid_out[0], laid_out[1], numbers)
        place = len(clients) - 1 - number
        for name, value in expected.local_parameters.items():
            assert torch.allclose(found.local_parameters[name][place], value, atol=1e-5, rtol=1e-5), name
        for name, value in expected.updates.items():
            sums[name] += len(query) * value
        weight += len(query)
        with_query += len(query) > 0
    assert found.weight == weight
    assert found.clients == with_query
    assert found.dropped == 0
    for name, value in sums.items():
        assert value.abs().max() > 0, f"{name} does not move: the comparison says nothing"
        assert torch.allclose(found.updates[name], value, atol=1e-5 * weight, rtol=1e-5), name


rate = Hyperparameter(0.05, 0.0, 1.0)

RATING_MODELS = {
    "plain": matrix_factorization(ITEMS, FACTORS, seed=3),
    "biases": matrix_factorization(ITEMS, FACTORS, mean=3.5, bias=True, seed=3),
    "ridge": matrix_factorization(ITEMS, FACTORS, mean=3.5, bias=True, reconstruction=Ridge("rating"), seed=3),
    "momentum": matrix_factorization(
        ITEMS, FACTORS, mean=3.0, reconstruction=GradientSteps(rate, optimizer=Sgd(momentum=0.8)), seed=3
    ),
    "adagrad": matrix_factorization(
        ITEMS, FACTORS, mean=3.0, reconstruction=GradientSteps(rate, optimizer=Adagrad(0.1)), seed=3
    ),
    "adam": matrix_factorization(
        ITEMS, FACTORS, mean=3.0, reconstruction=GradientSteps(rate, optimizer=Adam()), seed=3
    ),
}


def changed(model: FederatedModel, **changes: object) -> FederatedModel:
    from dataclasses import replace

    return replace(model, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RATING_MODELS)
def test_a_cohort_equals_its_clients_one_by_one(name: str) -> None:
    compare(RATING_MODELS[name], rating_clients(), work())


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Adagrad(0.1), Adam()], ids=str)
def test_update_optimizers_move_all_touched_rows(optimizer: Sgd | Adagrad | Adam) -> None:
    compare(changed(RATING_MODELS["biases"], update_optimizer=optimizer), rating_clients(), work(update_epochs=3))


def test_items_that_come_twice_are_stepped_in_turn() -> None:
    compare(RATING_MODELS["plain"], rating_clients(again=True), work())


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("name", ["plain", "biases", "ridge", "adam"])
def test_joint_training_moves_both(name: str, epochs: int) -> None:
    compare(changed(RATING_MODELS[name], joint_rate=rate), rating_clients(), work(update_epochs=epochs))


@pytest.mark.parametrize(
    "rule", [task_pb2.SPLIT_RULE_NONE, task_pb2.SPLIT_RULE_BY_TIME, task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES]
)
def test_every_split_is_that_of_a_device(rule: task_pb2.SplitRule.ValueType) -> None:
    compare(RATING_MODELS["biases"], rating_clients(), work(rule))


@pytest.mark.parametrize("optimizer", [Sgd(), Adam()], ids=str)
def test_dense_parameters_are_each_clients_own(optimizer: Sgd | Adam) -> None:
    compare(changed(personal_network(), update_optimizer=optimizer), feature_clients(), work())


def test_a_learned_default_follows_the_loss_at_the_default() -> None:
    model = personal_network()
    compare(changed(model, local={"personal": FromGlobal("default")}), feature_clients(), work())


@pytest.mark.parametrize("name", ["plain", pytest.param("adam", marks=pytest.mark.slow)])
def test_compiled_and_eager_agree(name: str) -> None:
    compare(RATING_MODELS[name], rating_clients(), work(), compiled=True)
