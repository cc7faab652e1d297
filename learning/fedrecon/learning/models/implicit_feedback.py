"""Recommendation from what users chose, without ratings: federated weighted ridge over all items.

score = <item vector, user vector>: near 1 for what the user would choose. Examples say only which items were chosen;
that no other item was is the background, which pulls every score to 0 (`background`). The user vector is the exact
minimiser of both over the support set, so a device needs the Gram matrix of the item vectors, which it makes itself:
they are public. A step of the update moves all item vectors, those of the query set up and all of them down.

A model that rates well ranks poorly: it learns how users rate what they chose, not what they choose.

Rules: item vectors travel whole, down and up (3,706 items of 64 factors: 0.95 MB each way), which suits thousands of
items, not millions; the update is one step over the whole query set, since each step costs as much as there are items.
So a task splits by fraction or in alternate examples: alternate batches would be as long as the step. The user vector
starts as a learned default, and ridge pulls it there: a user without examples gets a ranking much like popularity.

Source: Hu, Koren and Volinsky 2008, Collaborative Filtering for Implicit Feedback Datasets; Rendle et al. 2021,
Revisiting the Performance of iALS on Item Recommendation Benchmarks (arXiv 2110.14037); reconstruction on the device
and the learned default: Singhal et al. 2021, Federated Reconstruction (arXiv 2102.03448).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedrecon.learning.background import Background
from fedrecon.learning.model import FederatedModel, Field, FromGlobal, Metric, Role, Tensors
from fedrecon.learning.reconstruction import Hyperparameter, Ridge, Schedule

ITEMS = "items"
ITEM_VECTORS = "item_vectors.weight"
# Deviation of an initial item vector's length, as in Rendle et al. 2021.
INITIAL_DEVIATION = 0.1
# The background makes the loss steep in the default, more so the longer the item vectors: larger steps may diverge. A
# server optimizer that adapts, such as Adagrad, makes up for small ones.
UPDATE_RATE = 0.01


class ImplicitFeedback(nn.Module):
    """Scores items for one user.

    Attributes:
        item_vectors: `[items, factors]`.
        default_user_vector: `[factors]`, where every user vector starts; only the learned default moves it.
        user_vector: `[factors]`.
    """

    def __init__(self, items: int, factors: int, generator: torch.Generator) -> None:
        super().__init__()
        self.item_vectors = nn.Embedding(items, factors)
        nn.init.normal_(self.item_vectors.weight, std=INITIAL_DEVIATION / factors**0.5, generator=generator)
        self.default_user_vector = nn.Parameter(torch.zeros(factors))
        self.user_vector = nn.Parameter(torch.zeros(factors))

    def forward(self, item: Tensor) -> Tensor:
        """Returns the scores of the items of these row numbers, `[examples] float32`."""
        score: Tensor = (self.item_vectors(item) * self.user_vector).sum(-1)
        return score


def implicit_feedback(
    items: int, factors: int = 64, *, weight: float = 50.0, ridge: float = 10.0, seed: int = 0
) -> FederatedModel:
    """Returns the implicit-feedback model.

    Args:
        items: rows of the item table.
        factors: length of item and user vectors.
        weight: of the background: of the mean over all items of the squared score, beside each example's own loss.
        ridge: default weight of the squared distance of the user vector from the learned default.
        seed: of the initial item vectors.
    """
    return FederatedModel(
        name="implicit feedback",
        module=ImplicitFeedback(items, factors, torch.Generator().manual_seed(seed)),
        local={"user_vector": FromGlobal("default_user_vector")},
        fields=(
            Field("item", dtype=torch.int64, vocabulary=ITEMS),
            Field("chosen", Role.TARGET, minimum=0.0, maximum=1.0),
        ),
        loss=squared_error,
        metrics={
            "squared_error": Metric(squared_error, bound=4.0),
            "examples": Metric(each_example, bound=1.0),
        },
        bounds={ITEM_VECTORS: 0.01, "default_user_vector": 0.05},
        vocabularies={ITEM_VECTORS: ITEMS},
        reconstruction=Ridge(
            "chosen",
            Hyperparameter(ridge, 5.0, 1000.0),
            background=Background(ITEM_VECTORS, "user_vector", weight),
        ),
        update_rate=Hyperparameter(UPDATE_RATE, 0.0, UPDATE_RATE),
        update_schedule=Schedule(batch_size=150, epochs=1, maximum_steps=1),
    )


def squared_error(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns (score - chosen)^2 of every example: its loss without the background."""
    return (prediction - targets["chosen"]).square()


def each_example(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns 1 for every example: the count behind the other sums."""
    del targets
    return torch.ones_like(prediction)
