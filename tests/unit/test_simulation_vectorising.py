"""Where the simulation cannot compile, it says so, names what is missing, and comes to the same numbers eagerly."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.simulation import ClientExamples, CohortSum, Simulator, vectorising
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork

ITEMS = 12
MODEL = matrix_factorization(ITEMS, 3, mean=3.5, bias=True)
WORK = LocalWork(
    split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES,
    reconstruct_schedule=Schedule(batch_size=2, epochs=2),
    update_schedule=Schedule(batch_size=2, epochs=2),
)


def run(simulator: Simulator) -> CohortSum:
    source = np.random.default_rng(4)
    clients = ClientExamples.from_clients(
        [
            {
                "item": source.choice(ITEMS, count, replace=False),
                "rating": source.integers(1, 6, count).astype(np.float32),
            }
            for count in (7, 3, 10, 1)
        ]
    )
    return simulator.run(MODEL.global_parameters, clients, np.arange(4), 1, np.random.default_rng(0))


def check_equal(found: CohortSum) -> None:
    expected = run(Simulator(MODEL, WORK, compiled=False))
    assert found.weight == expected.weight > 0
    for name, value in expected.updates.items():
        assert value.any()
        assert torch.allclose(found.updates[name], value, rtol=0, atol=1e-5)
    for name, value in expected.local_parameters.items():
        assert torch.allclose(found.local_parameters[name], value, rtol=0, atol=1e-6)


def no_program(_: str) -> None:
    """Finds nothing, whatever is asked for."""


def test_without_a_compiler_it_warns_by_its_name_and_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", no_program)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler \(g\+\+\) found.*apt-get install g\+\+"):
        simulator = Simulator(MODEL, WORK)
    assert not simulator.compiled
    check_equal(run(simulator))


@pytest.mark.parametrize("only", ["g++", "clang++", "c++"])
def test_any_usual_compiler_will_do(monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == only else None)
    assert Simulator(MODEL, WORK).compiled


def test_who_asks_for_no_compilation_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", no_program)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Simulator(MODEL, WORK, compiled=False).compiled


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_steps_that_torch_cannot_compile_run_eagerly_and_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    missing = NotImplementedError("aten.peculiar has no kernel\nand much more")
    monkeypatch.setattr(vectorising, "_compile", failing(missing))
    simulator = Simulator(MODEL, WORK)
    with pytest.warns(RuntimeWarning, match="torch cannot compile these steps.*aten.peculiar has no kernel$"):
        found = run(simulator)
    check_equal(found)


def test_an_error_without_words_is_said_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorising, "_compile", failing(ZeroDivisionError()))
    doubled = vectorising.Vectorised(lambda value: 2 * value, (0,), compiled=True)
    with pytest.warns(RuntimeWarning, match="torch cannot compile these steps.*ZeroDivisionError$"):
        assert doubled(torch.arange(3.0)).tolist() == [0.0, 2.0, 4.0]


@pytest.mark.slow  # torch's compiler takes seconds to import
def test_an_operator_that_fixes_the_number_of_clients_is_not_compiled() -> None:
    def run_of_as_many(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [leaves[0] + torch.zeros(vectorising.CLIENTS_AT_COMPILATION, 1)]

    with pytest.raises(ValueError, match="fixes the number of clients"):
        vectorising._compile(run_of_as_many, [(torch.zeros(2, 3), True)])
