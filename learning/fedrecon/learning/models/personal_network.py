"""A small dense network with a personal embedding: the same network for all, told who is asking.

prediction = network(features, default + personal). The layers and the default embedding are global and dense; what
is personal is local and starts at 0, so a user without examples gets the average user's prediction, and the default
is learned by the gradient of the whole loss, like every other global parameter. (The other way is `FromGlobal`.)

Source: Bui et al. 2019, Federated User Representation Learning (arXiv 1909.12535).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, Metric, Role, Tensors
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Schedule

# Targets, predictions and features are of order one: errors beyond this are clipped in reports.
SQUARED_ERROR_BOUND = 25.0


class PersonalNetwork(nn.Module):
    """Predicts one number from features and the personal embedding.

    Attributes:
        default: `[embedding]`, global: the average user.
        personal: `[embedding]`, local: how this user differs.
        layers: two hidden layers and a head.
    """

    def __init__(self, features: int, embedding: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.default = nn.Parameter(torch.zeros(embedding))
        self.personal = nn.Parameter(torch.zeros(embedding))
        self.layers = nn.Sequential(
            nn.Linear(features + embedding, hidden),
            nn.Tanh(),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.default, std=0.1, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the prediction for every example, `[examples] float32`."""
        embedding = (self.default + self.personal).expand(features.shape[0], -1)
        output: Tensor = self.layers(torch.cat([features, embedding], dim=1)).squeeze(-1)
        return output


def personal_network(features: int = 8, embedding: int = 4, hidden: int = 16, *, seed: int = 0) -> FederatedModel:
    """Returns the network as a federated model.

    Args:
        features: numbers in one example.
        embedding: length of the personal embedding.
        hidden: width of the hidden layers.
        seed: of the initial weights.
    """
    module = PersonalNetwork(features, embedding, hidden, torch.Generator().manual_seed(seed))
    return FederatedModel(
        name="personal network",
        module=module,
        local={"personal": Constant(0.0)},
        fields=(Field("features", shape=(features,)), Field("target", Role.TARGET)),
        loss=squared_error,
        metrics={"squared_error": Metric(squared_error, bound=SQUARED_ERROR_BOUND)},
        bounds={name: 0.5 for name, _ in module.named_parameters() if name != "personal"},
        reconstruction=GradientSteps(rate=Hyperparameter(0.05, 0.0, 0.1), schedule=Schedule(8, 5, 50)),
        update_rate=Hyperparameter(0.05, 0.0, 0.1),
        update_schedule=Schedule(batch_size=8, epochs=1, maximum_steps=50),
    )


def squared_error(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns (prediction - target)^2 of every example."""
    return (prediction - targets["target"]).square()
