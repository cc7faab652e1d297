"""The order of an experiment: train, choose, freeze, read the test users, judge.

Every row and seed is trained and stopped on validation; all choices are frozen at once; the test users are read once;
every row is judged on all of them (`protocol`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import Progress as Bar

from fedrecon.datasets import Ratings
from fedrecon.learning.experiments.movielens_models import Simulators
from fedrecon.learning.experiments.movielens_rows import Federated, Judged, Row, Training
from fedrecon.learning.experiments.movielens_runs import Figures, Opened, Run, judge, opened_of, part_of, run_training
from fedrecon.learning.experiments.protocol import Choice, digest_of, open_protocol
from fedrecon.learning.experiments.reporting import progress_bar
from fedrecon.learning.reconstruction import GradientSteps


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command was asked for.

    Attributes:
        ratings: the whole dataset.
        folder: of the output.
        seeds: runs of every row.
        quick: few rounds of small models, without compiling: shows that everything works, and nothing else.
        as_json: whether to end with JSON.
    """

    ratings: Ratings
    folder: Path
    seeds: int
    quick: bool
    as_json: bool


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A row with its runs and figures, one for each seed."""

    row: Row
    runs: tuple[Run, ...]
    validation: tuple[Figures, ...]
    test: tuple[Figures, ...]


def run_rows(rows: Sequence[Row], setting: Setting) -> list[Result]:
    """Train all rows, freeze the choices, read the test users once, judge all rows.

    Args:
        rows: of a table.
        setting: what was asked for.
    """
    opened, runs = train_rows(rows, setting)
    seeds = range(setting.seeds)
    validation = {
        (row.name, seed): judge(runs[row.name, seed], row.judged, opened.validation, seed)
        for row in rows
        for seed in seeds
    }
    choices = {
        (row.name, seed): Choice(
            row.name,
            seed,
            {**configuration_of(row), "best_round": runs[row.name, seed].best},
            asdict(validation[row.name, seed]),
            digest_of(runs[row.name, seed].parameters),
        )
        for row in rows
        for seed in seeds
    }
    test = opened.protocol.test(list(choices.values()))
    closed = part_of(test.unseen, test.seen)
    results = []
    for row in rows:
        figures = []
        for seed in seeds:
            choices[row.name, seed].require(runs[row.name, seed].parameters)
            figures.append(judge(runs[row.name, seed], row.judged, closed, seed))
        results.append(
            Result(
                row,
                tuple(runs[row.name, seed] for seed in seeds),
                tuple(validation[row.name, seed] for seed in seeds),
                tuple(figures),
            )
        )
    return results


def train_rows(rows: Sequence[Row], setting: Setting) -> tuple[Opened, dict[tuple[str, int], Run]]:
    """Open the protocol and train every row with every seed, without the test users.

    Args:
        rows: what to train; rows with one configuration that are stopped alike share a run.
        setting: what was asked for.

    Returns:
        The open users, and the runs by name of row and seed.
    """
    # Small tensors: a second thread costs more than it brings, and sums in another order.
    torch.set_num_threads(1)
    protocol = open_protocol(setting.ratings, setting.folder)
    opened = opened_of(protocol)
    simulators = Simulators(protocol.items, compiled=not setting.quick)
    shared: dict[tuple[Training, bool, int], Run] = {}
    runs: dict[tuple[str, int], Run] = {}
    with progress_bar() as bar:
        for row in rows:
            training = _shrunk(row.training) if setting.quick else row.training
            for seed in range(setting.seeds):
                key = (training, row.judged is Judged.SEEN, seed)
                if key not in shared:
                    with _Watched(bar, f"{row.name}, seed {seed}") as told:
                        shared[key] = run_training(training, row.judged, opened, seed, simulators, told)
                    bar.console.print(_came_to(row, seed, shared[key]), highlight=False)
                runs[row.name, seed] = shared[key]
    return opened, runs


class _Watched:
    """A task of the progress bar, while it lasts."""

    def __init__(self, bar: Bar, name: str) -> None:
        self._bar = bar
        self._task = bar.add_task(name, total=None, said="")

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, most: int, said: str) -> None:
        self._bar.update(self._task, completed=done, total=most, said=said)

    def __exit__(self, *_: object) -> None:
        self._bar.remove_task(self._task)


def _came_to(row: Row, seed: int, run: Run) -> str:
    # Of members that were joined, the last point is what they came to together.
    best = next(point.figures for point in reversed(run.curve) if point.round == run.best)
    return f"{row.name}, seed {seed}: RMSE {best.rmse:.4f} on validation after round {run.best}, {run.seconds:.0f} s"


def configuration_of(row: Row) -> dict[str, Any]:
    """Give everything that a row's training is told, as JSON has it."""
    kind = {"training": type(row.training).__name__, "judged": row.judged.value}
    return {**kind, **_plain(row.training)}


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case _ if is_dataclass(value):
            return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
        case _:
            return value


def _shrunk(training: Training) -> Training:
    """Returns the same in small: enough to see that every path works."""
    if not isinstance(training, Federated):
        return replace(training, factors=4, sweeps=2)
    found = training.reconstruction
    if isinstance(found, GradientSteps):
        steps = min(found.schedule.maximum_steps, 2)
        found = replace(found, schedule=replace(found.schedule, maximum_steps=steps))
    return replace(training, factors=4, reconstruction=found, update_steps=2, cohort=20, rounds=4, evaluate_every=2)
