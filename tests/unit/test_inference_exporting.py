"""A recommender is its plan, step by step: checked against a reference in numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from fedrecon.inference.bundles import Bundle, NotExportableError, read_bundle, read_checkpoint, read_items
from fedrecon.inference.exporting import Origin, export
from fedrecon.inference.verifying import WrongRecommenderError, check_recorded_answers, open_session, verify_export
from fedrecon.v1 import common_pb2, plan_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import keystream, schedules
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import write_manifest
from fedrecon.wire.tensors import write_safetensors

ITEMS, FACTORS, MEAN, RATE, RIDGE, BOUND = 30, 4, 3.0, 0.1, 2.0, 0.05
RETIRED = (3, 17)
PARAMETER, FIELD = plan_pb2.VALUE_SOURCE_PARAMETER, plan_pb2.VALUE_SOURCE_FIELD

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

TOUCH = f"""{HEADER}
touch (int64[n] items) => (int64[r] rows, int64[n] renumbered) {{
  rows, first, renumbered = Unique<sorted=1>(items)
}}"""

# One step of gradient descent on the mean squared error of the batch; `If`, because a Scan over nothing is refused.
STEPS = f"""{HEADER}
reconstruct (float[r,{FACTORS}] table, float[r,1] biases, float[{FACTORS}] u, float b, int64[n] items, float[n] ratings,
             int64[k,s] order, float[k,s] mask, float[k] rates) => (float[{FACTORS}] u_after, float b_after) {{
  steps = Size(rates)
  any = Cast<to=9>(steps)
  u_after, b_after = If<
    then_branch = some () => (float[{FACTORS}] some_u, float some_b) {{
      some_u, some_b = Scan<num_scan_inputs = 3, body = step (float[{FACTORS}] v, float c, int64[s] at, float[s] real,
                                                              float rate) => (float[{FACTORS}] w, float d) {{
        row = Gather(items, at)
        rated = Gather(ratings, at)
        x = Gather(table, row)
        bias_column = Gather(biases, row)
        axis = Constant<value_ints = [1]>()
        own = Squeeze(bias_column, axis)
        column = Unsqueeze(v, axis)
        product = MatMul(x, column)
        inner = Squeeze(product, axis)
        with_own = Add(inner, own)
        with_user = Add(with_own, c)
        mean = Constant<value_float = {MEAN}>()
        predicted = Add(with_user, mean)
        error = Sub(predicted, rated)
        counted = Mul(error, real)
        total = ReduceSum<keepdims = 0>(real)
        two = Constant<value_float = 2.0>()
        doubled = Mul(counted, two)
        share = Div(doubled, total)
        share_column = Unsqueeze(share, axis)
        weighted = Mul(x, share_column)
        zero_axis = Constant<value_ints = [0]>()
        slope_u = ReduceSum<keepdims = 0>(weighted, zero_axis)
        slope_b = ReduceSum<keepdims = 0>(share)
        move_u = Mul(rate, slope_u)
        move_b = Mul(rate, slope_b)
        w = Sub(v, move_u)
        d = Sub(c, move_b)
      }}>(u, b, order, mask, rates)
    }},
    else_branch = none () => (float[{FACTORS}] none_u, float none_b) {{
      none_u = Identity(u)
      none_b = Identity(b)
    }}>(any)
}}"""

# One damped step along the gradient of the ridge's objective over all examples: a graph without steps.
AT_ONCE = f"""{HEADER}
reconstruct (float[r,{FACTORS}] table, float[{FACTORS}] u, int64[n] items, float[n] ratings, float[n] mask,
             float ridge) => (float[{FACTORS}] u_after) {{
  x = Gather(table, items)
  mean = Constant<value_float = {MEAN}>()
  centred = Sub(ratings, mean)
  counted = Mul(centred, mask)
  axis = Constant<value_ints = [1]>()
  column = Unsqueeze(counted, axis)
  weighted = Mul(x, column)
  zero_axis = Constant<value_ints = [0]>()
  pull = ReduceSum<keepdims = 0>(weighted, zero_axis)
  step = Div(pull, ridge)
  u_after = Add(u, step)
}}"""

PREDICT = f"""{HEADER}
predict (float[r,{FACTORS}] table, float[r,1] biases, float[{FACTORS}] u, float b, int64[n] items)
        => (float[n] scores) {{
  x = Gather(table, items)
  bias_column = Gather(biases, items)
  axis = Constant<value_ints = [1]>()
  own = Squeeze(bias_column, axis)
  column = Unsqueeze(u, axis)
  product = MatMul(x, column)
  inner = Squeeze(product, axis)
  with_own = Add(inner, own)
  with_user = Add(with_own, b)
  mean = Constant<value_float = {MEAN}>()
  scores = Add(with_user, mean)
}}"""

PREDICT_WITHOUT_BIASES = f"""{HEADER}
predict (float[r,{FACTORS}] table, float[{FACTORS}] u, int64[n] items) => (float[n] scores) {{
  x = Gather(table, items)
  axis = Constant<value_ints = [1]>()
  column = Unsqueeze(u, axis)
  product = MatMul(x, column)
  inner = Squeeze(product, axis)
  mean = Constant<value_float = {MEAN}>()
  scores = Add(inner, mean)
}}"""

MEANINGS: dict[str, tuple[plan_pb2.ValueSource.ValueType, str]] = {
    "table": (PARAMETER, "table"),
    "biases": (PARAMETER, "biases"),
    "u": (PARAMETER, "user"),
    "b": (PARAMETER, "user_bias"),
    "u_after": (PARAMETER, "user"),
    "b_after": (PARAMETER, "user_bias"),
    "items": (FIELD, "item"),
    "renumbered": (FIELD, "item"),
    "ratings": (FIELD, "rating"),
    "rows": (plan_pb2.VALUE_SOURCE_ROWS, "items"),
    "order": (plan_pb2.VALUE_SOURCE_ORDER, ""),
    "mask": (plan_pb2.VALUE_SOURCE_MASK, ""),
    "rates": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "reconstruct.rate"),
    "ridge": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "reconstruct.ridge"),
    "scores": (plan_pb2.VALUE_SOURCE_SCORES, ""),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A plan made by hand, with its checkpoint and vocabulary."""

    bundle: Bundle
    checkpoint: dict[str, NDArray[Any]]
    vocabulary: bytes
    origin: Origin

    def export(self, work: LocalWork | None = None) -> bytes:
        items = read_items(self.bundle, self.vocabulary)
        return export(self.bundle, self.checkpoint, items, self.origin, work or LocalWork())

    def verify(self, recommender: bytes, work: LocalWork | None = None) -> float:
        items = read_items(self.bundle, self.vocabulary)
        return verify_export(recommender, self.bundle, self.checkpoint, items, work or LocalWork())


