"""The order of a next-word experiment: train, choose how what is tuned is tuned, freeze, read the test users, judge.

Every row, vocabulary and seed is trained and stopped on validation; all choices are frozen at once; the test users are
read once; every row is judged on all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import Progress as Bar

from fedrecon.datasets import Texts
from fedrecon.learning.experiments.next_word_comparisons import pooled
from fedrecon.learning.experiments.next_word_rates import CHOSEN, best_of, choose_rates, rates_of
from fedrecon.learning.experiments.next_word_rows import UPDATE_GRID, Learner, Rates, Row, Size, Tuning
from fedrecon.learning.experiments.next_word_runs import Figures, Run, Text, figures_of, judge, run_training
from fedrecon.learning.experiments.next_word_text import examples_of, open_writers
from fedrecon.learning.experiments.protocol import Choice, digest_of
from fedrecon.learning.experiments.reporting import Column, Report, progress_bar, write_csv
from fedrecon.learning.simulation import Evaluation


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command was asked for.

    Attributes:
        texts: the whole dataset.
        source: what it is called.
        folder: of the output.
        size: of models and data.
        seeds: runs of every row.
        chooses_rates: whether rates are chosen anew on validation, instead of those that were chosen before.
        as_json: whether to end with JSON.
    """

    texts: Texts
    source: str
    folder: Path
    size: Size
    seeds: int
    chooses_rates: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A row at one of the three vocabularies.

    Attributes:
        row: what is trained and judged.
        place: of the vocabulary: 0 is the smallest.
    """

    row: Row
    place: int


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A job with its runs and figures, one for each seed.

    Attributes:
        job: what was done.
        words: of the vocabulary.
        training_users: who may have taken part in rounds.
        tuning_rate: that was chosen on validation; None where nothing is tuned.
        runs: trainings.
        validation: figures on validation users.
        test: metric sums of the test users.
    """

    job: Job
    words: int
    training_users: int
    tuning_rate: float | None
    runs: tuple[Run, ...]
    validation: tuple[Figures, ...]
    test: tuple[Evaluation, ...]

    @property
    def pooled(self) -> Evaluation:
        """The test users' sums over all seeds."""
        return pooled(list(self.test))


def run_jobs(jobs: Sequence[Job], setting: Setting) -> dict[Job, Result]:
    """Train all jobs, freeze the choices, read the test users once, judge all jobs.

    Args:
        jobs: of all tables and figures that were asked for; each once.
        setting: what was asked for.
    """
    # Small tensors: a second thread costs more than it brings, and sums in another order.
    torch.set_num_threads(1)
    writers = open_writers(setting.texts, setting.folder)
    texts = {
        place: Text(writers, setting.size.vocabularies[place], setting.size)
        for place in sorted({job.place for job in jobs})
    }
    seeds = range(setting.seeds)
    with progress_bar() as bar:
        chosen = _choose_rates(jobs, texts[min(texts)], setting, bar) if setting.chooses_rates else CHOSEN
        runs = _train(jobs, texts, chosen, seeds, setting.folder, bar)
    rates, validation = _tune(jobs, texts, runs, seeds)
    choices = {
        (job, seed): Choice(
            f"{job.row.name}, {texts[job.place].words} words",
            seed,
            _configuration(job, texts[job.place], runs[job.row.learner, job.place, seed], rates[job]),
            asdict(validation[job, seed]),
            digest_of(runs[job.row.learner, job.place, seed].global_parameters),
        )
        for job in jobs
        for seed in seeds
    }
    test = writers.test(list(choices.values()))
    results = {}
    for job in jobs:
        text = texts[job.place]
        vocabulary = writers.vocabulary(text.words, job.row.learner.oov_buckets)
        clients = examples_of(test, vocabulary, setting.size.length, setting.size.sentences)
        mine = tuple(runs[job.row.learner, job.place, seed] for seed in seeds)
        evaluations = []
        for seed, run in zip(seeds, mine, strict=True):
            choices[job, seed].require(run.global_parameters)
            evaluations.append(judge(run, job.row.tuning, rates[job] or 0.0, text, clients, seed))
        figures = tuple(validation[job, seed] for seed in seeds)
        results[job] = Result(job, text.words, len(writers.train), rates[job], mine, figures, tuple(evaluations))
    return results


