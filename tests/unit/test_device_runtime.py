"""Running plans: what comes out is what numpy computes, and locals stay."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.device_sdk.columns import map_examples, newest, rule_of
from fedrecon.device_sdk.errors import (
    DivergedError,
    LocalParametersStayError,
    TooFewExamplesError,
    UnusablePlanError,
)
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.plans import Plan, load_plan, read_checkpoint
from fedrecon.device_sdk.runtime import Seeds, agreement, reconstruct, report_vector, score, train
from fedrecon.v1 import coordinator_pb2, plan_pb2, task_pb2
from fedrecon.wire import fixed_point, manifests
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from fedrecon.wire.vocabularies import read_vocabulary
from support import device_bundle as bundle

Tensors = dict[str, NDArray[Any]]
SEEDS = Seeds(bytes(32), bytes([1] * 32), bytes([2] * 32))
ITEMS = np.array([4, 1, 4, 0, 1, 2, 4], dtype=np.int64)
RATINGS = np.array([5, 1, 2, 3, 4, 0.5, 1], dtype=np.float32)
COLUMNS: Tensors = {"item": ITEMS, "rating": RATINGS}
WORK = task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES)


@pytest.fixture(scope="module")
def made() -> Any:
    return bundle.make_plan()


@pytest.fixture(scope="module")
def plan(made: Any) -> Plan:
    return load_plan(made.content, made.blobs.__getitem__)


@pytest.fixture(scope="module")
def checkpoint(made: Any, plan: Plan) -> Tensors:
    return read_checkpoint(made.blobs[made.manifest.initial_checkpoint.digest], plan.manifest)


def expected_user(table: NDArray[Any], positions: Sequence[int], rate: float = 0.25, epochs: int = 2) -> NDArray[Any]:
    user = np.full(2, 0.5)
    for position in positions:
        user += epochs * rate * RATINGS[position] * table[ITEMS[position]]
    return user


def test_training_does_what_the_graphs_say(plan: Plan, checkpoint: Tensors) -> None:
    result = train(plan, checkpoint, COLUMNS, WORK, SEEDS)
    support, query = [0, 1, 4, 5], [2, 3, 6]
    user = expected_user(checkpoint["items"], support)
    np.testing.assert_allclose(result.local_parameters["user"], user, rtol=1e-6)
    update = np.zeros((6, 2))
    for position in query:
        update[ITEMS[position]] += 2 * 0.25 * RATINGS[position] * user
    assert result.updates["items"].rows is not None
    assert result.updates["items"].rows.tolist() == [0, 1, 2, 4]
    np.testing.assert_allclose(result.updates["items"].values, update[[0, 1, 2, 4]], rtol=1e-6)
    np.testing.assert_allclose(result.updates["bias"].values, [2 * 0.25 * RATINGS[query].sum()], rtol=1e-6)
    error = sum((RATINGS[p] - checkpoint["items"][ITEMS[p]] @ user) ** 2 for p in query)
    np.testing.assert_allclose(result.metric_sums, [error], rtol=1e-5)
    assert result.examples == 3
    assert result.losses == (2.0, 1.0, 2.0, 1.0)


def test_a_task_sets_rates_and_schedules_within_the_plans_limits(plan: Plan, checkpoint: Tensors) -> None:
    work = task_pb2.LocalWork(
        split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES,
        hyperparameters={"rate": 0.125},
        reconstruct_schedule=plan_pb2.Schedule(batch_size=3, epochs=1),
    )
    result = train(plan, checkpoint, COLUMNS, work, SEEDS)
    user = expected_user(checkpoint["items"], [0, 2, 4, 6], rate=0.125, epochs=1)
    np.testing.assert_allclose(result.local_parameters["user"], user, rtol=1e-6)
    assert result.examples == 3


@pytest.mark.parametrize("hyperparameters", [{"rate": 2.0}, {"momentum": 0.5}])
def test_hyperparameters_beyond_the_plan_are_refused(
    plan: Plan, checkpoint: Tensors, hyperparameters: dict[str, float]
) -> None:
    work = task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES, hyperparameters=hyperparameters)
    with pytest.raises(UnusablePlanError, match=r"rate|momentum"):
        train(plan, checkpoint, COLUMNS, work, SEEDS)


def test_a_ridge_plan_sees_the_support_set_by_its_mask(checkpoint: Tensors) -> None:
    made = bundle.make_plan(ridge=True, initial=0.0)
    plan = load_plan(made.content, made.blobs.__getitem__)
    result = train(plan, checkpoint, COLUMNS, WORK, SEEDS)
    support = [0, 1, 4, 5]
    user = (RATINGS[support, None] * checkpoint["items"][ITEMS[support]]).sum(axis=0) / (2 + len(support))
    np.testing.assert_allclose(result.local_parameters["user"], user, rtol=1e-6)


def test_without_examples_local_parameters_keep_their_initial_value(plan: Plan, checkpoint: Tensors) -> None:
    nothing: Tensors = {"item": np.zeros(0, dtype=np.int64), "rating": np.zeros(0, dtype=np.float32)}
    local = reconstruct(plan, checkpoint, nothing, task_pb2.LocalWork(), bytes(32))
    assert local["user"].tolist() == [0.5, 0.5]


def test_scores_are_those_of_all_rows(plan: Plan, checkpoint: Tensors) -> None:
    local = {"user": np.array([1, 2], dtype=np.float32)}
    scores = score(plan, checkpoint, local, {"item": np.arange(6)})
    np.testing.assert_allclose(scores, checkpoint["items"] @ [1, 2], rtol=1e-6)


def test_an_evaluation_updates_nothing_and_reports_only_metrics(made: Any, plan: Plan, checkpoint: Tensors) -> None:
    result = train(plan, checkpoint, COLUMNS, WORK, SEEDS, coordinator_pb2.SESSION_KIND_EVALUATE)
    assert result.updates == {}
    secure_sum = bundle.make_assignment(made).secure_sum
    agreed = agreement(result, plan.manifest, plan_pb2.Layout(), secure_sum)
    vector = report_vector(result, plan_pb2.Layout(), agreed, SEEDS.rounding)
    assert vector.body.size == 0
    assert vector.tail[:2].tolist() == [3, 1]


def test_the_report_is_the_dense_weighted_update(made: Any, plan: Plan, checkpoint: Tensors) -> None:
    result = train(plan, checkpoint, COLUMNS, WORK, SEEDS)
    secure_sum = bundle.make_assignment(made).secure_sum
    agreed = agreement(result, plan.manifest, plan.manifest.layout, secure_sum)
    elements = manifests.segment_elements(plan.manifest.layout, plan.manifest, {"items": 6}, {})
    assert agreed == manifests.fixed_point_of(plan.manifest.layout, elements, [100.0], secure_sum)
    vector = report_vector(result, plan.manifest.layout, agreed, SEEDS.rounding)
    told = fixed_point.dequantise(vector, agreed)
    dense = np.zeros((6, 2))
    dense[result.updates["items"].rows] = result.updates["items"].values
    np.testing.assert_allclose(told.updates[0].reshape(6, 2), 3 * dense, atol=2e-5)
    np.testing.assert_allclose(told.updates[1], 3 * result.updates["bias"].values, atol=2e-4)
    untouched = vector.body[:12].reshape(6, 2)[[3, 5]]
    assert not untouched.any()
    assert (told.weight, told.reports) == (3, 1)


def test_the_same_seeds_give_the_same_bytes(made: Any, plan: Plan, checkpoint: Tensors) -> None:
    secure_sum = bundle.make_assignment(made).secure_sum
    results = [train(plan, checkpoint, COLUMNS, WORK, SEEDS) for _ in range(2)]
    agreed = agreement(results[0], plan.manifest, plan.manifest.layout, secure_sum)
    vectors = [report_vector(result, plan.manifest.layout, agreed, bytes(32)).to_bytes() for result in results]
    assert vectors[0] == vectors[1]


def test_nothing_is_reported_of_training_that_diverged(plan: Plan, checkpoint: Tensors) -> None:
    huge = {name: np.full_like(value, 3e38) for name, value in checkpoint.items()}
    with pytest.raises(DivergedError, match="not finite"):
        train(plan, huge, COLUMNS, WORK, SEEDS)


def test_an_empty_query_set_is_too_few_examples(plan: Plan, checkpoint: Tensors) -> None:
    one = {name: column[:1] for name, column in COLUMNS.items()}
    with pytest.raises(TooFewExamplesError, match="1 examples"):
        train(plan, checkpoint, one, WORK, SEEDS)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_local_parameters_refuse_to_be_serialised(
    plan: Plan, checkpoint: Tensors, duplicate: Callable[[object], object]
) -> None:
    result = train(plan, checkpoint, COLUMNS, WORK, SEEDS)
    for holder in (result, result.local_parameters, LocalParameters({})):
        with pytest.raises(LocalParametersStayError, match="cannot be serialised"):
            duplicate(holder)
    assert str(result.local_parameters["user"][0]) not in f"{result!r}{result.local_parameters!r}"


def test_sessions_and_plans_are_shared_in_a_process(made: Any, plan: Plan) -> None:
    assert load_plan(made.content, made.blobs.__getitem__) is plan


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"items": np.zeros((6, 3), dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}, r"found \[6, 3\]"),
        ({"items": np.zeros((6, 2), dtype=np.float32)}, "bias should have shape .* found nothing"),
        ({"items": np.full((6, 2), np.nan, dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}, "not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_plan_is_refused(plan: Plan, tensors: Tensors, message: str) -> None:
    with pytest.raises(UnusablePlanError, match=message):
        read_checkpoint(write_safetensors(tensors), plan.manifest)


def test_a_plan_that_would_report_a_local_parameter_is_refused(checkpoint: Tensors) -> None:
    made = bundle.make_plan()
    manifest = plan_pb2.Manifest()
    manifest.CopyFrom(made.manifest)
    update = manifests.graph_of(manifest, plan_pb2.GRAPH_ROLE_UPDATE)
    update.outputs[1].reference = "user"
    content = manifests.write_manifest(manifest)
    with pytest.raises(UnusablePlanError, match="'user', which is no global parameter"):
        train(load_plan(content, made.blobs.__getitem__), checkpoint, COLUMNS, WORK, SEEDS)


def test_a_damaged_graph_is_refused_by_name() -> None:
    made = bundle.make_plan()
    manifest = plan_pb2.Manifest()
    manifest.CopyFrom(made.manifest)
    manifest.graphs[1].blob.digest = digest_of(b"no graph")
    with pytest.raises(UnusablePlanError, match="hand-made/reconstruct cannot be loaded"):
        load_plan(manifests.write_manifest(manifest), {**made.blobs, digest_of(b"no graph"): b"no graph"}.__getitem__)


def test_unknown_keys_and_values_beyond_limits_are_left_out_and_counted(made: Any) -> None:
    columns = {"item": np.array(["film-2", "film-9", "film-0", "film-1"]), "rating": np.array([1.0, 2.0, 7.0, np.nan])}
    items = read_vocabulary(made.blobs[made.manifest.vocabularies["items"].digest])
    mapped = map_examples([rule_of(each) for each in made.manifest.fields], columns, {"items": items}, {"items": 6})
    assert mapped.columns["item"].tolist() == [2]
    assert mapped.unknown_keys == ("film-9",)
    assert (mapped.examples, mapped.left_out) == (1, 3)


def test_keys_beyond_the_checkpoints_rows_are_unknown(made: Any) -> None:
    columns = {"item": np.array(["film-5", "film-1"]), "rating": np.array([1.0, 2.0])}
    items = read_vocabulary(made.blobs[made.manifest.vocabularies["items"].digest])
    mapped = map_examples([rule_of(each) for each in made.manifest.fields], columns, {"items": items}, {"items": 5})
    assert mapped.unknown_keys == ("film-5",)


def test_a_missing_field_is_named(made: Any) -> None:
    items = read_vocabulary(made.blobs[made.manifest.vocabularies["items"].digest])
    rules = [rule_of(each) for each in made.manifest.fields]
    with pytest.raises(UnusablePlanError, match=r"needs the field 'rating'; the examples have \['item'\]"):
        map_examples(rules, {"item": np.array(["film-1"])}, {"items": items}, {"items": 6})


def test_only_the_newest_examples_are_used(made: Any) -> None:
    columns = {"item": np.array(["film-0", "film-1", "film-2"]), "rating": np.array([1.0, 2.0, 3.0])}
    items = read_vocabulary(made.blobs[made.manifest.vocabularies["items"].digest])
    mapped = map_examples([rule_of(each) for each in made.manifest.fields], columns, {"items": items}, {"items": 6})
    assert newest(mapped, 2).columns["item"].tolist() == [1, 2]
    assert newest(mapped, 0) is mapped
