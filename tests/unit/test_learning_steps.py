"""One step of a plan, as the torch function that is exported: what it moves, what it leaves, what it carries on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedrecon.learning.client_optimizers import Adagrad, Adam, ClientOptimizer, Sgd
from fedrecon.learning.model import Constant, FederatedModel, Field, FromGlobal, Metric, Role
from fedrecon.learning.models.matrix_factorization import matrix_factorization, squared_error
from fedrecon.learning.planning.steps import Move, of_reconstruction, of_update, state_of, step
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Ridge

optimizers: dict[str, ClientOptimizer] = {
    "sgd": Sgd(),
    "momentum": Sgd(0.9),
    "adagrad": Adagrad(0.1),
    "adam": Adam(),
}
JOINT = Hyperparameter(0.1, 0.0, 1.0)


class Shifted(nn.Module):
    """rating = slope * feature + user; `usual` is where `user` starts."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.usual = nn.Parameter(torch.zeros(()))
        self.user = nn.Parameter(torch.zeros(()))

    def forward(self, feature: Tensor) -> Tensor:
        return self.slope * feature + self.user


@pytest.fixture
def model() -> FederatedModel:
    return FederatedModel(
        name="shifted",
        module=Shifted(),
        local={"user": Constant(0.0)},
        fields=(Field("feature"), Field("rating", Role.TARGET)),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, 25.0)},
        bounds={"slope": 0.5, "usual": 0.5},
    )


def take(model: FederatedModel, moves: tuple[Move, ...], mask: list[float]) -> tuple[dict[str, Tensor], ...]:
    """Returns the values before and after one step of rate 0.5, with state that is no longer at its start."""
    parameters = {"slope": torch.tensor(1.0), "usual": torch.tensor(3.0), "user": torch.tensor(2.0)}
    state = {each.value.name: torch.tensor(0.25) for move in moves for each in state_of(model, move)}
    before = {f"parameter.{name}": value for name, value in parameters.items()} | state
    given = {
        "field.feature": torch.tensor([2.0, 5.0]),
        "field.rating": torch.tensor([1.0, 7.0]),
        "order": torch.zeros(len(mask), dtype=torch.int64),
        "mask": torch.tensor(mask),
        **{f"rate.{move.rate}": torch.tensor(0.5) for move in moves},
    }
    after = step(model, moves, at_default=bool(model.defaults))({**before, **given})
    return {name.removeprefix("parameter."): value for name, value in before.items()}, after


@pytest.mark.parametrize("name", optimizers)
def test_a_step_of_padding_changes_neither_parameters_nor_state(model: FederatedModel, name: str) -> None:
    joint = replace(model, update_optimizer=optimizers[name], joint_rate=JOINT, local={"user": FromGlobal("usual")})
    before, after = take(joint, of_update(joint), [0.0, 0.0])
    assert after.pop("loss") == 0
    for value, result in after.items():
        assert torch.equal(result, before[value.removeprefix("after.")]), value


@pytest.mark.parametrize("name", optimizers)
def test_a_step_with_one_example_changes_parameters_and_state(model: FederatedModel, name: str) -> None:
    own = replace(model, reconstruction=GradientSteps(optimizer=optimizers[name]))
    assert isinstance(own.reconstruction, GradientSteps)
    before, after = take(own, of_reconstruction(own, own.reconstruction), [1.0, 0.0])
    assert after.pop("loss") == 9  # 1 * 2 + 2 - 1 = 3
    assert after
    for value, result in after.items():
        assert not torch.equal(result, before[value.removeprefix("after.")]), value


def test_the_update_moves_no_local_parameter(model: FederatedModel) -> None:
    _, after = take(model, of_update(model), [1.0])
    assert set(after) == {"after.slope", "after.usual", "loss"}
    assert after["after.slope"] == 1.0 - 0.5 * 2 * 3 * 2
    assert after["after.usual"] == 3.0


def test_joint_training_moves_local_parameters_by_the_optimizer_of_reconstruction(model: FederatedModel) -> None:
    gradient = replace(model, joint_rate=JOINT, reconstruction=GradientSteps(optimizer=Adam()))
    assert [(move.parameters, move.optimizer) for move in of_update(gradient)] == [
        (("slope", "usual"), Sgd()),
        (("user",), Adam()),
    ]
    _, after = take(gradient, of_update(gradient), [1.0])
    assert after["after.user"] != 2.0
    ridge = replace(model, joint_rate=JOINT, reconstruction=Ridge("rating"))
    _, after = take(ridge, of_update(ridge), [1.0])
    assert after["after.user"] == 2.0 - 0.5 * 2 * 3


def test_a_default_follows_the_gradient_of_the_loss_at_the_default_alone(model: FederatedModel) -> None:
    """At the default the error is 1 * 2 + 3 - 1 = 4; with the reconstructed user it is 3, and that is reported."""
    learned = replace(model, local={"user": FromGlobal("usual")})
    _, after = take(learned, of_update(learned), [1.0])
    assert after["after.usual"] == 3.0 - 0.5 * 2 * 4
    assert after["after.slope"] == 1.0 - 0.5 * 2 * 3 * 2
    assert after["loss"] == 9


def test_state_has_the_shape_of_its_parameter_and_starts_at_a_number() -> None:
    films = replace(matrix_factorization(23, 6, bias=True), update_optimizer=Adagrad(0.25), joint_rate=JOINT)
    update, joint = of_update(films)
    assert [(each.value.name, each.value.shape, each.like, each.start) for each in state_of(films, update)] == [
        (f"state.update.rate/squares/{name}", ("rows.items", width), name, 0.25)
        for name, width in (("item_vectors.weight", 6), ("item_biases.weight", 1))
    ]
    assert state_of(films, joint) == ()
    adam = state_of(films, replace(joint, optimizer=Adam()))
    assert [(each.name, each.value.shape, each.start) for each in adam] == [
        ("momentum/user_vector", (6,), 0.0),
        ("momentum/user_bias", (), 0.0),
        ("squares/user_vector", (6,), 0.0),
        ("squares/user_bias", (), 0.0),
        ("momentum weight", (), 0.0),
        ("squares weight", (), 0.0),
    ]
