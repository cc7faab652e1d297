"""Declarations that cannot work are refused when they are made, naming what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, FromGlobal, Metric, ModelError, Role, Uniform
from fedrecon.learning.models.matrix_factorization import matrix_factorization, squared_error
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Ridge, Schedule


class Small(nn.Module):
    """One global table, one global vector, one local vector."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(5, 3)
        self.default = nn.Parameter(torch.zeros(3))
        self.user = nn.Parameter(torch.zeros(3))

    def forward(self, item: Tensor) -> Tensor:
        vectors: Tensor = self.items(item)
        return (vectors * (self.user + self.default)).sum(-1)


item = Field("item", dtype=torch.int64, vocabulary="items")
rating = Field("rating", Role.TARGET)


def declare(**changes: Any) -> FederatedModel:
    right: dict[str, Any] = {
        "name": "small",
        "module": Small(),
        "local": {"user": Constant(0.0)},
        "fields": (item, rating),
        "loss": squared_error,
        "metrics": {"squared_error": Metric(squared_error, 25.0)},
        "bounds": {"items.weight": 0.5, "default": 0.5},
        "vocabularies": {"items.weight": "items"},
    }
    return FederatedModel(**{**right, **changes})


def test_a_model_splits_its_parameters_into_global_and_local() -> None:
    model = declare()
    assert list(model.global_parameters) == ["default", "items.weight"]
    assert list(model.local_parameters) == ["user"]
    assert list(model.hyperparameters) == ["reconstruct.rate", "update.rate"]
    assert list(declare(reconstruction=Ridge("rating")).hyperparameters) == ["reconstruct.ridge", "update.rate"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"local": {"usr": Constant(0.0)}},
            "local: the model has no parameter 'usr'; it has default, user, items.weight",
        ),
        ({"local": {"user": Uniform(0.0)}}, "local parameter 'user' is drawn from"),
        ({"local": {"user": Constant(float("nan"))}}, "local parameter 'user' starts at nan"),
        ({"local": {"user": FromGlobal("items.weight")}}, "starts as 'items.weight', which is no dense global"),
        ({"bounds": {"items.weight": 0.5}}, "global parameter 'default' needs a positive contribution bound"),
        ({"bounds": {"items.weight": 0.5, "default": -1.0}}, "global parameter 'default' needs a positive"),
        ({"bounds": {"items.weight": 0.5, "default": 1.0, "user": 1.0}}, "'user' is local: it is never reported"),
        ({"vocabularies": {"item.weight": "items"}}, "vocabularies: the model has no parameter 'item.weight'"),
        ({"fields": (item, item, rating)}, "field 'item' is declared twice"),
        ({"fields": (item,)}, "at least one input field and one target field"),
        ({"fields": (Field("item", dtype=torch.int64), rating)}, "field 'item' is an integer without vocabulary"),
        ({"fields": (Field("item", vocabulary="items"), rating)}, "field 'item' holds row numbers"),
        (
            {"fields": (item, Field("item2", dtype=torch.int64, vocabulary="films"), rating)},
            "no row-sparse parameter has the vocabulary 'films'",
        ),
        (
            {"fields": (item, Field("next", Role.TARGET, torch.int64, vocabulary="items"))},
            "field 'next' is a target with the vocabulary 'items'",
        ),
        ({"fields": (item, Field("rating", Role.TARGET, torch.float64))}, "field 'rating' is torch.float64"),
        ({"fields": (item, Field("rating", Role.TARGET, minimum=5.0))}, "field 'rating': state both"),
        ({"fields": (item, Field("rating", Role.TARGET, minimum=5.0, maximum=1.0))}, "no finite range"),
        ({"metrics": {}}, "no metric"),
        ({"metrics": {"error": Metric(squared_error, 0.0)}}, "metric 'error' needs a positive finite bound"),
        ({"reconstruction": Ridge("stars")}, "aims at 'stars', which is no float32 target field"),
        ({"module": Small().double()}, "is torch.float64; parameters must be float32"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refusal:
        declare(**changes)
    assert message in str(refusal.value)


def test_limits_that_exclude_the_default_are_refused() -> None:
    with pytest.raises(ValueError, match=r"default 2 of a hyperparameter lies outside \[0, 1\]"):
        Hyperparameter(2, 0, 1)
    with pytest.raises(ValueError, match="must be finite"):
        Hyperparameter(1, 0, float("inf"))


def test_a_ridge_that_may_be_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest ridge must be positive"):
        Ridge("rating", Hyperparameter(1.0, 0.0, 10.0))
    with pytest.raises(ValueError, match="at least 1 step"):
        Ridge("rating", most_steps=0)


def test_a_schedule_without_examples_in_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batches of 0"):
        Schedule(batch_size=0, epochs=1)


def test_matrix_factorization_starts_as_the_paper_does() -> None:
    model = matrix_factorization(100, 8)
    assert model.local == {"user_vector": Uniform(0.05)}
    assert list(model.global_parameters) == ["item_vectors.weight"]
    vectors = model.global_parameters["item_vectors.weight"]
    assert vectors.abs().max() <= 0.05
    assert vectors.std() == pytest.approx(0.1 / 12**0.5, rel=0.1)
    assert model.reconstruction == GradientSteps()


def test_matrix_factorization_under_ridge_starts_where_ridge_pulls() -> None:
    model = matrix_factorization(10, 4, mean=3.5, bias=True, reconstruction=Ridge("rating"))
    assert model.local == {"user_vector": Constant(0.0), "user_bias": Constant(0.0)}
    empty = {**model.global_parameters, **model.local_parameters}
    assert torch.equal(model.predict(empty, {"item": torch.tensor([1, 2])}), torch.tensor([3.5, 3.5]))


@pytest.mark.parametrize(
    "make", [lambda seed: matrix_factorization(9, 3, seed=seed), lambda seed: personal_network(seed=seed)]
)
def test_equal_seeds_give_equal_parameters(make: Any) -> None:
    first, second, other = make(1), make(1), make(2)
    assert all(torch.equal(first.parameters[name], second.parameters[name]) for name in first.parameters)
    assert any(not torch.equal(first.parameters[name], other.parameters[name]) for name in first.parameters)


def test_a_personal_network_learns_its_default() -> None:
    model = personal_network(features=3, embedding=2, hidden=4)
    assert model.local == {"personal": Constant(0.0)}
    assert model.vocabularies == {}
    prediction = model.predict(model.parameters, {"features": torch.ones(2, 3)})
    (gradient,) = torch.autograd.grad(prediction.sum(), [model.parameters["default"]])
    assert gradient.any()


def test_a_local_parameter_may_start_as_a_global_one() -> None:
    assert declare(local={"user": FromGlobal("default")}).local == {"user": FromGlobal("default")}
