"""The background of implicit feedback: what a user did not choose counts a little, all of it together.

Where users only ever say yes, a model that says yes to everything fits perfectly. So every example also pulls the
score of *every* row of a table to 0, faintly, whether the user knows the row or not:

    loss of an example  =  its own loss  +  weight * mean over all rows j of <row_j, local>^2

Rules: the weight is per example, not per user, so that a batch, a client and a cohort weigh it alike, whatever means
they take: a client with n examples has n times the background. Its curvature, weight * rows^T rows / number of rows,
is the Gram matrix of public parameters: the same for all users, and never formed pair by pair. The price: every row
has a gradient, so the table is reported whole, not only the rows that a device touches.

Source: Hu, Koren and Volinsky 2008, Collaborative Filtering for Implicit Feedback Datasets; the form with all pairs
in the background is that of Rendle et al. 2021, Revisiting the Performance of iALS on Item Recommendation Benchmarks
(arXiv 2110.14037). In theirs every user has the same background; on the validation users of MovieLens 1M both rank
alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Background:
    """Every example pulls the score of every row to 0.

    Attributes:
        rows: the global parameter whose rows are all there is to choose, `[rows, width]`.
        local: the local parameter that a row is multiplied with to give its score, `[width]`.
        weight: of the mean over all rows of the squared score, where an example's own loss has 1.

    Raises:
        ValueError: the weight is not positive and finite.

    Example:
        >>> background = Background("items", "user", weight=4.0)
        >>> parameters = {"items": torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "user": torch.tensor([1.0, 2.0])}
        >>> background.loss(parameters)
        tensor(20.)
        >>> background.precision(parameters, {"user": 2})
        tensor([[4., 2.],
                [2., 2.]])
    """

    rows: str
    local: str
    weight: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight of a background must be positive and finite, not {self.weight}")

    def loss(self, parameters: Tensors) -> Tensor:
        """Returns what is added to the loss of every example, a scalar.

        Args:
            parameters: global and local, by name.
        """
        rows = parameters[self.rows]
        return self.weight * (rows @ parameters[self.local]).square().sum() / _count(rows)

    def precision(self, parameters: Tensors, widths: Mapping[str, int]) -> Tensor:
        """Returns A with loss = x^T A x, `[width, width]`, x being all local parameters one after the other.

        Args:
            parameters: global ones, by name.
            widths: numbers in each local parameter, in the order in which they lie in x.
        """
        rows = parameters[self.rows]
        gram = (self.weight / _count(rows)) * (rows.T @ rows)
        names = list(widths)
        before = sum(widths[name] for name in names[: names.index(self.local)])
        after = sum(widths.values()) - before - widths[self.local]
        return torch.nn.functional.pad(gram, (before, after, before, after))


def _count(rows: Tensor) -> Tensor:
    """Returns the number of rows as a tensor, at least 1: in a plan it varies, and none must not divide by 0."""
    return torch.ones_like(rows[:, 0]).sum().clamp(min=1.0)
