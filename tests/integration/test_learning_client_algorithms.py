"""What a client may do: every optimizer, joint training and learned defaults, in plans as in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from fedrecon.device_sdk.runtime import Seeds
from fedrecon.learning.client_optimizers import Adagrad, Adam, ClientOptimizer, Sgd
from fedrecon.learning.model import Constant, FederatedModel, Field, FromGlobal, Initial, Metric, Role, Tensors
from fedrecon.learning.models import matrix_factorization as films
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.planning import PlanError, compile_plan, graphs
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.verification import verify
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Ridge
from fedrecon.learning.rounds_in_process import Client, RunnablePlan, open_plan
from fedrecon.v1.plan_pb2 import GRAPH_ROLE_UPDATE, Vocabulary
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES, LocalWork
from support.torch_clients import compare_with_torch

ROWS = 23
RATE = Hyperparameter(0.05, 0.0, 0.1)

optimizers: dict[str, ClientOptimizer] = {
    "sgd": Sgd(),
    "momentum": Sgd(0.9),
    "adagrad": Adagrad(0.1, 1e-6),
    "adam": Adam(),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A model in torch, and its plan as a device holds it."""

    model: FederatedModel
    runnable: RunnablePlan


class Defaulted(films.MatrixFactorization):
    """Matrix factorisation with a usual user, from which the user vector starts."""

    def __init__(self) -> None:
        super().__init__(ROWS, 6, 3.5, bias=True, generator=torch.Generator().manual_seed(0))
        self.usual = nn.Parameter(torch.full((6,), 0.1))


def declare_films(*, learned: bool) -> FederatedModel:
    model = films.matrix_factorization(ROWS, 6, mean=3.5, bias=True)
    if not learned:
        return model
    local: dict[str, Initial] = {"user_vector": FromGlobal("usual"), "user_bias": Constant(0.0)}
    return replace(model, module=Defaulted(), local=local, bounds={**model.bounds, "usual": 0.5})


def declare_network(*, learned: bool) -> FederatedModel:
    model = personal_network()
    return replace(model, local={"personal": FromGlobal("default")}) if learned else model


models: dict[str, Callable[..., FederatedModel]] = {"films": declare_films, "network": declare_network}


