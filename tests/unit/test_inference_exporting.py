"""A recommender is its plan, step by step: checked against a reference in numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from fedrecon.inference.bundles import Bundle, NotExportableError, read_checkpoint, read_items
from fedrecon.inference.exporting import export
from fedrecon.inference.stepwise import open_session
from fedrecon.inference.verifying import WrongRecommenderError, check_recorded_answers
from fedrecon.v1 import common_pb2, plan_pb2, task_pb2
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import keystream, schedules
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from support.inference_sample import BOUND, FACTORS, FIELD, ITEMS, MEAN, RATE, RETIRED, RIDGE, USER_BIAS, make_sample


def reference_scores(
    checkpoint: Mapping[str, NDArray[Any]],
    rows: NDArray[np.int64],
    ratings: NDArray[np.float32],
    schedule: plan_pb2.Schedule,
    *,
    at_once: bool,
    rate: float = RATE,
) -> NDArray[np.float64]:
    """Reconstruction and scores in float64, written down once more from the definition."""
    table = checkpoint["table"].astype(np.float64)
    own = checkpoint["biases"][:, 0].astype(np.float64) if "biases" in checkpoint else np.zeros(ITEMS)
    user = (keystream.uniform(bytes(32), "initial", 0, FACTORS) * 2 - 1) * BOUND
    bias = USER_BIAS
    if at_once:
        user = user + table[rows].T @ (ratings - MEAN) / RIDGE
        return table @ user + own + bias + MEAN
    order, mask = schedules.order(np.arange(rows.size), schedule)
    for positions, real in zip(order, mask, strict=True):
        x = table[rows[positions]]
        error = (x @ user + own[rows[positions]] + bias + MEAN - ratings[positions]) * real
        user, bias = user - rate * 2 * (error @ x) / real.sum(), bias - rate * 2 * error.sum() / real.sum()
    return table @ user + own + bias + MEAN


def ask(
    recommender: bytes, rows: list[int], ratings: list[float], excluded: list[int], count: int
) -> tuple[list[int], NDArray[np.float32]]:
    found, scores = open_session(recommender).run(
        ["rows", "scores"],
        {
            "item": np.array(rows, dtype=np.int64),
            "rating": np.array(ratings, dtype=np.float32),
            "excluded": np.array(excluded, dtype=np.int64),
            "k": np.array([count], dtype=np.int64),
        },
    )
    return found.tolist(), scores


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("kind", ["at once", "steps", "steps, laid in"])
@pytest.mark.parametrize("examples", [0, 1, 4, 5, 6, 29])
def test_a_recommender_gives_the_scores_of_its_definition(biases: bool, kind: str, examples: int) -> None:
    at_once = kind == "at once"
    sample = make_sample(biases=biases, at_once=at_once)
    random = np.random.default_rng(examples)
    rows = random.permutation(ITEMS)[:examples]
    ratings = random.uniform(0.5, 5.0, examples).astype(np.float32)
    recommender = sample.export(laid=kind == "steps, laid in")
    found, scores = ask(recommender, rows.tolist(), ratings.tolist(), [], ITEMS)
    schedule = sample.bundle.manifest.reconstruct_schedule
    expected = reference_scores(sample.checkpoint, rows, ratings, schedule, at_once=at_once)
    assert sorted(found) == sorted(set(range(ITEMS)) - set(RETIRED))
    np.testing.assert_allclose(scores, expected[found], rtol=0, atol=2e-5)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "steps"])
def test_a_recommender_equals_its_plans_own_graphs(at_once: bool) -> None:
    sample = make_sample(at_once=at_once)
    assert sample.verify(sample.export()) <= 1e-5


def test_the_tasks_schedule_and_rate_win_over_the_plans() -> None:
    sample = make_sample()
    schedule = plan_pb2.Schedule(batch_size=3, epochs=2)
    work = LocalWork(reconstruct_schedule=schedule, hyperparameters={"reconstruct.rate": 0.05})
    recommender = sample.export(work)
    rows, ratings = np.array([1, 2, 4, 8]), np.array([5.0, 1.0, 3.0, 4.0], dtype=np.float32)
    found, scores = ask(recommender, rows.tolist(), ratings.tolist(), [], ITEMS)
    expected = reference_scores(sample.checkpoint, rows, ratings, schedule, at_once=False, rate=0.05)
    np.testing.assert_allclose(scores, expected[found], rtol=0, atol=2e-5)
    assert sample.verify(recommender, work) <= 1e-5
    with pytest.raises(WrongRecommenderError, match="differ from the plan's own"):
        sample.verify(recommender)


@pytest.mark.parametrize("laid", [False, True], ids=["drawn", "laid in"])
def test_excluded_and_retired_rows_are_never_returned_whatever_k(laid: bool) -> None:
    recommender = make_sample().export(laid=laid)
    excluded = [0, 1, 1, 3, 29]
    found, scores = ask(recommender, [0, 1], [5.0, 4.0], excluded, 1000)
    assert sorted(found) == sorted(set(range(ITEMS)) - set(excluded) - set(RETIRED))
    assert np.isfinite(scores).all()
    assert ask(recommender, [], [], list(range(ITEMS)), 5)[0] == []


@pytest.mark.parametrize("laid", [False, True], ids=["drawn", "laid in"])
def test_equal_scores_are_ranked_by_the_lower_row(laid: bool) -> None:
    sample = make_sample(biases=False)
    sample.checkpoint["table"] = np.full_like(sample.checkpoint["table"], 0.5)
    found, _ = ask(sample.export(laid=laid), [2], [4.0], [], 5)
    assert found == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("laid", [False, True], ids=["drawn", "laid in"])
def test_local_parameters_are_given_beside_the_ranking(laid: bool) -> None:
    sample = make_sample()
    session = open_session(sample.export(laid=laid))
    assert [value.name for value in session.get_outputs()] == ["rows", "scores", "local/user", "local/user_bias"]
    inputs = {"item": np.zeros(0, np.int64), "rating": np.zeros(0, np.float32), "excluded": np.zeros(0, np.int64)}
    user, bias = session.run(["local/user", "local/user_bias"], inputs | {"k": np.array([1])})
    # The manifest holds the bound as float32.
    initial = (keystream.uniform(bytes(32), "initial", 0, FACTORS) * 2 - 1) * float(np.float32(BOUND))
    np.testing.assert_array_equal(user, initial.astype(np.float32))
    assert bias == np.float32(USER_BIAS)


def test_the_file_says_where_it_comes_from() -> None:
    sample = make_sample()
    metadata = open_session(sample.export()).get_modelmeta().custom_metadata_map
    assert metadata["fedrecon.format"] == "1"
    assert metadata["fedrecon.task"] == "films"
    assert metadata["fedrecon.round"] == "12"
    assert metadata["fedrecon.plan"] == sample.bundle.digest.hex()
    assert metadata["fedrecon.checkpoint"] == sample.origin.checkpoint_digest.hex()
    assert metadata["fedrecon.vocabulary"] == digest_of(sample.vocabulary).hex()
    assert json.loads(metadata["fedrecon.fields"]) == [
        {"name": "item", "vocabulary": "items", "minimum": None, "maximum": None, "role": "input"},
        {"name": "rating", "vocabulary": "", "minimum": 0.5, "maximum": 5.0, "role": "target"},
    ]


def test_the_same_parts_give_the_same_bytes() -> None:
    assert make_sample().export() == make_sample().export()


@pytest.mark.parametrize(
    ("laid", "table"), [(False, "linear/design"), (True, "global/table")], ids=["drawn", "laid in"]
)
def test_a_recommender_with_one_wrong_number_is_refused(laid: bool, table: str) -> None:
    sample = make_sample()
    model = onnx.load_from_string(sample.export(laid=laid))
    (initialiser,) = [each for each in model.graph.initializer if each.name == table]
    wrong = numpy_helper.to_array(initialiser).copy()
    wrong[5, 2] += 1e-3
    initialiser.CopyFrom(numpy_helper.from_array(wrong, initialiser.name))
    with pytest.raises(WrongRecommenderError, match="differ from the plan's own by up to"):
        sample.verify(model.SerializeToString())


def test_a_recommender_that_shows_a_retired_row_is_refused() -> None:
    sample = make_sample()
    model = onnx.load_from_string(sample.export(laid=True))
    (initialiser,) = [each for each in model.graph.initializer if each.name == "ranking/retired"]
    initialiser.CopyFrom(numpy_helper.from_array(np.zeros(ITEMS, dtype=np.bool_), initialiser.name))
    with pytest.raises(WrongRecommenderError, match="exactly the rows"):
        sample.verify(model.SerializeToString())


def test_a_reconstruction_that_diverges_is_refused() -> None:
    sample, work = make_sample(), LocalWork(hyperparameters={"reconstruct.rate": 1e9})
    recommender = sample.export(work)
    with pytest.raises(NotExportableError, match="diverges for a user with"):
        sample.verify(recommender, work)


def test_a_plan_whose_recorded_answers_differ_here_is_refused() -> None:
    sample = make_sample()
    recorded = {
        "first/predict/input/table": sample.checkpoint["table"],
        "first/predict/input/biases": sample.checkpoint["biases"],
        "first/predict/input/u": np.ones(FACTORS, dtype=np.float32),
        "first/predict/input/b": np.array(0.0, dtype=np.float32),
        "first/predict/input/items": np.array([4], dtype=np.int64),
    }
    true_score = sample.checkpoint["table"][4].sum() + sample.checkpoint["biases"][4] + np.float32(MEAN)
    right = recorded | {"first/predict/output/scores": true_score}
    check_recorded_answers(Bundle(sample.bundle.digest, sample.bundle.manifest, sample.bundle.graphs, right))
    wrong = recorded | {"first/predict/output/scores": true_score + np.float32(0.01)}
    with pytest.raises(WrongRecommenderError, match="case 'first', predict, 'scores'"):
        check_recorded_answers(Bundle(sample.bundle.digest, sample.bundle.manifest, sample.bundle.graphs, wrong))


def numbers_field(name: str, role: int = plan_pb2.FIELD_ROLE_INPUT) -> plan_pb2.Field:
    return plan_pb2.Field(name=name, role=role, dtype=common_pb2.DTYPE_FLOAT32)  # type: ignore[arg-type]


ITEM_FIELD = plan_pb2.Field(
    name="item", role=plan_pb2.FIELD_ROLE_INPUT, dtype=common_pb2.DTYPE_INT64, vocabulary="items"
)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([numbers_field("features")], "has 0 input fields with a vocabulary"),
        ([ITEM_FIELD, ITEM_FIELD], "has 2 input fields with a vocabulary"),
        ([ITEM_FIELD, numbers_field("hour")], "a recommender knows of an item only its row"),
    ],
)
def test_a_plan_that_ranks_no_items_is_refused(fields: list[plan_pb2.Field], reason: str) -> None:
    sample = make_sample(fields=fields)
    with pytest.raises(NotExportableError, match=reason):
        sample.export()


def test_a_field_named_like_an_input_of_the_recommender_is_refused() -> None:
    sample = make_sample(fields=[ITEM_FIELD, numbers_field("k", plan_pb2.FIELD_ROLE_TARGET)])
    for graph in sample.bundle.manifest.graphs:
        for value in graph.inputs:
            value.reference = value.reference.replace("rating", "k") if value.source == FIELD else value.reference
    with pytest.raises(NotExportableError, match="rename it"):
        sample.export()


def test_a_vocabulary_of_another_length_is_refused() -> None:
    sample = make_sample()
    longer = plan_pb2.Vocabulary(name="items", version=3, keys=[str(row) for row in range(ITEMS + 1)])
    items = read_items(sample.bundle, longer.SerializeToString())
    with pytest.raises(NotExportableError, match=f"has {ITEMS} rows, the vocabulary 'items'.*{ITEMS + 1} entries"):
        export(sample.bundle, sample.checkpoint, items, sample.origin, LocalWork())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            {"table": np.zeros((ITEMS, FACTORS), np.float32)},
            r"parameter biases should have shape \[.*\], found nothing",
        ),
        (
            {"table": np.zeros((ITEMS, FACTORS + 1), np.float32), "biases": np.zeros((ITEMS, 1), np.float32)},
            "do not belong together",
        ),
        (
            {"table": np.full((ITEMS, FACTORS), np.nan, np.float32), "biases": np.zeros((ITEMS, 1), np.float32)},
            "training diverged",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tensors: dict[str, NDArray[Any]], reason: str) -> None:
    with pytest.raises(NotExportableError, match=reason):
        read_checkpoint(make_sample().bundle, write_safetensors(tensors))


def test_split_rules_of_the_task_do_not_matter_to_a_recommender() -> None:
    sample = make_sample()
    assert sample.export(LocalWork(split=task_pb2.SPLIT_RULE_BY_TIME)) == sample.export()
