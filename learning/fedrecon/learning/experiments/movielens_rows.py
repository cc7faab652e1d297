"""The rows of the MovieLens tables: what the paper says, and the configuration behind ours.

Everything that was chosen is here, and was chosen on validation users alone; the round that is kept is chosen there
too, by early stopping. The defaults of `Federated` are the paper's own setting (section 5.1.1 and its published code):
client SGD 0.5, server SGD 1.0, reconstruction by up to 5 epochs of SGD 0.1 in batches of 5, at most 50 steps, one pass
over the query half, 100 clients a round, 50 factors, no biases.

Source: Singhal et al. 2021, Federated Reconstruction, tables 1 and 3 (arXiv 2102.03448).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from fedrecon.learning.baselines.central_als import CentralAls
from fedrecon.learning.baselines.central_sgd import CentralSgd
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Reconstruction, Ridge, Schedule


class Split(Enum):
    """How a training user's ratings become support and query; evaluations always take alternate batches."""

    ALTERNATE_BATCHES = "alternate batches"
    FRESH_HALVES = "halves drawn anew for every round"
    NONE = "no split"


class Server(Enum):
    """Server optimizers."""

    SGD = "sgd"
    ADAGRAD = "adagrad"


class Judged(Enum):
    """Whose ratings a row is judged on, and what it knows of them.

    `SEEN` is STANDARD EVAL: the newest tenth of each training user, whose vector was trained. `RECONSTRUCTED` is RECON
    EVAL: the query halves of unseen users, whose vectors are reconstructed on their support halves. `UNTRAINED`: all
    ratings of unseen users, whose vectors are still as drawn.
    """

    SEEN = "seen users"
    RECONSTRUCTED = "unseen users, reconstructed"
    UNTRAINED = "unseen users, not reconstructed"


@dataclass(frozen=True, slots=True)
class Federated:
    """Training by rounds; the defaults are the paper's.

    Attributes:
        factors: length of user and item vectors.
        mean: constant part of every prediction, in stars.
        bias: whether users and items have biases.
        reconstruction: how a user vector is found, in training and evaluation.
        split: of a training user's ratings.
        update_rate: of the device's SGD on the item table.
        update_steps: of the device's pass over the query half, at most.
        update_batch: ratings in a step of that pass; with all of them in one, every rating weighs alike.
        joint_rate: joint training: of SGD on the user vector during the update; None: it is frozen then.
        stateful: FedPer: user vectors are kept from round to round and trained with the item table, on all ratings.
        server: optimizer.
        server_rate: its rate.
        server_adaptivity: tau of Adagrad.
        decay: whether the server's rate falls to zero along a half cosine over `rounds`.
        cohort: devices in a round.
        rounds: at most.
        evaluate_every: rounds between looks at validation.
        patience: looks without a better figure after which it ends.
        members: item tables trained apart, each from a seed of its own, and joined into one of as many factors times
            this: ridge reconstruction then averages their kernels, which errs less than any of them.
        joined_reconstruction: of the joined table, which needs less of a pull; None: as its members'.
        clamped: whether predictions beyond the rating limits count as the limits.
    """

    factors: int = 50
    mean: float = 0.0
    bias: bool = False
    reconstruction: Reconstruction = field(default_factory=GradientSteps)
    split: Split = Split.ALTERNATE_BATCHES
    update_rate: float = 0.5
    update_steps: int = 50
    update_batch: int = 5
    joint_rate: float | None = None
    stateful: bool = False
    server: Server = Server.SGD
    server_rate: float = 1.0
    server_adaptivity: float = 1e-3
    decay: bool = False
    cohort: int = 100
    rounds: int = 3000
    evaluate_every: int = 50
    patience: int = 8
    members: int = 1
    joined_reconstruction: Ridge | None = None
    clamped: bool = False