def declare(name: str, reconstruction: str, update: str, *, joint: bool, learned: bool) -> FederatedModel:
    return replace(
        models[name](learned=learned),
        reconstruction=GradientSteps(rate=RATE, optimizer=optimizers[reconstruction]),
        update_rate=RATE,
        update_optimizer=optimizers[update],
        joint_rate=RATE if joint else None,
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A plan with state in both graphs, joint training and a learned default; its rows are sparse."""
    model = declare("films", "adagrad", "adam", joint=True, learned=True)
    keys = [f"film {row}" for row in range(ROWS)]
    folder = tmp_path_factory.mktemp("films") / "plan"
    vocabulary = Vocabulary(name=films.ITEMS, version=1, keys=keys, titles=keys)
    compile_plan(model, {films.ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder)
    return Compiled(model, open_plan(folder))


@pytest.mark.parametrize("examples", [6, 13, 40])
def test_a_device_computes_what_torch_computes(everything: Compiled, examples: int) -> None:
    source = np.random.default_rng(examples)
    keys = np.array([f"film {row}" for row in source.integers(0, ROWS, examples)], dtype=object)
    client = Client(
        {"item": keys, "rating": source.integers(1, 11, examples) / 2},
        Seeds(*(bytes([each]) * 32 for each in (1, 2, 3))),
    )
    work = LocalWork(split=SPLIT_RULE_ALTERNATE_BATCHES, hyperparameters={"update.local_rate": 0.08})
    compared = compare_with_torch(everything, everything.runnable.initial_checkpoint, client, work)
    assert compared.local_difference < 1e-5
    assert compared.update_difference < 1e-5
    assert all(compared.updates[name].any() for name in everything.model.global_parameters)


def test_a_task_may_set_the_rate_of_joint_training(everything: Compiled) -> None:
    limits = everything.runnable.plan.manifest.hyperparameters["update.local_rate"]
    assert (limits.default_value, limits.minimum, limits.maximum, limits.per_step) == (0.05, 0.0, 0.1, True)


def test_local_parameters_are_no_output_of_joint_training(everything: Compiled) -> None:
    manifest = everything.runnable.plan.manifest
    (graph,) = (each for each in manifest.graphs if each.role == GRAPH_ROLE_UPDATE)
    assert {value.name for value in graph.outputs} == {
        *(f"update.{name}" for name in everything.model.global_parameters),
        "losses",
    }


def test_ridge_brings_the_score_close_where_the_loss_wants_more_than_the_score() -> None:
    """The second column of the prediction is a penalty that the loss adds: its square is not linear."""
    model = declare_penalised()
    inspect(model)
    graph = graphs.reconstruct(model)
    assert verify(model, [graph], seed=0)[1] < 1e-5


class Penalised(films.MatrixFactorization):
    """Ratings, and the squares of what they are made of."""

    def __init__(self) -> None:
        super().__init__(ROWS, 6, 3.5, bias=False, generator=torch.Generator().manual_seed(0))

    def forward(self, item: Tensor) -> Tensor:
        squares = self.item_vectors(item).square().sum(-1) + self.user_vector.square().sum()
        return torch.stack([super().forward(item), squares], dim=1)


def declare_penalised() -> FederatedModel:
    def loss(prediction: Tensor, targets: Tensors) -> Tensor:
        return (prediction[:, 0] - targets["rating"]).square() + 0.01 * prediction[:, 1]

    return FederatedModel(
        name="penalised",
        module=Penalised(),
        local={"user_vector": Constant(0.0)},
        fields=(Field("item", dtype=torch.int64, vocabulary=films.ITEMS), Field("rating", Role.TARGET)),
        loss=loss,
        metrics={"loss": Metric(loss, 25.0)},
        bounds={"item_vectors.weight": 0.5},
        vocabularies={"item_vectors.weight": films.ITEMS},
        reconstruction=Ridge("rating"),
        score=lambda prediction: prediction[:, 0],
    )


class Shifting(nn.Module):
    """A softmax does not see what shifts all of its inputs, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.shift = nn.Parameter(torch.zeros(()))
        self.user = nn.Parameter(torch.zeros(6))

    def forward(self, features: Tensor) -> Tensor:
        shares = torch.softmax(self.layer(features) + self.shift, dim=-1)
        return (shares * self.user).sum(-1)


def test_adam_on_a_gradient_of_rounding_alone_is_refused_with_the_reason() -> None:
    torch.manual_seed(0)
    model = FederatedModel(
        name="shifting",
        module=Shifting(),
        local={"user": Constant(0.0)},
        fields=(Field("features", shape=(4,)), Field("rating", Role.TARGET)),
        loss=films.squared_error,
        metrics={"squared_error": Metric(films.squared_error, 25.0)},
        bounds={"layer.weight": 0.5, "layer.bias": 0.5, "shift": 0.5},
        update_rate=RATE,
        update_optimizer=Adam(),
    )
    with pytest.raises(
        PlanError, match=r"output update\.shift differs .* or Adam or Adagrad follows a gradient that is 0"
    ):
        verify(model, [graphs.update(model)], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True], ids=["set", "learned"])
@pytest.mark.parametrize(("name", "optimizer"), [*itertools.product(models, optimizers)])
def test_reconstruction_by_any_optimizer_agrees_with_torch(name: str, optimizer: str, learned: bool) -> None:
    model = declare(name, optimizer, "sgd", joint=False, learned=learned)
    inspect(model)
    assert verify(model, [graphs.reconstruct(model)], seed=0)[1] < 1e-5


# With the test above these are all combinations: without joint training the update knows nothing of how the local
# parameters were reconstructed, and reconstruction never knows anything of the update.
@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True], ids=["set", "learned"])
@pytest.mark.parametrize("joint", [None, *optimizers])
@pytest.mark.parametrize(("name", "optimizer"), [*itertools.product(models, optimizers)])
def test_the_update_by_any_optimizer_agrees_with_torch(
    name: str, optimizer: str, joint: str | None, learned: bool
) -> None:
    model = declare(name, joint or "sgd", optimizer, joint=joint is not None, learned=learned)
    assert verify(model, [graphs.update(model)], seed=0)[1] < 1e-5