def graph_message(role: int, text: str, blobs: dict[bytes, bytes]) -> plan_pb2.Graph:
    model = parser.parse_model(text)
    content = model.SerializeToString()
    blobs[digest_of(content)] = content

    def values(ports: Any) -> list[plan_pb2.GraphValue]:
        return [
            plan_pb2.GraphValue(name=port.name, source=MEANINGS[port.name][0], reference=MEANINGS[port.name][1])
            for port in ports
        ]

    return plan_pb2.Graph(
        role=role,  # type: ignore[arg-type]
        blob=BlobReference(digest=digest_of(content), size=len(content)),
        inputs=values(model.graph.input),
        outputs=values(model.graph.output),
    )


def make_sample(*, biases: bool = True, at_once: bool = False, **changes: Any) -> Sample:
    """A matrix factorisation, reconstructed by steps or at once, with or without biases."""
    random = np.random.default_rng(7)
    checkpoint = {"table": random.normal(size=(ITEMS, FACTORS)).astype(np.float32) * 0.5}
    if biases:
        checkpoint["biases"] = random.normal(size=(ITEMS, 1)).astype(np.float32) * 0.3
    blobs: dict[bytes, bytes] = {}
    steps = (
        STEPS
        if biases
        else STEPS.replace("float[r,1] biases, ", "").replace(
            "bias_column = Gather(biases, row)", "bias_column = Constant<value = float[1,1] {0.0}>()"
        )
    )
    predict = PREDICT if biases or not at_once else PREDICT_WITHOUT_BIASES
    if not biases and not at_once:
        predict = PREDICT.replace("float[r,1] biases, ", "").replace(
            "bias_column = Gather(biases, items)", "bias_column = Constant<value = float[1,1] {0.0}>()"
        )
    float32, int64 = common_pb2.DTYPE_FLOAT32, common_pb2.DTYPE_INT64
    parameters = [
        plan_pb2.Parameter(
            name=name, placement=plan_pb2.PLACEMENT_GLOBAL, dtype=float32, shape=values.shape, vocabulary="items"
        )
        for name, values in checkpoint.items()
    ]
    local = plan_pb2.PLACEMENT_LOCAL
    parameters.append(
        plan_pb2.Parameter(
            name="user", placement=local, dtype=float32, shape=[FACTORS], initial=plan_pb2.Initial(uniform_bound=BOUND)
        )
    )
    if not at_once or biases:
        parameters.append(
            plan_pb2.Parameter(
                name="user_bias", placement=local, dtype=float32, shape=[], initial=plan_pb2.Initial(constant=0.25)
            )
        )
    vocabulary = plan_pb2.Vocabulary(
        name="items", version=2, keys=[f"key-{row}" for row in range(ITEMS)], retired_rows=RETIRED
    ).SerializeToString()
    fields = {
        "fields": [
            plan_pb2.Field(name="item", role=plan_pb2.FIELD_ROLE_INPUT, dtype=int64, vocabulary="items"),
            plan_pb2.Field(
                name="rating", role=plan_pb2.FIELD_ROLE_TARGET, dtype=float32, minimum=0.5, maximum=5.0, limited=True
            ),
        ]
    }
    manifest = plan_pb2.Manifest(
        format=1,
        name="films",
        parameters=parameters,
        graphs=[
            graph_message(plan_pb2.GRAPH_ROLE_TOUCH, TOUCH, blobs),
            graph_message(plan_pb2.GRAPH_ROLE_RECONSTRUCT, AT_ONCE if at_once else steps, blobs),
            graph_message(plan_pb2.GRAPH_ROLE_PREDICT, predict, blobs),
        ],
        hyperparameters={
            "reconstruct.rate": plan_pb2.Hyperparameter(default_value=RATE, minimum=0, maximum=1, per_step=True),
            "reconstruct.ridge": plan_pb2.Hyperparameter(default_value=RIDGE, minimum=1, maximum=9),
        },
        reconstruct_schedule=plan_pb2.Schedule(batch_size=5, epochs=3, maximum_steps=25),
        **(fields | changes),
    )
    bundle = read_bundle(write_manifest(manifest), lambda blob: blobs[blob.digest])
    checkpoint_bytes = write_safetensors(checkpoint)
    origin = Origin("films", 12, digest_of(checkpoint_bytes), digest_of(vocabulary))
    return Sample(bundle, read_checkpoint(bundle, checkpoint_bytes), vocabulary, origin)


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
    bias = 0.25 if "biases" in checkpoint or not at_once else 0.0
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
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "steps"])
@pytest.mark.parametrize("examples", [0, 1, 4, 5, 6, 29])
def test_a_recommender_gives_the_scores_of_its_definition(biases: bool, at_once: bool, examples: int) -> None:
    sample = make_sample(biases=biases, at_once=at_once)
    random = np.random.default_rng(examples)
    rows = random.permutation(ITEMS)[:examples]
    ratings = random.uniform(0.5, 5.0, examples).astype(np.float32)
    found, scores = ask(sample.export(), rows.tolist(), ratings.tolist(), [], ITEMS)
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


