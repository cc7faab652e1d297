"""Weighted ridge over all rows: by its definition, in one client, in many at once, and in declarations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrecon.learning.background import Background
from fedrecon.learning.model import Constant, FederatedModel, Field, FromGlobal, Metric, ModelError, Role
from fedrecon.learning.models.implicit_feedback import ITEM_VECTORS, ITEMS, implicit_feedback, squared_error
from fedrecon.learning.models.matrix_factorization import MatrixFactorization
from fedrecon.learning.reconstruction import Hyperparameter, Ridge
from fedrecon.learning.reference import Steps, client_update, solve_ridge
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.wire import schedules

ROWS, FACTORS = 17, 3


def chosen_clients(generator: np.random.Generator, counts: list[int]) -> ClientExamples:
    return ClientExamples.from_clients(
        [
            {
                "item": generator.choice(ROWS, count, replace=False).astype(np.int64),
                "chosen": np.ones(count, dtype=np.float32),
            }
            for count in counts
        ]
    )


def chosen_model() -> FederatedModel:
    """The implicit-feedback model with a default that is not 0."""
    model = implicit_feedback(ROWS, FACTORS, weight=6.0, seed=2)
    with torch.no_grad():
        for value in model.parameters.values():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return model


def biased_model() -> FederatedModel:
    """Ratings as choices: two local parameters, of which the background knows one."""
    background = Background("item_vectors.weight", "user_vector", weight=4.0)
    return FederatedModel(
        name="biased",
        module=MatrixFactorization(ROWS, FACTORS, 0.1, bias=True, generator=torch.Generator().manual_seed(1)),
        local={"user_vector": Constant(0.5), "user_bias": Constant(0.0)},
        fields=(Field("item", dtype=torch.int64, vocabulary=ITEMS), Field("chosen", Role.TARGET)),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, 1.0)},
        bounds={"item_vectors.weight": 1.0, "item_biases.weight": 1.0},
        vocabularies={"item_vectors.weight": ITEMS, "item_biases.weight": ITEMS},
        reconstruction=Ridge("chosen", Hyperparameter(2.0, 1.0, 10.0), background=background),
    )


MODELS: dict[str, Callable[[], FederatedModel]] = {"chosen": chosen_model, "biased": biased_model}


def initial(model: FederatedModel) -> dict[str, Tensor]:
    return model.at_default(model.global_parameters)


def test_the_loss_is_the_mean_over_all_pairs_of_row_and_user() -> None:
    rows, local = torch.randn(5, 3), torch.randn(3)
    parameters = {"rows": rows, "local": local}
    expected = 2.5 * sum(float(row @ local) ** 2 for row in rows) / 5
    assert float(Background("rows", "local", 2.5).loss(parameters)) == pytest.approx(expected, rel=1e-5)


def test_the_precision_is_the_curvature_of_the_loss() -> None:
    rows, values = torch.randn(5, 3).double(), torch.randn(6).double()
    background = Background("rows", "local", 2.5)

    def loss(everything: Tensor) -> Tensor:
        return background.loss({"rows": rows, "local": everything[1:4]})

    curvature = torch.autograd.functional.hessian(loss, values)  # type: ignore[no-untyped-call]
    widths = {"before": 1, "local": 3, "after": 2}
    torch.testing.assert_close(2.0 * background.precision({"rows": rows}, widths), curvature)


def test_without_rows_there_is_no_background() -> None:
    parameters = {"rows": torch.zeros(0, 2), "local": torch.ones(2)}
    background = Background("rows", "local", 1.0)
    assert float(background.loss(parameters)) == 0.0
    assert not background.precision(parameters, {"local": 2}).any()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Background("rows", "local", weight)


@pytest.mark.parametrize("name", MODELS)
def test_reconstruction_minimises_the_losses_and_the_ridge(name: str) -> None:
    model = MODELS[name]()
    fields = chosen_clients(np.random.default_rng(0), [9]).fields
    used = torch.tensor([1.0, 1, 0, 1, 0, 0, 1, 1, 1])
    start = initial(model)
    found = solve_ridge(model, model.global_parameters, start, fields, used, torch.tensor(2.0))
    variables = {key: value.double().requires_grad_() for key, value in found.items()}
    parameters = {key: value.double() for key, value in model.global_parameters.items()} | variables
    losses = model.losses(parameters, fields)
    distance = torch.stack([(value - start[key]).square().sum() for key, value in variables.items()]).sum()
    gradients = torch.autograd.grad((losses * used).sum() + 2.0 * distance, list(variables.values()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-4
    assert any((found[key] - start[key]).abs().max() > 0.01 for key in found)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_many_clients_equal_their_clients_one_by_one(name: str, steps: int) -> None:
    model = MODELS[name]()
    clients = chosen_clients(np.random.default_rng(3), [0, 1, 8, 15, 11])
    work = task_pb2.LocalWork(
        split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES,
        update_schedule=Schedule(batch_size=4, epochs=1, maximum_steps=steps),
    )
    simulator = Simulator(model, work, compiled=False)
    total = simulator.run(model.global_parameters, clients, np.arange(5), 1, np.random.default_rng(0))
    sums = {key: torch.zeros_like(value) for key, value in model.global_parameters.items()}
    for number in range(len(clients)):
        halves = schedules.split(int(clients.counts[number]), work.split, batch_size=4)
        support, query = (Steps(*map(torch.from_numpy, schedules.order(half, work.update_schedule))) for half in halves)
        whole = Steps(torch.from_numpy(halves[0])[None], torch.ones(1, len(halves[0])))
        used = whole if len(halves[0]) else support
        rates = torch.full((len(query.order),), model.update_rate.default)
        numbers = {"update.rate": rates, "reconstruct.ridge": torch.tensor(simulator_ridge(model))}
        fields = clients.select([number]).fields
        expected = client_update(model, model.global_parameters, initial(model), fields, used, query, numbers)
        for key, value in expected.local_parameters.items():
            torch.testing.assert_close(total.local_parameters[key][number], value, atol=1e-5, rtol=1e-5)
        for key, value in expected.updates.items():
            sums[key] += len(halves[1]) * value
    for key, value in sums.items():
        assert value.any(), f"{key} does not move: the comparison says nothing"
        torch.testing.assert_close(total.updates[key], value, atol=1e-5, rtol=1e-5)


def test_a_client_that_is_not_finite_does_not_count() -> None:
    model = chosen_model()
    generator = np.random.default_rng(3)
    clients = chosen_clients(generator, [6, 8])
    clients.fields["chosen"][1] = torch.inf
    work = task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES)
    simulator = Simulator(model, work, compiled=False)
    total = simulator.run(model.global_parameters, clients, np.arange(2), 1, np.random.default_rng(0))
    alone = simulator.run(model.global_parameters, clients, np.array([1]), 1, np.random.default_rng(0))
    assert (total.clients, total.dropped, total.weight) == (1, 1, alone.weight)
    for key, value in alone.updates.items():
        torch.testing.assert_close(total.updates[key], value)


def simulator_ridge(model: FederatedModel) -> float:
    assert isinstance(model.reconstruction, Ridge)
    return model.reconstruction.ridge.default


def test_the_update_moves_items_that_nobody_chose() -> None:
    model = chosen_model()
    clients = chosen_clients(np.random.default_rng(3), [4])
    work = task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES)
    simulator = Simulator(model, work, compiled=False)
    total = simulator.run(model.global_parameters, clients, np.arange(1), 1, np.random.default_rng(0))
    assert total.updates[ITEM_VECTORS].any(dim=1).all()


def test_rows_of_a_background_are_needed_whole() -> None:
    assert not chosen_model().row_sparse
    assert not biased_model().row_sparse, "item biases share the vocabulary, so they cannot be renumbered"
    without = replace(biased_model(), reconstruction=Ridge("chosen"))
    assert without.row_sparse == without.vocabularies


@pytest.mark.parametrize(
    ("background", "reason"),
    [
        (Background("user_vector", "user_vector", 1.0), "no global parameter"),
        (Background(ITEM_VECTORS, "default_user_vector", 1.0), "no local parameter"),
        (Background("default_user_vector", "user_vector", 1.0), "rows and columns|multiplies"),
    ],
)
def test_a_background_that_cannot_be_multiplied_is_refused(background: Background, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        replace(chosen_model(), reconstruction=Ridge("chosen", background=background))


def test_a_user_without_examples_gets_the_learned_default() -> None:
    model = chosen_model()
    assert model.local == {"user_vector": FromGlobal("default_user_vector")}
    fields = chosen_clients(np.random.default_rng(0), [3]).fields
    found = solve_ridge(
        model, model.global_parameters, initial(model), fields, torch.zeros(3), torch.tensor(simulator_ridge(model))
    )
    torch.testing.assert_close(found["user_vector"], model.global_parameters["default_user_vector"])
