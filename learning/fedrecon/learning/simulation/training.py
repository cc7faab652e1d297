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
from fedrecon.learning.simulation.cohorts import Simulator
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
    work = simulator.work
    if work.maximum_examples:
        clients = clients.newest(work.maximum_examples)
    eligible = np.flatnonzero(clients.counts >= max(work.minimum_examples, 1))
    if len(eligible) < training.cohort_size:
        raise ValueError(
            f"a cohort of {training.cohort_size} needs as many clients; {len(eligible)} have at least "
            f"{max(work.minimum_examples, 1)} examples"
        )
    run = _Run.begin(simulator, clients, training)
    path = None if checkpoints is None else checkpoints / "training.safetensors"
    if path is not None and path.exists():
        run.restore(path.read_bytes(), _identity(simulator, clients, training))
    while run.round < training.rounds and not run.is_over(training):
        run.advance(simulator, clients, eligible, training)
        if run.round % training.evaluate_every == 0 or run.round == training.rounds:
            run.look(validation, training.seed)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, run.content(_identity(simulator, clients, training)))
        if progress is not None:
            progress(run.round, run.best.history)
    return run.best


@dataclass(slots=True, eq=False)
class _Run:
    """A training under way."""

    round: int
    parameters: Arrays
    state: Arrays
    locals_: Named
    best: Trained
    best_loss: float = float("inf")

    @classmethod
    def begin(cls, simulator: Simulator, clients: ClientExamples, training: Training) -> _Run:
        parameters = {name: value.numpy().copy() for name, value in simulator.model.global_parameters.items()}
        start = {name: torch.from_numpy(value) for name, value in parameters.items()}
        locals_: Named = {}
        if training.stateful:
            locals_ = simulator.initial_locals(start, len(clients), _generator(training.seed, 0))
        state: Arrays = dict(from_message(training.optimizer).init(parameters))
        return cls(0, parameters, state, locals_, Trained(start, local_parameters=locals_))

    def tensors(self, device: torch.device) -> Named:
        return {name: torch.from_numpy(value).to(device) for name, value in self.parameters.items()}

    def advance(self, simulator: Simulator, clients: ClientExamples, eligible: Positions, training: Training) -> None:
        """Runs one round."""
        generator = _generator(training.seed, self.round + 1)
        cohort = generator.choice(eligible, training.cohort_size, replace=False)
        rows = torch.from_numpy(cohort)
        kept = {name: value[rows] for name, value in self.locals_.items()}
        parameters = self.tensors(simulator.device)
        total = simulator.run(parameters, clients, cohort, self.round + 1, generator, kept)
        for name, value in self.locals_.items():
            value[rows] = total.local_parameters[name]
        self.best.dropped += total.dropped
        self.round += 1
        if total.weight:
            optimizer = ServerOptimizer()
            optimizer.CopyFrom(training.optimizer)
            optimizer.rate *= 1.0 if training.rates is None else training.rates(self.round)
            updates = {
                name: np.divide(value.cpu().numpy(), total.weight, dtype=np.float64)
                for name, value in total.updates.items()
            }
            after, state = from_message(optimizer).update(updates, self.state, self.parameters)
            self.parameters, self.state = dict(after), dict(state)

    def look(self, validation: Validation | None, seed: int) -> None:
        """Evaluates, and keeps the parameters if they are the best."""
        if validation is None:
            self.keep()
            return
        simulator = validation.simulator
        evaluation = evaluate(
            simulator,
            self.tensors(simulator.device),
            validation.clients,
            seed,
            local_parameters=self.locals_ if validation.keeps_locals else None,
        )
        loss = validation.loss(evaluation)
        self.best.history.append(Point(self.round, loss, {name: evaluation.mean(name) for name in evaluation.sums}))
        if loss < self.best_loss:
            self.best_loss = loss
            self.keep()

    def keep(self) -> None:
        self.best.global_parameters = {name: torch.from_numpy(value.copy()) for name, value in self.parameters.items()}
        self.best.local_parameters = {name: value.clone() for name, value in self.locals_.items()}
        self.best.best_round = self.round

    def is_over(self, training: Training) -> bool:
        """Returns whether evaluations have not improved for too long."""
        if not training.patience or not self.best.history:
            return False
        return self.round - self.best.best_round >= training.patience * training.evaluate_every

    def content(self, identity: str) -> bytes:
        """Returns all of it as one file."""
        about = {
            "identity": identity,
            "round": self.round,
            "best_round": self.best.best_round,
            "dropped": self.best.dropped,
            "history": [[each.round, each.loss, dict(each.metrics)] for each in self.best.history],
        }
        groups: dict[str, Mapping[str, Any]] = {
            "parameter": self.parameters,
            "state": self.state,
            "local": self.locals_,
            "best": self.best.global_parameters,
            "best_local": self.best.local_parameters,
        }
        arrays = {f"{group}/{name}": np.asarray(value) for group, its in groups.items() for name, value in its.items()}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).astype(np.int32)
        return write_safetensors(arrays)

    def restore(self, content: bytes, identity: str) -> None:
        """Goes on from a file.

        Raises:
            ValueError: it is of another run.
        """
        arrays = read_safetensors(content)
        about = json.loads(arrays.pop("about").astype(np.uint8).tobytes())
        if about["identity"] != identity:
            raise ValueError("the checkpoint folder holds another training: choose another one, or remove its content")
        groups: dict[str, Arrays] = {}
        for path, array in arrays.items():
            group, name = path.split("/", 1)
            groups.setdefault(group, {})[name] = np.array(array)
        self.round = about["round"]
        self.parameters = groups["parameter"]
        self.state = groups.get("state", {})
        self.locals_ = _tensors(groups.get("local", {}))
        history = [Point(number, loss, metrics) for number, loss, metrics in about["history"]]
        self.best = Trained(
            _tensors(groups["best"]),
            about["best_round"],
            history,
            about["dropped"],
            _tensors(groups.get("best_local", {})),
        )
        self.best_loss = min((each.loss for each in history), default=float("inf"))


def _tensors(arrays: Arrays) -> Named:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _generator(seed: int, round_number: int) -> np.random.Generator:
    """Returns the generator of one round."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, round_number]))


def _identity(simulator: Simulator, clients: ClientExamples, training: Training) -> str:
    """Returns what tells this training from others: model, work, optimizer, cohort, seed and data."""
    digest = hashlib.sha256()
    for part in (
        simulator.model.name,
        sorted(simulator.model.hyperparameters.items()),
        simulator.work.SerializeToString(deterministic=True),
        training.optimizer.SerializeToString(deterministic=True),
        (training.cohort_size, training.seed, training.stateful),
        clients.offsets.tobytes(),
    ):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    for value in simulator.model.global_parameters.values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
