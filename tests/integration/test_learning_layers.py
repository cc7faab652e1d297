"""Convolutions, pooling, normalisation and recurrent layers compile, with gradients, and agree with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, Metric, Role
from fedrecon.learning.models.next_word import next_word
from fedrecon.learning.planning import graphs
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.verification import verify
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter

RATE = Hyperparameter(0.001, 0.0, 0.002)


class Around(nn.Module):
    """Two classes from what the layer under test makes of an input, shifted by the user."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.user = nn.Parameter(torch.zeros(self.look(torch.zeros(1, *shape)).shape[1:]))
        self.head = nn.Linear(self.user.shape[-1], 2)

    def look(self, seen: Tensor) -> Tensor:
        result = self.layer(seen)
        seen_as: Tensor = result[0] if isinstance(result, tuple) else result
        return seen_as

    def forward(self, seen: Tensor) -> Tensor:
        classes: Tensor = self.head(torch.tanh(self.look(seen) + self.user))
        return classes.unsqueeze(1).flatten(1, -2).sum(1)


class Attention(nn.Module):
    """Attention written with Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.offer, self.say = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 5)

    def forward(self, seen: Tensor) -> Tensor:
        weights = torch.softmax(self.ask(seen) @ self.offer(seen).transpose(1, 2), dim=-1)
        said: Tensor = self.say(seen)
        return weights @ said


def cross_entropy(prediction: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(prediction, targets["label"], reduction="none")


def declare(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> FederatedModel:
    torch.manual_seed(0)
    module = Around(make(), shape)
    return FederatedModel(
        name="around a layer",
        module=module,
        local={"user": Constant(0.0)},
        fields=(Field("seen", shape=shape), Field("label", Role.TARGET, torch.int64, minimum=0, maximum=1)),
        loss=cross_entropy,
        metrics={"cross_entropy": Metric(cross_entropy, 20.0)},
        bounds={name: 0.5 for name, _ in module.named_parameters() if name != "user"},
        reconstruction=GradientSteps(rate=RATE),
        update_rate=RATE,
    )


def check(model: FederatedModel, *made: Callable[[FederatedModel], graphs.PlanGraph]) -> dict[str, int]:
    """Compares graphs with torch, and returns their sizes in bytes."""
    inspect(model)
    compiled = [make(model) for make in made]
    assert verify(model, compiled, seed=0)[1] < 1e-5
    return {graph.name: len(graph.content) for graph in compiled}


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers)


fast: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strides, groups, dilation, max": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        (4, 11, 8),
    ),
    "lstm of two steps": (lambda: nn.LSTM(3, 4, batch_first=True), (2, 3)),
}
slow: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 8)),
    "conv2d": (lambda: images(nn.Tanh(), nn.Conv2d(4, 3, 2, bias=False)), (2, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "depthwise, as large as before": (lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4), (4, 6, 6)),
    "reflecting padding": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 6, 5)),
    "overlapping max": (lambda: images(nn.MaxPool2d(3, 2, 1)), (2, 8, 9)),
    "max1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2, ceil_mode=True)), (2, 9)),
    "average": (lambda: images(nn.AvgPool2d(2)), (2, 7, 7)),
    "overlapping average": (lambda: images(nn.AvgPool2d(3, 2, 1)), (2, 8, 9)),
    "average1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.AvgPool1d(2)), (2, 9)),
    "average of all": (lambda: images(nn.AdaptiveAvgPool2d(1)), (2, 8, 9)),
    "group norm": (lambda: images(nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2)), (2, 5, 5)),
    "linear over three axes": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (5, 3)),
    "attention": (Attention, (5, 3)),
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), (3, 3)),
    "lstm with dropout switched off": (
        lambda: nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True).eval(),
        (3, 3),
    ),
    "gru": (lambda: nn.GRU(3, 5, num_layers=2, bias=False, batch_first=True), (3, 3)),
    "rnn": (lambda: nn.RNN(3, 5, nonlinearity="relu", batch_first=True), (4, 3)),
}


@pytest.mark.parametrize("name", fast)
def test_a_layer_with_its_gradient_agrees_with_torch(name: str) -> None:
    check(declare(*fast[name]), graphs.update)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*fast, *slow])
def test_a_layer_with_and_without_its_gradient_agrees_with_torch(name: str) -> None:
    check(declare(*{**fast, **slow}[name]), graphs.update, graphs.predict)


def test_a_model_without_vocabularies_gives_a_score_for_every_class() -> None:
    graph = graphs.predict(declare(nn.Identity, (3,)))
    assert [(value.name, value.shape) for value in graph.outputs] == [("scores", ("examples", 2))]


@pytest.mark.slow
def test_a_cell_written_out_over_twenty_steps_stays_small() -> None:
    sizes = check(next_word(30, 5, 4, 6, 4), graphs.update)
    assert sizes["update"] < 100_000
