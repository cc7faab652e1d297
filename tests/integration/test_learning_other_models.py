"""Models that are no matrix factorisation compile, too, and their graphs agree with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, Metric, Role
from fedrecon.learning.models.matrix_factorization import ITEMS, squared_error
from fedrecon.learning.planning.graphs import compile_graphs, touch
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.verification import levels, open_graph, verify

ROWS = 23


class LinearScores(nn.Module):
    """Its gradient is a transposed matrix times a 1-D vector, which ONNX Runtime gets wrong if it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return torch.mv(features, self.weight) + self.shift


def test_a_matrix_times_a_vector_is_computed_right_at_both_levels() -> None:
    model = FederatedModel(
        name="linear",
        module=LinearScores(),
        local={"shift": Constant(0.0)},
        fields=(Field("features", shape=(5,)), Field("rating", Role.TARGET)),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, 25.0)},
        bounds={"weight": 0.5},
    )
    inspect(model)
    assert verify(model, compile_graphs(model), seed=3)[1] < 1e-5


class Pair(nn.Module):
    """An item and a short history, both looked up in one table."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 4)
        self.head = nn.Linear(4, 4)
        self.user = nn.Parameter(torch.zeros(4))

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        seen: Tensor = nn.functional.gelu(self.items(history).mean(1))
        vectors: Tensor = self.items(item) + self.head(seen)
        return (vectors * self.user).sum(-1)


def declare_pair() -> FederatedModel:
    return FederatedModel(
        name="pair",
        module=Pair(),
        local={"user": Constant(0.0)},
        fields=(
            Field("item", dtype=torch.int64, vocabulary=ITEMS),
            Field("history", dtype=torch.int64, shape=(3,), vocabulary=ITEMS),
            Field("rating", Role.TARGET),
        ),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, 25.0)},
        bounds={"items.weight": 0.5, "head.weight": 0.5, "head.bias": 0.5},
        vocabularies={"items.weight": ITEMS},
    )


def test_fields_of_one_vocabulary_are_renumbered_together() -> None:
    graph = touch(declare_pair())
    run = open_graph("touch", graph.content, levels[0][1])
    found = run("touch", {"field.item": np.array([90, 7]), "field.history": np.array([[7, 5, 90], [5, 5, 2]])})
    assert found["rows.items"].tolist() == [2, 5, 7, 90]
    assert found["renumbered.item"].tolist() == [3, 2]
    assert found["renumbered.history"].tolist() == [[2, 1, 3], [1, 1, 0]]
    empty = run("touch", {"field.item": np.zeros(0, np.int64), "field.history": np.zeros((0, 3), np.int64)})
    assert {name: array.shape for name, array in empty.items()} == {
        "rows.items": (0,),
        "renumbered.item": (0,),
        "renumbered.history": (0, 3),
    }


class Classifier(nn.Module):
    """Three classes from five features, with a personal shift of a normalised hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.normal = nn.GroupNorm(2, 6)
        self.last = nn.Linear(6, 3)
        self.user = nn.Parameter(torch.zeros(6))

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = nn.functional.silu(self.normal(self.first(features))) + self.user
        classes: Tensor = self.last(hidden)
        return classes


def cross_entropy(prediction: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(prediction, targets["label"], reduction="none")


def is_right(prediction: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    return (prediction.argmax(-1) == targets["label"]).float()


def declare_classifier() -> FederatedModel:
    module = Classifier()
    return FederatedModel(
        name="classifier",
        module=module,
        local={"user": Constant(0.0)},
        fields=(
            Field("features", shape=(5,)),
            Field("label", Role.TARGET, torch.int64, minimum=0, maximum=2),
        ),
        loss=cross_entropy,
        metrics={"right": Metric(is_right, 1.0), "cross_entropy": Metric(cross_entropy, 20.0)},
        bounds={name: 0.5 for name, _ in module.named_parameters() if name != "user"},
        score=lambda prediction: prediction[:, 0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [declare_pair, declare_classifier])
def test_models_of_other_kinds_agree_with_torch(make: Callable[[], FederatedModel]) -> None:
    torch.manual_seed(0)
    model = make()
    inspect(model)
    assert verify(model, compile_graphs(model), seed=0)[1] < 1e-5
