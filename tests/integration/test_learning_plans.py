"""Compiled plans: every graph agrees with plain torch, on any schedule, dense and sparse, and bytes repeat."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedrecon.device_sdk import plans, runtime
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.models.personal_network import personal_network
from fedrecon.learning.planning import CompiledPlan, PlanError, compile_plan, read_bundle, verify_plan
from fedrecon.learning.planning.graphs import predict
from fedrecon.learning.planning.verification import levels, open_graph, verify
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, RECONSTRUCT_RIDGE, UPDATE_RATE, Ridge
from fedrecon.learning.reference import Steps, client_update
from fedrecon.v1 import plan_pb2, task_pb2
from fedrecon.v1.plan_pb2 import Vocabulary
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import schedules
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import initial_locals, role_names
from fedrecon.wire.tensors import read_safetensors

Arrays = dict[str, NDArray[Any]]

ROWS = 23
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
vocabularies = {
    ITEMS: Vocabulary(
        name=ITEMS,
        version=1,
        keys=[f"film {row}" for row in range(ROWS)],
        titles=[f"Film number {row}" for row in range(ROWS)],
    )
}


@dataclass(frozen=True)
class Compiled:
    """A model, its plan, and its graphs ready to run."""

    model: FederatedModel
    plan: CompiledPlan

    def run(self, graph: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs a graph at the default level, feeding what the manifest names from `tensors`."""
        message = next(each for each in self.plan.manifest.graphs if role_names[each.role] == graph)
        content = read_bundle(self.plan.path).blobs[message.blob.digest]
        inputs = {value.name: tensors[value.name].numpy() for value in message.inputs}
        outputs = open_graph(graph, content, levels[0][1])(graph, inputs)
        assert list(outputs) == [value.name for value in message.outputs]
        return {name: torch.from_numpy(np.asarray(array)) for name, array in outputs.items()}


def compile_model(model: FederatedModel, folder: Path) -> Compiled:
    return Compiled(model, compile_plan(model, vocabularies if model.vocabularies else {}, KEY, folder / "plan"))


