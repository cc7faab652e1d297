"""Rounds: cohorts drawn, their updates averaged, the server optimizer applied, the best checkpoint kept.

Pure but for checkpoints on disk and progress on the terminal. Whatever is drawn is addressed by seed and round, so a
run that is resumed goes on as if it had not stopped, and equal seeds give equal runs.

The server optimizers are the aggregator's own, so simulation and service share one arithmetic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrecon.aggregator.optimizers import from_message
from fedrecon.device_sdk.files import write_atomically
from fedrecon.learning.simulation.cohorts import CohortSum, Simulator
from fedrecon.learning.simulation.evaluation import Evaluation, evaluate
from fedrecon.learning.simulation.examples import ClientExamples, Positions
from fedrecon.learning.simulation.steps import Named
from fedrecon.v1.task_pb2 import ServerOptimizer
from fedrecon.wire.tensors import read_safetensors, write_safetensors

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Training:
    """How rounds go.

    Attributes:
        optimizer: how mean updates become new parameters.
        cohort_size: clients in a round.
        rounds: how many at most.
        seed: of everything that is drawn.
        rates: round number, from 1 -> factor of the server's rate; None for a constant rate.
        stateful: whether clients keep their local parameters from round to round (FedPer; no device does).
        evaluate_every: rounds between evaluations.
        patience: evaluations without a better one after which training ends; 0 for none.
    """

    optimizer: ServerOptimizer
    cohort_size: int
    rounds: int
    seed: int = 0
    rates: Callable[[int], float] | None = None
    stateful: bool = False
    evaluate_every: int = 50
    patience: int = 0


@dataclass(frozen=True, slots=True)
class Validation:
    """What decides which checkpoint is the best.

    Attributes:
        simulator: the model, and how it is evaluated.
        clients: whom it is asked of.
        loss: what shall be small.
        local_parameters: of stateful training: whether kept local parameters are scored, instead of reconstructed.
    """

    simulator: Simulator
    clients: ClientExamples
    loss: Callable[[Evaluation], float]
    keeps_locals: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation.

    Attributes:
        round: after which round.
        loss: what validation gave.
        metrics: pooled means of all metrics.
    """

    round: int
    loss: float
    metrics: Mapping[str, float]


@dataclass(slots=True, eq=False)
class Trained:
    """What training came to.

    Attributes:
        global_parameters: of the best evaluation; of the last round where nothing was evaluated.
        best_round: their round.
        history: every evaluation.
        dropped: clients that did not count, since a number was not finite.
        local_parameters: of stateful training, of all clients at `best_round`, `[clients, ...]`.
    """

    global_parameters: Named
    best_round: int = 0
    history: list[Point] = field(default_factory=list)
    dropped: int = 0
    local_parameters: Named = field(default_factory=dict)


def train(
    simulator: Simulator,
    clients: ClientExamples,
    training: Training,
    validation: Validation | None = None,
    *,
    progress: Callable[[int, Sequence[Point]], None] | None = None,
    checkpoints: Path | None = None,
) -> Trained:
    """Trains the global parameters of a model, from those of its module.

    Args:
        simulator: the model, and what a device does.
        clients: who may take part: those with at least the work's `minimum_examples`.
        training: how rounds go.
        validation: what decides; without it the last round's parameters are the result.
        progress: called after every round with its number and the evaluations so far.
        checkpoints: folder for the state after every evaluation; a run that finds its own state there goes on.

    Raises:
        ValueError: there are fewer eligible clients than a cohort, or the folder holds another run.
    """
    rounds = Rounds.begin(simulator, clients, training)
    trained = Trained(rounds.tensors(), local_parameters=_copied(rounds.local_parameters))
    path = None if checkpoints is None else checkpoints / "training.safetensors"
    if path is not None and path.exists():
        trained = _restore(rounds, path.read_bytes())
    while rounds.number < training.rounds and not _is_over(trained, rounds):
        rounds.advance()
        if rounds.number % training.evaluate_every == 0 or rounds.number == training.rounds:
            _look(trained, rounds, validation)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, _content(trained, rounds))
        if progress is not None:
            progress(rounds.number, trained.history)
    trained.dropped = rounds.dropped
    return trained


