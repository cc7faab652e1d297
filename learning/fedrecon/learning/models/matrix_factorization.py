"""Matrix factorisation of ratings: the model of the paper's MovieLens experiments.

rating = mean + <item vector, user vector> + item bias + user bias. Item vectors and item biases are global and
row-sparse over the vocabulary `items`; user vector and user bias are local. The paper has neither biases nor mean.

Source: Singhal et al. 2021, Federated Reconstruction, section 5.1.1 (arXiv 2102.03448); biases as in Koren, Bell and
Volinsky 2009, Matrix Factorization Techniques for Recommender Systems.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedrecon.learning.model import Constant, FederatedModel, Field, Initial, Metric, Role, Tensors, Uniform
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Reconstruction, Ridge

ITEMS = "items"
# Initial vectors are drawn from [-0.05, 0.05), as in the paper's code.
INITIAL_BOUND = 0.05


class MatrixFactorization(nn.Module):
    """Predicts the rating of items by one user.

    Attributes:
        item_vectors: `[items, factors]`.
        item_biases: `[items, 1]`, with biases only.
        user_vector: `[factors]`.
        user_bias: a scalar, with biases only.
    """

    def __init__(self, items: int, factors: int, mean: float, bias: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = mean
        self.bias = bias
        self.item_vectors = nn.Embedding(items, factors)
        nn.init.uniform_(self.item_vectors.weight, -INITIAL_BOUND, INITIAL_BOUND, generator=generator)
        self.user_vector = nn.Parameter(torch.zeros(factors))
        if bias:
            self.item_biases = nn.Embedding(items, 1)
            nn.init.zeros_(self.item_biases.weight)
            self.user_bias = nn.Parameter(torch.zeros(()))

    def forward(self, item: Tensor) -> Tensor:
        """Returns the ratings of the items of these row numbers, `[examples] float32`."""
        rating: Tensor = (self.item_vectors(item) * self.user_vector).sum(-1) + self.mean
        if self.bias:
            rating = rating + self.item_biases(item).squeeze(-1) + self.user_bias
        return rating


def matrix_factorization(
    items: int,
    factors: int = 50,
    *,
    mean: float = 0.0,
    bias: bool = False,
    reconstruction: Reconstruction | None = None,
    update_rate: float = 0.5,
    rating_limits: tuple[float, float] = (0.5, 5.0),
    clamped: bool = False,
    seed: int = 0,
) -> FederatedModel:
    """Returns matrix factorisation as a federated model.

    Args:
        items: rows of the item table.
        factors: length of item and user vectors.
        mean: constant added to every prediction, in stars.
        bias: whether items and the user have a bias.
        reconstruction: `GradientSteps()` unless stated; under `Ridge` the user vector starts at 0, where ridge pulls.
        update_rate: default rate of the update's SGD steps.
        rating_limits: smallest and largest rating.
        clamped: whether metrics take a prediction beyond the limits for the limit; training never does, since such a
            prediction would have no gradient.
        seed: of the initial item vectors.
    """
    reconstruction = reconstruction or GradientSteps()
    module = MatrixFactorization(items, factors, mean, bias, torch.Generator().manual_seed(seed))
    start: Initial = Constant(0.0) if isinstance(reconstruction, Ridge) else Uniform(INITIAL_BOUND)
    smallest, largest = rating_limits

    def judged(metric: Callable[[Tensor, Tensors], Tensor]) -> Callable[[Tensor, Tensors], Tensor]:
        if not clamped:
            return metric
        return lambda prediction, targets: metric(prediction.clamp(smallest, largest), targets)

    return FederatedModel(
        name="matrix factorization",
        module=module,
        local={"user_vector": start} | ({"user_bias": Constant(0.0)} if bias else {}),
        fields=(
            Field("item", dtype=torch.int64, vocabulary=ITEMS),
            Field("rating", Role.TARGET, minimum=smallest, maximum=largest),
        ),
        loss=squared_error,
        metrics={
            "squared_error": Metric(judged(squared_error), bound=(largest - smallest) ** 2),
            "within_half": Metric(judged(within_half), bound=1.0),
            "examples": Metric(each_example, bound=1.0),
        },
        bounds={"item_vectors.weight": 0.5} | ({"item_biases.weight": 0.5} if bias else {}),
        vocabularies={"item_vectors.weight": ITEMS} | ({"item_biases.weight": ITEMS} if bias else {}),
        reconstruction=reconstruction,
        update_rate=Hyperparameter(update_rate, 0.0, max(1.0, update_rate)),
    )


def squared_error(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns (prediction - rating)^2 of every example."""
    return (prediction - targets["rating"]).square()


def within_half(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns 1 where the prediction is at most half a star off: the paper's accuracy."""
    return ((prediction - targets["rating"]).abs() <= 0.5).to(torch.float32)  # noqa: PLR2004 half a star is the definition


def each_example(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns 1 for every example: the count behind the other sums."""
    del targets
    return torch.ones_like(prediction)