@pytest.fixture(scope="session")
def gradient(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_model(matrix_factorization(ROWS, 6, mean=3.5, bias=True), tmp_path_factory.mktemp("gradient"))


@pytest.fixture(scope="session")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = matrix_factorization(ROWS, 6, mean=3.5, bias=True, reconstruction=Ridge("rating"))
    return compile_model(model, tmp_path_factory.mktemp("ridge"))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_model(personal_network(), tmp_path_factory.mktemp("network"))


@pytest.fixture
def plan_copy(gradient: Compiled, tmp_path: Path) -> Path:
    """A copy of a plan that a test may damage."""
    folder = tmp_path / "plan"
    shutil.copytree(gradient.plan.path, folder)
    return folder


def draw_client(model: FederatedModel, examples: int, steps: int, batch: int, seed: int) -> tuple[Any, ...]:
    """Returns globals, locals, fields, support and query steps, and hyperparameters of a random client."""
    generator = torch.Generator().manual_seed(seed)

    def near(value: Tensor) -> Tensor:
        return value + 0.1 * torch.randn(value.shape, generator=generator)

    fields = {
        each.name: torch.randint(0, ROWS, (examples, *each.shape), generator=generator)
        if each.vocabulary
        else torch.rand((examples, *each.shape), generator=generator)
        for each in model.fields
    }

    def draw_steps() -> Steps:
        count = steps if examples else 0
        mask = (torch.rand((count, batch), generator=generator) < 0.8).float()
        order = torch.randint(0, max(examples, 1), (count, batch), generator=generator)
        return Steps(order * mask.long(), mask)

    support, query = draw_steps(), draw_steps()
    numbers = {
        name: torch.tensor(each.default)
        if name == RECONSTRUCT_RIDGE
        else 0.5 * each.maximum * torch.rand(len(query.order), generator=generator)
        for name, each in model.hyperparameters.items()
    }
    globals_ = {name: near(value) for name, value in model.global_parameters.items()}
    locals_ = {name: near(value) for name, value in model.local_parameters.items()}
    return globals_, locals_, fields, support, query, numbers


def feed(globals_: Any, locals_: Any, fields: Any, steps: Steps, numbers: Any) -> dict[str, Tensor]:
    return {
        **{f"parameter.{name}": value for name, value in {**globals_, **locals_}.items()},
        **{f"field.{name}": value for name, value in fields.items()},
        **{f"hyperparameter.{name}": value for name, value in numbers.items()},
        "order": steps.order,
        "mask": steps.mask,
    }


def close(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    if not expected.numel():
        return True
    return float((found - expected).abs().max()) <= 1e-6 + 1e-5 * float(expected.abs().max())


def run_client(compiled: Compiled, client: tuple[Any, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns what the graphs make of a client: reconstructed locals and updates, with losses among the updates."""
    globals_, locals_, fields, support, query, numbers = client
    tensors = feed(globals_, locals_, fields, support, numbers)
    if isinstance(compiled.model.reconstruction, Ridge):
        tensors["mask"] = support.examples(len(fields["rating"]))
    found = compiled.run("reconstruct", tensors)
    after = {name: found[f"reconstructed.{name}"] for name in locals_}
    return found, compiled.run("update", feed(globals_, after, fields, query, numbers))


def check_client(compiled: Compiled, client: tuple[Any, ...]) -> None:
    expected = client_update(compiled.model, *client)
    found, updates = run_client(compiled, client)
    for name, value in expected.local_parameters.items():
        assert close(found[f"reconstructed.{name}"], value), name
    if "losses" in found:
        assert close(found["losses"], expected.reconstruct_losses)
    for name, value in expected.updates.items():
        assert close(updates[f"update.{name}"], value), name
    assert close(updates["losses"], expected.update_losses)


def run_rows_only(compiled: Compiled, client: tuple[Any, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Returns what the graphs make of a client that gives them only its touched rows, and those rows."""
    globals_, locals_, fields, *rest = client
    touched = compiled.run("touch", {f"field.{name}": value for name, value in fields.items()})
    rows = touched[f"rows.{ITEMS}"]
    few = {name: value[rows] for name, value in globals_.items()}
    renumbered = {**fields, "item": touched["renumbered.item"]}
    found, updates = run_client(compiled, (few, locals_, renumbered, *rest))
    return found, updates, rows


clients = st.tuples(st.integers(0, 40), st.integers(0, 6), st.integers(1, 6), st.integers(0, 2**32))
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(clients)
def test_gradient_steps_agree_with_torch_on_any_client(gradient: Compiled, client: tuple[int, int, int, int]) -> None:
    check_client(gradient, draw_client(gradient.model, *client))


@few
@given(clients)
def test_ridge_agrees_with_an_exact_solver_on_any_client(ridge: Compiled, client: tuple[int, int, int, int]) -> None:
    check_client(ridge, draw_client(ridge.model, *client))


@few
@given(clients)
def test_a_dense_network_agrees_with_torch_on_any_client(network: Compiled, client: tuple[int, int, int, int]) -> None:
    check_client(network, draw_client(network.model, *client))


@few
@given(clients)
def test_touched_rows_give_what_all_rows_give(gradient: Compiled, client: tuple[int, int, int, int]) -> None:
    drawn = draw_client(gradient.model, *client)
    dense_found, dense_updates = run_client(gradient, drawn)
    sparse_found, sparse_updates, rows = run_rows_only(gradient, drawn)
    for name, value in dense_found.items():
        assert torch.equal(sparse_found[name], value), name
    for name in gradient.model.global_parameters:
        assert torch.equal(sparse_updates[f"update.{name}"], dense_updates[f"update.{name}"][rows]), name


@few
@given(clients)
def test_untouched_rows_do_not_change_at_all(gradient: Compiled, client: tuple[int, int, int, int]) -> None:
    drawn = draw_client(gradient.model, *client)
    updates = run_client(gradient, drawn)[1]
    untouched = torch.ones(ROWS, dtype=torch.bool)
    untouched[drawn[2]["item"]] = False
    for name in gradient.model.global_parameters:
        assert not updates[f"update.{name}"][untouched].any(), name


def test_touched_rows_of_ridge_give_what_all_rows_give(ridge: Compiled) -> None:
    drawn = draw_client(ridge.model, 30, 6, 5, 1)
    dense_found, dense_updates = run_client(ridge, drawn)
    sparse_found, sparse_updates, rows = run_rows_only(ridge, drawn)
    for name, value in dense_found.items():
        assert close(sparse_found[name], value), name
    for name in ridge.model.global_parameters:
        assert close(sparse_updates[f"update.{name}"], dense_updates[f"update.{name}"][rows]), name


@pytest.mark.parametrize("name", ["gradient", "ridge", "network"])
def test_a_client_without_examples_keeps_its_initial_locals(name: str, request: pytest.FixtureRequest) -> None:
    compiled: Compiled = request.getfixturevalue(name)
    client = draw_client(compiled.model, 0, 0, 5, 3)
    if name == "ridge":
        client[2]["rating"] = torch.zeros(0)
    found, updates = run_client(compiled, client)
    for local, value in client[1].items():
        assert torch.equal(found[f"reconstructed.{local}"], value)
    assert not any(value.any() for value in updates.values())


def test_repeated_rows_add_up(gradient: Compiled) -> None:
    """Ten times the same item in one batch moves it as far as once: the gradient of the mean."""
    globals_, locals_, *_ = draw_client(gradient.model, 1, 1, 1, 5)
    fields = {"item": torch.tensor([4] * 10), "rating": torch.full((10,), 2.0)}
    rates = {RECONSTRUCT_RATE: torch.tensor([0.1]), UPDATE_RATE: torch.tensor([0.1])}
    once = Steps(torch.zeros((1, 1), dtype=torch.int64), torch.ones((1, 1)))
    often = Steps(torch.arange(10).reshape(1, 10), torch.ones((1, 10)))
    updates = [gradient.run("update", feed(globals_, locals_, fields, steps, rates)) for steps in (once, often)]
    assert updates[0]["update.item_vectors.weight"][4].any()
    for name, value in updates[0].items():
        assert close(updates[1][name], value), name


def test_metrics_are_sums_over_the_masked_examples(gradient: Compiled) -> None:
    globals_, locals_, fields, *_ = draw_client(gradient.model, 12, 1, 1, 9)
    used = torch.tensor([1.0, 0.0] * 6)
    tensors = {**feed(globals_, locals_, fields, Steps(torch.zeros(0), used), {})}
    sums = gradient.run("evaluate", tensors)
    scores = gradient.run("predict", tensors)["scores"]
    errors = (scores - fields["rating"])[::2]
    assert sums["metric.examples"] == 6
    assert math.isclose(float(sums["metric.squared_error"]), float(errors.square().sum()), rel_tol=1e-5)
    assert sums["metric.within_half"] == (errors.abs() <= 0.5).sum()


def test_the_manifest_says_what_the_model_declares(gradient: Compiled) -> None:
    manifest = gradient.plan.manifest
    assert [each.name for each in manifest.parameters] == list(gradient.model.parameters)
    placements = {each.name: each.placement for each in manifest.parameters}
    assert placements["user_vector"] == placements["user_bias"] == plan_pb2.PLACEMENT_LOCAL
    assert placements["item_vectors.weight"] == plan_pb2.PLACEMENT_GLOBAL
    assert {each.name: each.vocabulary for each in manifest.parameters}["item_biases.weight"] == ITEMS
    assert [(each.parameter, each.width, each.all_rows) for each in manifest.layout.segments] == [
        ("item_vectors.weight", 6, True),
        ("item_biases.weight", 1, True),
    ]
    assert manifest.parameters[0].initial.uniform_bound == pytest.approx(0.05)
    assert manifest.hyperparameters["update.rate"].per_step
    assert manifest.reconstruct_schedule.batch_size == 5
    assert [each.name for each in manifest.metrics] == ["squared_error", "within_half", "examples"]


def test_a_dense_parameter_is_one_segment_row(network: Compiled) -> None:
    widths = {each.parameter: each.width for each in network.plan.manifest.layout.segments}
    assert widths["layers.0.weight"] == 16 * 12
    assert "personal" not in widths
    assert not any(graph.role == plan_pb2.GRAPH_ROLE_TOUCH for graph in network.plan.manifest.graphs)


def test_the_checkpoint_holds_the_global_parameters_alone(gradient: Compiled) -> None:
    bundle = read_bundle(gradient.plan.path)
    checkpoint = read_safetensors(bundle.blobs[bundle.manifest.initial_checkpoint.digest])
    assert set(checkpoint) == {"item_vectors.weight", "item_biases.weight"}
    for name, value in gradient.model.global_parameters.items():
        assert np.array_equal(checkpoint[name], value.numpy())


def test_a_plan_reads_back_as_it_was_written(gradient: Compiled) -> None:
    bundle = read_bundle(gradient.plan.path)
    assert bundle.digest == gradient.plan.digest
    assert bundle.manifest == gradient.plan.manifest
    stored = Vocabulary.FromString(bundle.blobs[bundle.manifest.vocabularies[ITEMS].digest])
    assert stored == vocabularies[ITEMS]
    assert verify_plan(gradient.plan.path).answers == 10


def test_no_path_of_this_machine_is_in_a_plan(gradient: Compiled) -> None:
    content = b"".join(read_bundle(gradient.plan.path).blobs.values())
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content


def test_the_same_model_gives_the_same_bytes(gradient: Compiled, tmp_path: Path) -> None:
    again = compile_model(matrix_factorization(ROWS, 6, mean=3.5, bias=True), tmp_path)
    assert again.plan.digest == gradient.plan.digest


def test_a_plan_is_never_overwritten(gradient: Compiled) -> None:
    with pytest.raises(PlanError, match="never overwritten"):
        compile_plan(gradient.model, vocabularies, KEY, gradient.plan.path)


def test_a_flipped_byte_is_found_wherever_it_is(plan_copy: Path) -> None:
    files = [path for path in plan_copy.rglob("*") if path.is_file()]
    assert len(files) == 10
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(PlanError):
            read_bundle(plan_copy)
        path.write_bytes(whole)
    read_bundle(plan_copy)


def test_a_missing_blob_is_named(plan_copy: Path) -> None:
    bundle = read_bundle(plan_copy)
    path = plan_copy / "blobs" / bundle.manifest.initial_checkpoint.digest.hex()
    path.unlink()
    with pytest.raises(PlanError, match=path.name):
        read_bundle(plan_copy)


def test_a_graph_that_differs_from_torch_is_never_written(gradient: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's mean is moved by a thousandth of a star after the graph was made."""
    graph = predict(gradient.model)
    monkeypatch.setattr(gradient.model.module, "mean", 3.5 + 1e-3)
    with pytest.raises(PlanError, match=r"graph predict, case typical, default optimisation: output scores differs"):
        verify(gradient.model, [graph], seed=0)


@pytest.mark.parametrize("name", ["gradient", "ridge", "network"])
def test_a_device_computes_what_the_simulation_computes(name: str, request: pytest.FixtureRequest) -> None:
    """The device SDK runs the plan from its bytes; torch runs the model with the same split, schedules and start."""
    compiled: Compiled = request.getfixturevalue(name)
    model, bundle = compiled.model, read_bundle(compiled.plan.path)
    plan = plans.load_plan((compiled.plan.path / "manifest.json").read_bytes(), lambda digest: bundle.blobs[digest])
    checkpoint = plans.read_checkpoint(bundle.blobs[bundle.manifest.initial_checkpoint.digest], plan.manifest)
    fields = draw_client(model, 27, 1, 1, 11)[2]
    columns = {name: value.numpy() for name, value in fields.items()}
    work = LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES)
    seeds = runtime.Seeds(bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32)
    result = runtime.train(plan, checkpoint, columns, work, seeds)

    own = plan.manifest.update_schedule if name == "ridge" else plan.manifest.reconstruct_schedule
    support, query = schedules.split(27, work.split, batch_size=own.batch_size)
    first = Steps(*map(torch.from_numpy, schedules.order(support, own)))
    second = Steps(*map(torch.from_numpy, schedules.order(query, plan.manifest.update_schedule)))
    numbers = {
        name: torch.tensor(each.default) if name == RECONSTRUCT_RIDGE else torch.full((len(steps.order),), each.default)
        for (name, each), steps in zip(model.hyperparameters.items(), (first, second), strict=True)
    }
    locals_ = {
        local: torch.from_numpy(np.asarray(value))
        for local, value in initial_locals(plan.manifest, checkpoint, seeds.initial).items()
    }
    expected = client_update(model, model.global_parameters, locals_, fields, first, second, numbers)
    for parameter, value in expected.updates.items():
        update = result.updates[parameter]
        found = torch.zeros_like(value)
        if update.rows is None:
            found[:] = torch.from_numpy(update.values)
        else:
            found[torch.from_numpy(update.rows)] = torch.from_numpy(update.values)
        assert value.any()
        assert close(found, value), parameter
    prediction = model.predict({**model.global_parameters, **expected.local_parameters}, fields)[
        torch.from_numpy(query)
    ]
    target = fields[model.targets[0].name][torch.from_numpy(query)]
    assert result.metric_sums[0] == pytest.approx(float((prediction - target).square().sum()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reconstruction", [None, Ridge("rating")])
def test_plain_matrix_factorization_agrees_with_torch(reconstruction: Ridge | None, tmp_path: Path) -> None:
    compiled = compile_model(matrix_factorization(ROWS, 6, reconstruction=reconstruction), tmp_path)
    for seed in range(10):
        check_client(compiled, draw_client(compiled.model, 20, 4, 3, seed))


def test_digests_name_the_exact_bytes(gradient: Compiled) -> None:
    assert digest_of((gradient.plan.path / "manifest.json").read_bytes()) == gradient.plan.digest
    for path in (gradient.plan.path / "blobs").iterdir():
        assert digest_of(path.read_bytes()).hex() == path.name