@dataclass(slots=True, eq=False)
class Rounds:
    """Rounds under way.

    Attributes:
        simulator: the model, and what a device does.
        clients: whose examples count.
        training: how rounds go.
        eligible: who may take part.
        number: the last round, 0 before the first.
        parameters: the checkpoint, by name.
        state: of the server optimizer.
        local_parameters: of stateful training, of all clients, `[clients, ...]`.
        dropped: clients that did not count so far, since a number was not finite.
    """

    simulator: Simulator
    clients: ClientExamples
    training: Training
    eligible: Positions
    number: int
    parameters: Arrays
    state: Arrays
    local_parameters: Named
    dropped: int = 0

    @classmethod
    def begin(cls, simulator: Simulator, clients: ClientExamples, training: Training) -> Rounds:
        """Returns rounds before the first, from the parameters of the model's module.

        Raises:
            ValueError: there are fewer eligible clients than a cohort.
        """
        work = simulator.work
        if work.maximum_examples:
            clients = clients.newest(work.maximum_examples)
        least = max(work.minimum_examples, 1)
        eligible = np.flatnonzero(clients.counts >= least)
        if len(eligible) < training.cohort_size:
            raise ValueError(
                f"a cohort of {training.cohort_size} needs as many clients; {len(eligible)} have at least {least} "
                "examples"
            )
        parameters = {name: value.cpu().numpy().copy() for name, value in simulator.model.global_parameters.items()}
        kept: Named = {}
        if training.stateful:
            start = {name: torch.from_numpy(value) for name, value in parameters.items()}
            kept = simulator.initial_locals(start, len(clients), _generator(training.seed, 0))
        state: Arrays = dict(from_message(training.optimizer).init(parameters))
        return cls(simulator, clients, training, eligible, 0, parameters, state, kept)

    def tensors(self) -> Named:
        """Returns the checkpoint as tensors."""
        return {name: torch.from_numpy(value).to(self.simulator.device) for name, value in self.parameters.items()}

    def advance(self) -> None:
        """Runs one round."""
        generator = _generator(self.training.seed, self.number + 1)
        cohort = generator.choice(self.eligible, self.training.cohort_size, replace=False)
        rows = torch.from_numpy(cohort)
        kept = {name: value[rows] for name, value in self.local_parameters.items()}
        total = self.simulator.run(self.tensors(), self.clients, cohort, self.number + 1, generator, kept)
        for name, value in self.local_parameters.items():
            value[rows] = total.local_parameters[name]
        self.dropped += total.dropped
        self.number += 1
        self.apply(total)

    def apply(self, total: CohortSum) -> None:
        """Applies the server optimizer to what a cohort made; nothing changes if no client counts."""
        if not total.weight:
            return
        optimizer = ServerOptimizer()
        optimizer.CopyFrom(self.training.optimizer)
        optimizer.rate *= 1.0 if self.training.rates is None else self.training.rates(self.number)
        means = {
            name: np.divide(value.cpu().numpy(), total.weight, dtype=np.float64)
            for name, value in total.updates.items()
        }
        after, state = from_message(optimizer).update(means, self.state, self.parameters)
        self.parameters, self.state = dict(after), dict(state)

    def identity(self) -> str:
        """Returns what tells these rounds from others: model, work, optimizer, cohort, seed and data."""
        digest = hashlib.sha256()
        for part in (
            self.simulator.model.name,
            sorted(self.simulator.model.hyperparameters.items()),
            self.simulator.work.SerializeToString(deterministic=True),
            self.training.optimizer.SerializeToString(deterministic=True),
            (self.training.cohort_size, self.training.seed, self.training.stateful),
            self.clients.offsets.tobytes(),
        ):
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
        for value in self.simulator.model.global_parameters.values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()


def _is_over(trained: Trained, rounds: Rounds) -> bool:
    """Returns whether evaluations have not improved for too long."""
    training = rounds.training
    if not training.patience or not trained.history:
        return False
    return rounds.number - trained.best_round >= training.patience * training.evaluate_every


def _look(trained: Trained, rounds: Rounds, validation: Validation | None) -> None:
    """Evaluates, and keeps the parameters if they are the best."""
    best = min((point.loss for point in trained.history), default=float("inf"))
    if validation is not None:
        evaluation = evaluate(
            validation.simulator,
            rounds.tensors(),
            validation.clients,
            rounds.training.seed,
            local_parameters=rounds.local_parameters if validation.keeps_locals else None,
        )
        loss = validation.loss(evaluation)
        trained.history.append(Point(rounds.number, loss, {name: evaluation.mean(name) for name in evaluation.sums}))
        if not loss < best:
            return
    trained.global_parameters = _copied(rounds.tensors())
    trained.local_parameters = _copied(rounds.local_parameters)
    trained.best_round = rounds.number


def _content(trained: Trained, rounds: Rounds) -> bytes:
    """Returns rounds under way and their best checkpoint as one file."""
    about = {
        "identity": rounds.identity(),
        "round": rounds.number,
        "best_round": trained.best_round,
        "dropped": rounds.dropped,
        "history": [[point.round, point.loss, dict(point.metrics)] for point in trained.history],
    }
    groups: dict[str, Mapping[str, Any]] = {
        "parameter": rounds.parameters,
        "state": rounds.state,
        "local": rounds.local_parameters,
        "best": trained.global_parameters,
        "best_local": trained.local_parameters,
    }
    arrays = {f"{group}/{name}": np.asarray(value) for group, its in groups.items() for name, value in its.items()}
    return write_safetensors({**arrays, "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)})


def _restore(rounds: Rounds, content: bytes) -> Trained:
    """Brings rounds to where a file left them, and returns what training had come to.

    Raises:
        ValueError: the file is of other rounds.
    """
    arrays = read_safetensors(content)
    about = json.loads(arrays.pop("about").tobytes())
    if about["identity"] != rounds.identity():
        raise ValueError("the checkpoint folder holds another training: choose another one, or remove its content")
    groups: dict[str, Arrays] = {}
    for path, array in arrays.items():
        group, name = path.split("/", 1)
        groups.setdefault(group, {})[name] = np.array(array)
    rounds.number = about["round"]
    rounds.dropped = about["dropped"]
    rounds.parameters = groups["parameter"]
    rounds.state = groups.get("state", {})
    rounds.local_parameters = _tensors(groups.get("local", {}))
    return Trained(
        _tensors(groups["best"]),
        about["best_round"],
        [Point(number, loss, metrics) for number, loss, metrics in about["history"]],
        about["dropped"],
        _tensors(groups.get("best_local", {})),
    )


def _copied(tensors: Named) -> Named:
    return {name: value.clone() for name, value in tensors.items()}


def _tensors(arrays: Arrays) -> Named:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _generator(seed: int, round_number: int) -> np.random.Generator:
    """Returns the generator of one round."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, round_number]))