def test_excluded_and_retired_rows_are_never_returned_whatever_k() -> None:
    recommender = make_sample().export()
    excluded = [0, 1, 1, 3, 29]
    found, scores = ask(recommender, [0, 1], [5.0, 4.0], excluded, 1000)
    assert sorted(found) == sorted(set(range(ITEMS)) - set(excluded) - set(RETIRED))
    assert np.isfinite(scores).all()
    assert ask(recommender, [], [], list(range(ITEMS)), 5)[0] == []


def test_equal_scores_are_ranked_by_the_lower_row() -> None:
    sample = make_sample(biases=False)
    sample.checkpoint["table"][:] = 0.5
    found, _ = ask(sample.export(), [2], [4.0], [], 5)
    assert found == [0, 1, 2, 4, 5]


def test_local_parameters_are_given_beside_the_ranking() -> None:
    sample = make_sample()
    session = open_session(sample.export())
    assert [value.name for value in session.get_outputs()] == ["rows", "scores", "local/user", "local/user_bias"]
    inputs = {"item": np.zeros(0, np.int64), "rating": np.zeros(0, np.float32), "excluded": np.zeros(0, np.int64)}
    user, bias = session.run(["local/user", "local/user_bias"], inputs | {"k": np.array([1])})
    # The manifest holds the bound as float32.
    initial = (keystream.uniform(bytes(32), "initial", 0, FACTORS) * 2 - 1) * float(np.float32(BOUND))
    np.testing.assert_array_equal(user, initial.astype(np.float32))
    assert bias == np.float32(0.25)


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


def test_a_recommender_with_one_wrong_number_is_refused() -> None:
    sample = make_sample()
    model = onnx.load_from_string(sample.export())
    for initialiser in model.graph.initializer:
        if initialiser.name == "global/table":
            wrong = numpy_helper.to_array(initialiser).copy()
            wrong[5, 2] += 1e-3
            initialiser.CopyFrom(numpy_helper.from_array(wrong, initialiser.name))
    with pytest.raises(WrongRecommenderError, match="differ from the plan's own by up to"):
        sample.verify(model.SerializeToString())


def test_a_recommender_that_shows_a_retired_row_is_refused() -> None:
    sample = make_sample()
    model = onnx.load_from_string(sample.export())
    for initialiser in model.graph.initializer:
        if initialiser.name == "ranking/retired":
            initialiser.CopyFrom(numpy_helper.from_array(np.zeros(ITEMS, dtype=np.float32), initialiser.name))
    with pytest.raises(WrongRecommenderError, match="exactly the rows"):
        sample.verify(model.SerializeToString())


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
        ({"table": np.zeros((ITEMS, FACTORS), np.float32)}, "lacks the parameter 'biases'"),
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
