"""Next-word experiments: who is trained on, what is compared, what is counted."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from fedrecon.datasets import generate_texts
from fedrecon.learning.experiments.next_word_comparisons import difference
from fedrecon.learning.experiments.next_word_rates import CHOSEN, Tried, best_of, grid_of, rates_of
from fedrecon.learning.experiments.next_word_rows import (
    FEDRECON,
    FEDYOGI,
    FULL,
    QUICK,
    TABLE_2,
    Learner,
    Rates,
    Size,
    Tuning,
    few_steps,
    with_buckets,
    with_steps,
)
from fedrecon.learning.experiments.next_word_runs import Run, Text, bytes_of, model_of, run_training, work_of
from fedrecon.learning.experiments.next_word_text import Writers, examples_of, open_writers
from fedrecon.learning.experiments.protocol import Choice, ProtocolError, digest_of
from fedrecon.learning.models.next_word import NEXT, OOV_EMBEDDING, TOKENS, OovEmbeddings
from fedrecon.learning.simulation import Evaluation
from fedrecon.v1 import task_pb2
from fedrecon.wire import schedules


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    return open_writers(generate_texts(users=20, seed=1, texts_per_user=5), tmp_path)


def test_the_split_is_written_and_its_parts_are_disjoint(writers: Writers) -> None:
    split = json.loads((writers.folder / "split.json").read_text())
    parts = [split[name] for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert sorted(chain(*parts), key=int) == [str(number) for number in range(1, 21)]


def test_test_users_are_read_once_and_after_a_choice(writers: Writers) -> None:
    with pytest.raises(ProtocolError, match="after a choice"):
        writers.test([])
    chosen = Choice("row", 0, {}, {"accuracy": 1.0}, digest_of({}))
    assert len(writers.test([chosen])) == 2
    with pytest.raises(ProtocolError, match="read already"):
        writers.test([chosen])


def test_words_of_test_users_do_not_choose_the_vocabulary(writers: Writers) -> None:
    known = {word for user in writers.train for sentence in user for word in sentence}
    chosen = Choice("row", 0, {}, {"accuracy": 1.0}, digest_of({}))
    others = {word for user in writers.test([chosen]) for sentence in user for word in sentence} - known
    assert others
    assert not others & set(writers.vocabulary(10_000, 5).words)


def test_the_newest_examples_are_kept_oldest_first(writers: Writers) -> None:
    vocabulary = writers.vocabulary(50, 5)
    every = examples_of(writers.train, vocabulary, 8, 1000)
    newest = examples_of(writers.train, vocabulary, 8, 3)
    assert newest.counts.tolist() == [3] * 16
    for user in range(16):
        for name in (TOKENS, NEXT):
            whole = every.fields[name][every.offsets[user] : every.offsets[user + 1]]
            assert newest.fields[name][3 * user : 3 * user + 3].tolist() == whole[-3:].tolist()


def test_all_rates_are_of_the_papers_grids() -> None:
    for learner, rates in CHOSEN.items():
        assert rates in grid_of(learner)
    assert len(grid_of(FEDRECON.learner)) == 12
    assert len(grid_of(FEDYOGI.learner)) == 6


def test_the_best_rates_on_validation_are_chosen_and_variants_take_those_of_fedrecon() -> None:
    mine = FEDRECON.learner
    tried = [Tried(mine, Rates(0.1), 5.0), Tried(mine, Rates(0.3), 7.0), Tried(mine, Rates(0.01), 7.0)]
    chosen = best_of(tried)
    assert chosen == {mine: Rates(0.3)}
    assert rates_of(with_steps(2).learner, chosen) == Rates(0.3)


def test_every_row_of_the_table_has_rates_of_its_own() -> None:
    assert {row.learner for row in TABLE_2} == set(CHOSEN)


def test_a_training_that_was_stopped_goes_on_where_it_was(writers: Writers) -> None:
    text, seen = Text(writers, QUICK.vocabularies[0], QUICK), []

    def train(folder: Path | None, stop_at: int) -> Run:
        def told(done: int, *_: object) -> None:
            seen.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

        return run_training(FEDRECON.learner, Rates(), text, 6, 0, told, folder)

    with pytest.raises(KeyboardInterrupt):
        train(writers.folder, stop_at=4)
    resumed = train(writers.folder, stop_at=7)
    assert seen == [1, 2, 3, 4, 4, 5, 6]
    whole = train(None, stop_at=7)
    assert resumed.best == whole.best
    assert digest_of(resumed.global_parameters) == digest_of(whole.global_parameters)


def test_evaluations_split_by_time_whatever_training_does() -> None:
    shared = Learner(500, OovEmbeddings.GLOBAL)
    assert work_of(shared, Rates(), evaluates=False).split == task_pb2.SPLIT_RULE_NONE
    for learner, evaluates in ((shared, True), (FEDRECON.learner, True), (FEDRECON.learner, False)):
        assert work_of(learner, Rates(), evaluates=evaluates).split == task_pb2.SPLIT_RULE_BY_TIME


@pytest.mark.parametrize("steps", [0, 1, 2, 10])
def test_figures_take_exactly_as_many_steps_as_they_say(steps: int) -> None:
    work = work_of(few_steps(steps, 2).learner, Rates(), evaluates=True)
    for schedule, wanted in ((work.reconstruct_schedule, steps), (work.update_schedule, 2)):
        for examples in (1, 16, 17, 200):
            assert len(schedules.order(np.arange(examples), schedule)[0]) == wanted, (
                "who has few sentences goes over them again"
            )
    assert work_of(with_steps(steps).learner, Rates(), evaluates=True).reconstruct_schedule.maximum_steps == steps


def test_tables_take_one_pass() -> None:
    work = work_of(FEDRECON.learner, Rates(), evaluates=True)
    for schedule in (work.reconstruct_schedule, work.update_schedule):
        assert [len(schedules.order(np.arange(examples), schedule)[0]) for examples in (1, 17, 10_000)] == [1, 2, 100]


@pytest.mark.parametrize("size", [QUICK, FULL])
def test_fedrecon_communicates_all_but_its_local_embeddings(size: Size) -> None:
    local = model_of(FEDRECON.learner, 1000, size, 0)
    shared = model_of(Learner(500, OovEmbeddings.GLOBAL), 1000, size, 0)
    table = 500 * size.embedding * 4
    assert bytes_of(shared.global_parameters) - bytes_of(local.global_parameters) == table
    assert bytes_of(local.parameters) == bytes_of(shared.parameters)
    assert OOV_EMBEDDING not in local.global_parameters


def test_the_papers_rows_are_in_the_table_with_its_figures() -> None:
    paper = {row.name: row.paper for row in TABLE_2 if row.paper}
    assert paper["FedYogi"] == (24.3, 26.3, 26.7)
    assert paper["FedRecon, 1 OOV"] == (24.1, 26.2, 26.4)
    assert paper["FedRecon, 500 OOV"] == (29.6, 28.1, 27.7)
    assert [row.paper for row in TABLE_2 if row.tuning is not Tuning.NONE] == [
        (30.0, 28.1, 27.9),
        (30.8, 29.2, 28.8),
        (30.7, 28.9, 28.6),
    ]


def test_rows_that_figures_share_with_the_table_are_the_same() -> None:
    assert with_buckets(500) is FEDRECON
    assert with_buckets(20).learner == Learner(20)


def evaluation(right: list[float], counted: list[float]) -> Evaluation:
    sums = {"right": np.array(right), "right_among_words": np.array(right), "counted": np.array(counted)}
    return Evaluation(sums, np.ones(len(right), dtype=np.int64))


def test_a_difference_on_the_same_users_has_an_interval_around_it() -> None:
    counted = [10.0, 30.0, 20.0, 40.0] * 10
    hard = [1.0, 9.0, 2.0, 12.0] * 10
    better = evaluation([right + 1 for right in hard], counted)
    gained = difference(better, evaluation(hard, counted), "right")
    assert gained.points == pytest.approx(100 * 4 / 100)
    assert 0 < gained.low < gained.points < gained.high
    # What makes users differ is in both and leaves the difference: the interval is narrow.
    assert gained.high - gained.low < 2
    none = difference(better, better, "right")
    assert (none.points, none.low, none.high) == (0.0, 0.0, 0.0)


def test_rows_of_other_users_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same users"):
        difference(evaluation([1.0], [2.0]), evaluation([1.0], [3.0]), "right")