Training = Federated | CentralSgd | CentralAls


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        name: as it is printed.
        training: how its parameters come about; rows with the same training and evaluation share one run.
        judged: how it is evaluated.
        paper_rmse: the paper's figure, in stars; None where it has no such row.
        paper_accuracy: the paper's share of predictions within half a star, in percent.
    """

    name: str
    training: Training
    judged: Judged = Judged.RECONSTRUCTED
    paper_rmse: float | None = None
    paper_accuracy: float | None = None


FEDAVG = Federated(split=Split.NONE, stateful=True, joint_rate=0.1)

# The configuration of the best row.
BEST = Federated(
    factors=20,
    mean=3.6,
    bias=True,
    reconstruction=Ridge("rating", Hyperparameter(8.0, 1.0, 1000.0)),
    split=Split.FRESH_HALVES,
    server=Server.ADAGRAD,
    server_rate=0.03,
    # Mean updates are small where a step takes the mean over all ratings of a half.
    server_adaptivity=5e-6,
    update_batch=300,
    cohort=400,
    rounds=1200,
    evaluate_every=100,
    patience=2,
    members=4,
    joined_reconstruction=Ridge("rating", Hyperparameter(6.5, 1.0, 1000.0)),
    clamped=True,
)

CENTRAL_SEEN = Row("centralised STANDARD", CentralSgd(rate=0.002), Judged.SEEN, 0.923, 43.2)
CENTRAL_UNSEEN = Row("centralised STANDARD (UNSEEN)", CentralSgd(rate=0.005), Judged.UNTRAINED, 3.80, 0.0)

TABLE_1 = (
    CENTRAL_SEEN,
    Row("centralised RECON", CentralSgd(rate=0.005), Judged.RECONSTRUCTED, 1.36, 40.8),
    Row("FedAvg STANDARD", replace(FEDAVG, update_rate=0.25, joint_rate=0.05), Judged.SEEN, 0.939, 41.5),
    Row("FedAvg RECON", FEDAVG, Judged.RECONSTRUCTED, 0.934, 40.0),
    Row("FedRecon SGD", Federated(update_rate=0.25, rounds=4000), paper_rmse=0.907, paper_accuracy=43.3),
    Row("FedRecon no split", Federated(split=Split.NONE, update_rate=0.1), paper_rmse=0.912, paper_accuracy=42.5),
    Row(
        "FedRecon joint",
        Federated(update_rate=0.25, joint_rate=0.1, rounds=4000),
        paper_rmse=0.915,
        paper_accuracy=42.1,
    ),
    Row(
        "FedRecon Adagrad",
        Federated(split=Split.FRESH_HALVES, server=Server.ADAGRAD, server_rate=0.05, rounds=6000),
        paper_rmse=0.883,
        paper_accuracy=44.1,
    ),
    Row("best", BEST),
)

TABLE_3 = (
    CENTRAL_SEEN,
    CENTRAL_UNSEEN,
    *TABLE_1[1:],
    Row("centralised ALS STANDARD", CentralAls(), Judged.SEEN),
    Row("centralised ALS RECON", CentralAls(), Judged.RECONSTRUCTED),
)

RECONSTRUCT_STEPS = (0, 1, 2, 5, 10)
UPDATE_STEPS = (1, 2, 5, 10)


def few_steps(reconstruct: int, update: int) -> Row:
    """Give the row of figure 3 with so many steps of each kind, in training and evaluation.

    Args:
        reconstruct: k_r, steps of 5 ratings on the user vector; 0 leaves it as it was drawn.
        update: k_u, steps of 5 ratings on the item table.
    """
    schedule = Schedule(batch_size=5, epochs=reconstruct, maximum_steps=reconstruct)
    training = Federated(reconstruction=GradientSteps(schedule=schedule), update_steps=update)
    return Row(f"k_r = {reconstruct}, k_u = {update}", training)


FIGURE_4 = tuple(row for row in TABLE_1 if row.name.startswith("FedRecon") or row.name == "best")
