"""What cannot become a plan is refused by name, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, Metric, ModelError, Role
from fedrecon.learning.models.matrix_factorization import ITEMS, squared_error
from fedrecon.learning.planning import PlanError
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.reconstruction import Ridge
from fedrecon.v1.plan_pb2 import Vocabulary

ROWS = 23


class Tied(nn.Module):
    """Item vectors are looked up, and used as a matrix, too."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 4)
        self.user = nn.Parameter(torch.zeros(4))
        self.decoder = nn.Linear(4, ROWS, bias=False)
        self.decoder.weight = self.items.weight

    def forward(self, item: Tensor) -> Tensor:
        vectors: Tensor = self.items(item)
        scores: Tensor = self.decoder(vectors)
        return (vectors * self.user).sum(-1) + scores.mean(-1)


class Looked(nn.Module):
    """A small model around one layer under test."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 4)
        self.user = nn.Parameter(torch.zeros(4))
        self.middle = layer

    def forward(self, item: Tensor) -> Tensor:
        vectors: Tensor = self.middle(self.items(item))
        return (vectors * self.user).sum(-1)


class Counting(nn.Module):
    """Row numbers are used as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 4)
        self.user = nn.Parameter(torch.zeros(4))

    def forward(self, item: Tensor) -> Tensor:
        vectors: Tensor = self.items(item)
        return (vectors * self.user).sum(-1) + item * 0.01


class Squashed(Looked):
    """Not linear in the user vector."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def forward(self, item: Tensor) -> Tensor:
        return torch.tanh(super().forward(item))


class FunctionalDropout(nn.Module):
    """Draws random numbers without a layer that says so."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.dropout(vectors, 0.5, training=True)


def declare(module: nn.Module) -> FederatedModel:
    globals_ = {name for name, _ in module.named_parameters()} - {"user"}
    return FederatedModel(
        name="under test",
        module=module,
        local={"user": Constant(0.0)},
        fields=(
            Field("item", dtype=torch.int64, vocabulary=ITEMS),
            Field("rating", Role.TARGET, minimum=0.5, maximum=5.0),
        ),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, 25.0)},
        bounds=dict.fromkeys(globals_, 0.5),
        vocabularies={"items.weight": ITEMS},
    )


def test_tied_weights_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"row-sparse parameter 'items\.weight' is used by layer 'decoder' \(linear\)"):
        inspect(declare(Tied()))


def test_row_numbers_used_as_numbers_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"field 'item' of vocabulary 'items' goes to the model itself \(mul\)"):
        inspect(declare(Counting()))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (nn.Dropout(0.5), "Dropout"),
        (nn.EmbeddingBag(4, 4), "EmbeddingBag"),
        (nn.ConvTranspose1d(4, 4, 1), "ConvTranspose1d"),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5), "LSTM"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.AdaptiveMaxPool1d(2), "AdaptiveMaxPool1d"),
        (nn.AdaptiveAvgPool1d(2), "AdaptiveAvgPool1d"),
        (nn.AvgPool1d(2, ceil_mode=True), "AvgPool1d"),
        (nn.AvgPool1d(3, padding=1, count_include_pad=False), "AvgPool1d"),
        (FunctionalDropout(), "draws random numbers"),
    ],
)
def test_an_unsupported_layer_is_refused_by_name(layer: nn.Module, kind: str) -> None:
    with pytest.raises(PlanError, match=rf"layer 'middle'.*{kind}"):
        inspect(declare(Looked(layer)))


def test_dropout_that_is_switched_off_is_accepted() -> None:
    inspect(declare(Looked(nn.Dropout(0.5).eval())))


class Folding(nn.Module):
    """Asks torch to work out an extent, which it cannot do for nothing."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(vectors.shape[0], -1, 2).flatten(1)


def test_a_model_that_fails_on_no_examples_is_refused() -> None:
    with pytest.raises(PlanError, match=r"fails on a user without examples: cannot reshape"):
        inspect(declare(Looked(Folding())))


def test_ridge_is_refused_where_locals_are_not_linear() -> None:
    model = declare(Looked(nn.Identity()))
    squashed = FederatedModel(
        **{
            **{name: getattr(model, name) for name in FederatedModel.__dataclass_fields__},
            "reconstruction": Ridge("rating"),
            "module": Squashed(),
        }
    )
    with pytest.raises(PlanError, match="not linear in its local parameters"):
        inspect(squashed)


def test_a_vocabulary_of_another_length_is_refused() -> None:
    from fedrecon.learning.planning.manifest import Blobs, build_manifest

    short = Vocabulary(name=ITEMS, version=1, keys=["one"])
    with pytest.raises(PlanError, match="has 23 rows, but vocabulary 'items' has 1 keys"):
        build_manifest(declare(Looked(nn.Identity())), [], {ITEMS: short}, [], Blobs())
    with pytest.raises(PlanError, match="needs the vocabularies"):
        build_manifest(declare(Looked(nn.Identity())), [], {}, [], Blobs())


def test_a_local_row_sparse_parameter_is_refused() -> None:
    model = declare(Looked(nn.Identity()))
    with pytest.raises(ModelError, match=r"'items\.weight' is local and row-sparse"):
        FederatedModel(
            **{
                **{name: getattr(model, name) for name in FederatedModel.__dataclass_fields__},
                "local": {"items.weight": Constant(0.0)},
                "bounds": {"user": 0.5},
            }
        )


class Carrying(Looked):
    """A global parameter is drawn to the user's own: its update is the user vector."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.copied = nn.Parameter(torch.zeros(4))

    def forward(self, item: Tensor) -> Tensor:
        coupling = ((self.copied - self.user) ** 2).sum().expand(item.shape[0])
        return torch.stack([super().forward(item), coupling], dim=1)


def coupled(prediction: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    return squared_error(prediction[:, 0], targets) + 0.1 * prediction[:, 1]


def test_an_update_that_copies_local_parameters_is_not_signed() -> None:
    model = declare(Carrying())
    carrying = replace(
        model,
        loss=coupled,
        metrics={"squared_error": Metric(lambda prediction, targets: squared_error(prediction[:, 0], targets), 25.0)},
        score=lambda prediction: prediction[:, 0],
    )
    with pytest.raises(PlanError, match=r"the update of 'copied' would be a copy of local parameters \(user\)"):
        inspect(carrying)