def _train(
    jobs: Sequence[Job],
    texts: Mapping[int, Text],
    chosen: Mapping[Learner, Rates],
    seeds: range,
    folder: Path,
    bar: Bar,
) -> dict[tuple[Learner, int, int], Run]:
    """Trains every learner at every vocabulary with every seed, once."""
    runs: dict[tuple[Learner, int, int], Run] = {}
    for job in jobs:
        learner, text = job.row.learner, texts[job.place]
        for seed in seeds:
            if (learner, job.place, seed) in runs:
                continue
            task = bar.add_task(f"{job.row.name}, {text.words} words, seed {seed}", total=None, said="")

            def told(done: int, most: int, said: str, task: object = task) -> None:
                bar.update(task, completed=done, total=most, said=said)  # type: ignore[arg-type]

            rates = rates_of(learner, chosen)
            runs[learner, job.place, seed] = run_training(learner, rates, text, text.size.rounds, seed, told, folder)
            bar.stop_task(task)
    return runs


def _choose_rates(jobs: Sequence[Job], text: Text, setting: Setting, bar: Bar) -> Mapping[Learner, Rates]:
    """Chooses rates on validation, and writes what was tried as `rates.csv`."""
    task = bar.add_task("choosing rates", total=None, said="")
    learners = [learner for learner in CHOSEN if learner in {job.row.learner for job in jobs}]
    tried = choose_rates(
        learners, text, lambda done, most, said: bar.update(task, completed=done, total=most, said=said)
    )
    bar.stop_task(task)
    keys = ("oov_buckets", "oov", "optimizer", "server", "update", "reconstruct", "validation_accuracy")
    rows = tuple(
        dict(
            zip(
                keys,
                (
                    each.learner.oov_buckets,
                    each.learner.oov.value,
                    type(each.learner.optimizer).__name__,
                    each.rates.server,
                    each.rates.update,
                    each.rates.reconstruct,
                    each.accuracy,
                ),
                strict=True,
            )
        )
        for each in tried
    )
    write_csv(Report("", tuple(Column(key) for key in keys), rows), setting.folder / "rates.csv")
    return {**CHOSEN, **best_of(tried)}


def _tune(
    jobs: Sequence[Job], texts: Mapping[int, Text], runs: Mapping[tuple[Learner, int, int], Run], seeds: range
) -> tuple[dict[Job, float | None], dict[tuple[Job, int], Figures]]:
    """Chooses the rate of what is tuned, and takes all figures on validation."""
    rates: dict[Job, float | None] = {}
    validation: dict[tuple[Job, int], Figures] = {}
    for job in jobs:
        text = texts[job.place]
        clients = text.validation(job.row.learner.oov_buckets)
        candidates = UPDATE_GRID if job.row.tuning is not Tuning.NONE else (None,)
        found = {
            rate: [
                figures_of(
                    judge(runs[job.row.learner, job.place, seed], job.row.tuning, rate or 0.0, text, clients, seed)
                )
                for seed in seeds
            ]
            for rate in candidates
        }
        best = max(found, key=lambda rate: statistics.fmean(each.accuracy for each in found[rate]))
        rates[job] = best
        validation |= {(job, seed): figures for seed, figures in zip(seeds, found[best], strict=True)}
    return rates, validation


def _configuration(job: Job, text: Text, run: Run, tuning_rate: float | None) -> dict[str, object]:
    """Returns everything that a job was told, as JSON has it."""
    learner = job.row.learner
    return {
        "words": text.words,
        "oov_buckets": learner.oov_buckets,
        "oov": learner.oov.value,
        "optimizer": type(learner.optimizer).__name__,
        "reconstruct_steps": learner.reconstruct_steps,
        "rates": asdict(run.rates),
        "tuned": job.row.tuning.value,
        "tuning_rate": tuning_rate,
        "best_round": run.best,
        "size": asdict(text.size),
    }
