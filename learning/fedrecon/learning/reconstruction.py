"""How the local parameters of a model are found from a device's own examples.

Two algorithms stand behind one seam, `FederatedModel.reconstruction`:

- `GradientSteps`: gradient steps over batches of the support set, as in Algorithm 1 of Singhal et al. 2021 (Federated
  Reconstruction, arXiv 2102.03448). Works for every model.
- `Ridge`: for models whose score is linear in the local parameters, the exact minimiser of
  sum of (score - target)^2 + ridge * |local - initial|^2 over the support set, with no schedule. It is pulled
  towards the *initial* local parameters, so that an empty support set leaves them as they are. With a `background`
  every example adds its own to the sum: weighted ridge over all rows of a table, for implicit feedback.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedrecon.learning.background import Background
from fedrecon.learning.client_optimizers import ClientOptimizer, Sgd

RECONSTRUCT_RATE = "reconstruct.rate"
RECONSTRUCT_RIDGE = "reconstruct.ridge"
UPDATE_RATE = "update.rate"
UPDATE_LOCAL_RATE = "update.local_rate"


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A number that steers a graph: its value where a task sets none, and the limits within which it is verified.

    Raises:
        ValueError: the limits are not finite, or the default lies outside them.
    """

    default: float
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum)):
            raise ValueError(f"limits [{self.minimum}, {self.maximum}] of a hyperparameter must be finite")
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(
                f"default {self.default} of a hyperparameter lies outside [{self.minimum}, {self.maximum}]"
            )


@dataclass(frozen=True, slots=True)
class Schedule:
    """How examples become the batches of steps where a task says nothing.

    Attributes:
        batch_size: examples in a batch, at least 1.
        epochs: passes over the examples.
        maximum_steps: steps after which it ends whatever the epochs; 0 for no limit.
    """

    batch_size: int
    epochs: int
    maximum_steps: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs < 0 or self.maximum_steps < 0:
            raise ValueError(
                f"schedule of batches of {self.batch_size}, {self.epochs} epochs, at most {self.maximum_steps} steps: "
                "batches need at least 1 example and the other two must not be negative"
            )


@dataclass(frozen=True, slots=True)
class GradientSteps:
    """Reconstruction by gradient steps over batches of the support set.

    The defaults are those of the paper's MovieLens experiments: SGD of rate 0.1, batches of 5, at most 50 steps of up
    to 5 epochs.

    Attributes:
        rate: rate of the steps.
        schedule: batches, epochs and step limit.
        optimizer: how parameters follow their gradients.
    """

    rate: Hyperparameter = field(default_factory=lambda: Hyperparameter(0.1, 0.0, 0.25))
    schedule: Schedule = field(default_factory=lambda: Schedule(batch_size=5, epochs=5, maximum_steps=50))
    optimizer: ClientOptimizer = field(default_factory=Sgd)


@dataclass(frozen=True, slots=True)
class Ridge:
    """Reconstruction in closed form, by conjugate gradient on the normal equations, for linear local parameters.

    Attributes:
        target: field that the score (`FederatedModel.scores`) shall come close to.
        ridge: weight of the squared distance from the initial local parameters.
        most_steps: of conjugate gradient with a diagonal preconditioner. It ends by itself when float32 does: after a
            dozen steps where the ridge is 5, after some more than there are local parameters where it is very small.
        background: what every example says of all rows of a table, part of the model's loss as well; None where
            examples speak only for themselves.
    """

    target: str
    ridge: Hyperparameter = field(default_factory=lambda: Hyperparameter(5.0, 1.0, 1000.0))
    most_steps: int = 200
    background: Background | None = None

    def __post_init__(self) -> None:
        if self.most_steps < 1:
            raise ValueError(f"ridge reconstruction needs at least 1 step, not {self.most_steps}")
        if self.ridge.minimum <= 0:
            raise ValueError(
                f"the smallest ridge must be positive, not {self.ridge.minimum}: "
                "with none, few examples have no unique answer"
            )


Reconstruction = GradientSteps | Ridge
