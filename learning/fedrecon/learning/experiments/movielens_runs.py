"""How one row of the MovieLens experiments is trained, stopped and judged.

Every row, centralised or federated, ends as the same thing, a `Run`: a federated model with global parameters and,
where users were trained on, their local ones. So all rows are judged by one function, on validation and on test users
alike, and a figure on validation means what the one on test users means.

Rules: a run sees training users to learn from and validation to stop by, nothing else; what is stopped by is what the
row is judged by (`Judged`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.baselines.central_als import CentralAls, fit_by_als
from fedrecon.learning.baselines.central_sgd import CentralSgd, fit_by_sgd
from fedrecon.learning.baselines.factors import Factors, observations_of
from fedrecon.learning.experiments.movielens_models import Simulators, optimizer_of
from fedrecon.learning.experiments.movielens_rows import Federated, Judged, Training
from fedrecon.learning.experiments.protocol import Clients, Protocol
from fedrecon.learning.reconstruction import Hyperparameter, Ridge
from fedrecon.learning.simulation.cohorts import Simulator
from fedrecon.learning.simulation.evaluation import Evaluation, evaluate
from fedrecon.learning.simulation.examples import ClientExamples
from fedrecon.learning.simulation.training import Training as Rounds
from fedrecon.learning.simulation.training import Validation, train

ITEM_VECTORS, ITEM_BIASES = "item_vectors.weight", "item_biases.weight"
USER_VECTOR, USER_BIAS = "user_vector", "user_bias"

Progress = Callable[[int, int, str], None]
"""(done, most, what is said): rounds or sweeps of a run."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured.

    Attributes:
        rmse: root of the pooled mean of squared errors, in stars.
        accuracy: share of predictions at most half a star off, in percent.
    """

    rmse: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Point:
    """Figures on validation after a round or sweep."""

    round: int
    figures: Figures


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Users and ratings that figures are taken on: those of validation, or of the test.

    Attributes:
        unseen: users never trained on.
        seen: newer ratings of the training users, in their order.
    """

    unseen: ClientExamples
    seen: ClientExamples


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """The open users of a protocol as the simulation takes them, once for all runs.

    Attributes:
        protocol: whose users they are.
        train: training users, all kept ratings.
        seen: training users, their older ratings.
        validation: what figures on validation are taken on.
    """

    protocol: Protocol
    train: ClientExamples
    seen: ClientExamples
    validation: Part


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What one training came to.

    Attributes:
        simulator: the model, and how it is evaluated.
        global_parameters: by name.
        local_parameters: of the training users, `[users, ...]`, by name; empty where none are kept.
        best: the round or sweep that is kept.
        curve: figures on validation along the way.
        seconds: that it took.
        bytes_each_way: that one client downloads in a round, and as many that it uploads; None where ratings travel.
    """

    simulator: Simulator
    global_parameters: Mapping[str, Tensor]
    local_parameters: Mapping[str, Tensor]
    best: int
    curve: tuple[Point, ...]
    seconds: float
    bytes_each_way: int | None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {**self.global_parameters, **{f"local/{name}": value for name, value in self.local_parameters.items()}}


def part_of(unseen: Clients, seen: Clients) -> Part:
    """Give users and ratings as the simulation takes them."""
    return Part(ClientExamples.from_clients(unseen), ClientExamples.from_clients(seen))


def opened_of(protocol: Protocol) -> Opened:
    """Give the open users of a protocol."""
    return Opened(
        protocol,
        ClientExamples.from_clients(protocol.train),
        ClientExamples.from_clients(protocol.seen.train),
        part_of(protocol.validation, protocol.seen.validation),
    )


def figures_of(evaluation: Evaluation) -> Figures:
    """Give the pooled figures of an evaluation."""
    return Figures(math.sqrt(evaluation.mean("squared_error")), 100.0 * evaluation.mean("within_half"))


def judge(run: Run, judged: Judged, part: Part, seed: int) -> Figures:
    """Evaluate a run.

    Args:
        run: what is judged.
        judged: on whose ratings, and whether their vectors are trained, reconstructed or left as drawn.
        part: users and ratings.
        seed: of user vectors as drawn.
    """
    locals_: Mapping[str, Tensor] | None = None
    match judged:
        case Judged.SEEN:
            locals_ = run.local_parameters
        case Judged.UNTRAINED:
            drawn = np.random.default_rng(seed)
            locals_ = run.simulator.initial_locals(run.global_parameters, len(part.unseen), drawn)
        case Judged.RECONSTRUCTED:
            pass
    clients = part.seen if judged is Judged.SEEN else part.unseen
    return figures_of(evaluate(run.simulator, run.global_parameters, clients, seed, local_parameters=locals_))


def run_training(
    training: Training, judged: Judged, opened: Opened, seed: int, simulators: Simulators, progress: Progress
) -> Run:
    """Train one row.

    Args:
        training: its configuration.
        judged: what it will be judged by, and is stopped by on validation.
        opened: the users it sees.
        seed: of everything that is drawn.
        simulators: of the experiment.
        progress: told after every round or sweep.
    """
    begin = time.monotonic()
    if isinstance(training, Federated) and training.members > 1:
        run = _run_members(training, judged, opened, seed, simulators, progress)
    elif isinstance(training, Federated):
        run = _run_rounds(training, judged, opened, seed, simulators, progress)
    else:
        run = _run_sweeps(training, judged, opened, seed, simulators, progress)
    return replace(run, seconds=time.monotonic() - begin)


def _run_members(
    training: Federated, judged: Judged, opened: Opened, seed: int, simulators: Simulators, progress: Progress
) -> Run:
    """Trains item tables apart and joins them: vectors side by side, divided by the root of how many, biases averaged.

    Predictions of the joined table are ridge regressions under the mean of the members' kernels.
    """
    count = training.members
    alone = replace(training, members=1)
    total = training.rounds * count

    def member(number: int) -> Run:
        def told(done: int, _: int, said: str) -> None:
            progress(number * training.rounds + done, total, said)

        return _run_rounds(alone, judged, opened, seed * count + number, simulators, told)

    runs = [member(number) for number in range(count)]
    tables = [run.global_parameters for run in runs]
    joined = {
        ITEM_VECTORS: torch.cat([each[ITEM_VECTORS] for each in tables], dim=1) / math.sqrt(count),
        ITEM_BIASES: torch.stack([each[ITEM_BIASES] for each in tables]).mean(0),
    }
    reconstruction = training.joined_reconstruction or training.reconstruction
    together = replace(alone, factors=training.factors * count, reconstruction=reconstruction)
    judging = simulators.of(together, seed, evaluates=True)
    last = max(run.best for run in runs)
    run = Run(judging, joined, {}, last, (), seconds=0.0, bytes_each_way=runs[0].bytes_each_way)
    return replace(run, curve=(*runs[0].curve, Point(last, judge(run, judged, opened.validation, seed))))


def _run_rounds(
    training: Federated, judged: Judged, opened: Opened, seed: int, simulators: Simulators, progress: Progress
) -> Run:
    """Trains by rounds of federated reconstruction, or of federated averaging where users keep their vectors."""
    judging = simulators.of(training, seed, evaluates=True)
    seen = judged is Judged.SEEN
    trained = train(
        simulators.of(training, seed, evaluates=False),
        opened.seen if seen else opened.train,
        Rounds(
            optimizer_of(training),
            cohort_size=training.cohort,
            rounds=training.rounds,
            seed=seed,
            rates=_half_cosine(training.rounds) if training.decay else _constant,
            stateful=training.stateful,
            evaluate_every=training.evaluate_every,
            patience=training.patience,
        ),
        Validation(
            judging,
            opened.validation.seen if seen else opened.validation.unseen,
            loss=lambda evaluation: figures_of(evaluation).rmse,
            keeps_locals=seen,
        ),
        progress=lambda done, history: progress(
            done, training.rounds, f"RMSE {history[-1].loss:.4f}" if history else ""
        ),
    )
    curve = tuple(
        Point(each.round, Figures(each.loss, 100.0 * each.metrics["within_half"])) for each in trained.history
    )
    return Run(
        judging,
        trained.global_parameters,
        trained.local_parameters,
        trained.best_round,
        curve,
        seconds=0.0,
        bytes_each_way=sum(value.numel() * value.element_size() for value in trained.global_parameters.values()),
    )


def _run_sweeps(
    training: CentralSgd | CentralAls,
    judged: Judged,
    opened: Opened,
    seed: int,
    simulators: Simulators,
    progress: Progress,
) -> Run:
    """Fits factors to all ratings in one place."""
    clients = opened.protocol.seen.train if judged is Judged.SEEN else opened.protocol.train
    observations = observations_of(clients)
    mean = float(observations.ratings.double().mean()) if isinstance(training, CentralAls) else 0.0
    judging = simulators.of(_reconstructing(training, mean), seed, evaluates=True)
    curve: list[Point] = []

    def run_of(factors: Factors) -> Run:
        shared = {ITEM_VECTORS: factors.item_vectors}
        own = {USER_VECTOR: factors.user_vectors}
        if isinstance(training, CentralAls):
            shared[ITEM_BIASES] = factors.item_biases[:, None]
            own[USER_BIAS] = factors.user_biases
        return Run(judging, shared, own, 0, (), seconds=0.0, bytes_each_way=None)

    def score(factors: Factors) -> float:
        # An unseen user whose vector is left as drawn says nothing about a sweep: RECON EVAL decides there, too.
        by = Judged.SEEN if judged is Judged.SEEN else Judged.RECONSTRUCTED
        curve.append(Point(len(curve) + 1, judge(run_of(factors), by, opened.validation, seed)))
        progress(len(curve), training.sweeps, f"RMSE {curve[-1].figures.rmse:.4f}")
        return curve[-1].figures.rmse

    if isinstance(training, CentralAls):
        fitted = fit_by_als(observations, len(clients), simulators.items, training, seed, score)
    else:
        fitted = fit_by_sgd(observations, len(clients), simulators.items, training, seed, score)
    return replace(run_of(fitted.factors), best=fitted.best_sweep, curve=tuple(curve))


def _reconstructing(training: CentralSgd | CentralAls, mean: float) -> Federated:
    """Returns the model that centralised factors are put into: its reconstruction is the one they were fitted by."""
    if isinstance(training, CentralSgd):
        return Federated(factors=training.factors)
    ridge = Ridge("rating", Hyperparameter(training.ridge, 1.0, 1000.0))
    return Federated(factors=training.factors, mean=mean, bias=True, reconstruction=ridge)


def _constant(_: int) -> float:
    return 1.0


def _half_cosine(rounds: int) -> Callable[[int], float]:
    """Returns round number, from 1 -> a factor that falls from 1 to 0."""
    return lambda number: 0.5 * (1.0 + math.cos(math.pi * (number - 1) / rounds))
