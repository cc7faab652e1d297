"""Rounds of the simulation: deterministic, resumable, stopped early, and safe from clients that diverge."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.reconstruction import Hyperparameter, Ridge
from fedrecon.learning.simulation import ClientExamples, Evaluation, Simulator, Training, Validation, evaluate, train
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork, ServerOptimizer

ITEMS = 30
adagrad = ServerOptimizer(rule=task_pb2.OPTIMIZER_RULE_ADAGRAD, rate=0.1, adaptivity=1e-3)
halves = LocalWork(
    split=task_pb2.SPLIT_RULE_BY_FRACTION, support_fraction=0.5, update_schedule=Schedule(batch_size=5, epochs=1)
)
model = matrix_factorization(ITEMS, 3, mean=3.5, bias=True, reconstruction=Ridge("rating"), update_rate=0.2, seed=1)


def clients(count: int, seed: int) -> ClientExamples:
    """Users with tastes along two directions."""
    generator = np.random.default_rng(seed)
    taste = np.random.default_rng(0).standard_normal((ITEMS, 2))
    made = []
    for _ in range(count):
        items = generator.choice(ITEMS, generator.integers(6, 20), replace=False)
        ratings = np.clip(3.5 + taste[items] @ generator.standard_normal(2), 1, 5)
        made.append({"item": items, "rating": ratings.astype(np.float32)})
    return ClientExamples.from_clients(made)


def loss(evaluation: Evaluation) -> float:
    return math.sqrt(evaluation.mean("squared_error"))


def simulator() -> Simulator:
    return Simulator(model, halves, compiled=False)


validation = Validation(
    Simulator(
        model,
        LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES, update_schedule=Schedule(batch_size=5, epochs=1)),
        compiled=False,
    ),
    clients(20, 2),
    loss,
)


def test_training_learns_and_keeps_the_best_checkpoint() -> None:
    result = train(simulator(), clients(60, 1), Training(adagrad, 20, 60, evaluate_every=10), validation)
    losses = [point.loss for point in result.history]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    assert result.best_round == result.history[int(np.argmin(losses))].round
    again = loss(evaluate(validation.simulator, result.global_parameters, validation.clients))
    assert again == pytest.approx(min(losses))


def test_equal_seeds_give_equal_runs() -> None:
    runs = [train(simulator(), clients(60, 1), Training(adagrad, 20, 5, seed=seed)) for seed in (7, 7, 8)]
    first, same, other = (run.global_parameters["item_vectors.weight"] for run in runs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_resumed_run_is_the_run_that_did_not_stop(tmp_path: Path) -> None:
    whole = train(simulator(), clients(60, 1), Training(adagrad, 20, 20, evaluate_every=5), validation)
    train(simulator(), clients(60, 1), Training(adagrad, 20, 10, evaluate_every=5), validation, checkpoints=tmp_path)
    rounds: list[int] = []
    rest = train(
        simulator(),
        clients(60, 1),
        Training(adagrad, 20, 20, evaluate_every=5),
        validation,
        checkpoints=tmp_path,
        progress=lambda number, _: rounds.append(number),
    )
    assert rounds == list(range(11, 21))
    assert rest.history == whole.history
    for name, value in whole.global_parameters.items():
        assert torch.equal(value, rest.global_parameters[name])


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(simulator(), clients(60, 1), Training(adagrad, 20, 5, evaluate_every=5), checkpoints=tmp_path)
    with pytest.raises(ValueError, match="holds another training"):
        train(simulator(), clients(60, 1), Training(adagrad, 20, 5, seed=3, evaluate_every=5), checkpoints=tmp_path)


def test_training_ends_when_validation_does_not_improve() -> None:
    getting_worse = iter(range(100))
    stubborn = replace(validation, loss=lambda _: float(next(getting_worse)))
    result = train(simulator(), clients(60, 1), Training(adagrad, 20, 50, evaluate_every=2, patience=3), stubborn)
    assert [point.round for point in result.history] == [2, 4, 6, 8]
    assert result.best_round == 2


def test_a_client_that_diverges_does_not_count() -> None:
    wild = replace(model, update_rate=Hyperparameter(0.2, 0.0, 1.0))
    made = [{"item": np.arange(10), "rating": np.full(10, 4.0, np.float32)} for _ in range(3)]
    made[1] = {"item": np.arange(10), "rating": np.full(10, np.inf, np.float32)}
    examples = ClientExamples.from_clients(made)
    total = Simulator(wild, halves, compiled=False).run(
        wild.global_parameters, examples, np.arange(3), 1, np.random.default_rng(0)
    )
    assert (total.clients, total.dropped, total.weight) == (2, 1, 10.0)
    assert all(value.isfinite().all() for value in total.updates.values())


def test_too_few_clients_with_enough_examples_are_refused() -> None:
    picky = LocalWork()
    picky.CopyFrom(halves)
    picky.minimum_examples = 15
    with pytest.raises(ValueError, match="a cohort of 60 needs as many clients"):
        train(Simulator(model, picky, compiled=False), clients(60, 1), Training(adagrad, 60, 1))


def test_an_evaluation_without_a_split_is_refused() -> None:
    everything = Simulator(model, LocalWork(split=task_pb2.SPLIT_RULE_NONE), compiled=False)
    with pytest.raises(ValueError, match="needs a split"):
        evaluate(everything, model.global_parameters, clients(3, 1))


def test_kept_vectors_are_scored_as_they_are() -> None:
    kept = replace(model, joint_rate=Hyperparameter(0.1, 0.0, 1.0))
    work = LocalWork(split=task_pb2.SPLIT_RULE_NONE, update_schedule=Schedule(batch_size=5, epochs=1))
    stateful = Training(adagrad, 30, 30, stateful=True)
    seen = clients(60, 1)
    result = train(Simulator(kept, work, compiled=False), seen, stateful)
    assert result.local_parameters["user_vector"].shape == (60, 3)
    scored = evaluate(
        Simulator(kept, work, compiled=False), result.global_parameters, seen, local_parameters=result.local_parameters
    )
    assert scored.examples.tolist() == seen.counts.tolist()
    assert loss(scored) < 0.9 * float(seen.fields["rating"].std())
