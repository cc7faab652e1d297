"""A round in this process is a sum of integers, whoever comes first; a naive mean and torch agree with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import TooFewExamplesError
from fedrecon.device_sdk.runtime import Seeds
from fedrecon.learning.reconstruction import Ridge
from fedrecon.learning.rounds_in_process import Client, CommittedRound, run_round
from fedrecon.ops.task_specs import build_spec
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.fixed_point import TAIL_METRICS, TAIL_ONE, TAIL_WEIGHT
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from support.compiled_films import Films, compile_films
from support.torch_clients import compare_with_torch

KEYS = [f"film-{row}" for row in range(31)]
MAXIMUM_WEIGHT = 8
GROUP = 4
BOUND = 0.5  # the plan's contribution bound of every element


# Compiling takes seconds, and the equality of rounds through the services looks at both plans.
@pytest.fixture(scope="module", params=["gradient", pytest.param("ridge", marks=pytest.mark.slow)])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Films:
    return compile_films(request.param, KEYS, 4, tmp_path_factory.mktemp("films") / "plan")


def spec_of(*assignments: str) -> TaskSpec:
    """A task whose sums are of several groups, and whose every seed counts."""
    defaults = [
        "work.split=BY_FRACTION",
        "work.support_fraction=0.5",
        "work.minimum_examples=2",
        f"secure_sum.maximum_reports={GROUP}",
        f"secure_sum.maximum_weight={MAXIMUM_WEIGHT}",
    ]
    return build_spec("films", None, [*defaults, *assignments])


def seeds_of(number: int) -> Seeds:
    initial, split, rounding = (hashlib.sha256(f"{number} {name}".encode()).digest() for name in "isr")
    return Seeds(initial, split, rounding)


def client_of(number: int, examples: int) -> Client:
    source = np.random.default_rng(number)
    keys = np.array([KEYS[row] for row in source.integers(0, len(KEYS), examples)], dtype=object)
    return Client({"item": keys, "rating": source.integers(1, 11, examples) / 2}, seeds_of(number))


CLIENTS = [client_of(number, 5 + 4 * number) for number in range(9)]


def run(films: Films, clients: Sequence[Client] = CLIENTS, *assignments: str) -> CommittedRound:
    start = films.runnable.initial_checkpoint
    return run_round(films.runnable, start, None, spec_of(*assignments), clients, round_number=1)


def signed(made: CommittedRound) -> NDArray[np.int64]:
    return made.total.body.view("<i4").astype(np.int64)


def test_the_order_of_clients_changes_nothing(films: Films) -> None:
    first = run(films)
    for seed in range(3):
        other = run(films, [CLIENTS[index] for index in np.random.default_rng(seed).permutation(len(CLIENTS))])
        assert other.round_sum.sum_digest == first.round_sum.sum_digest
        assert other.total.to_bytes() == first.total.to_bytes()
        assert other.checkpoint == first.checkpoint
        assert other.optimizer_state == first.optimizer_state
        assert other.round_sum.metric_sums == first.round_sum.metric_sums


def test_groups_give_the_sum_of_one_client_after_the_other(films: Films) -> None:
    alone = [run(films, [client]) for client in CLIENTS]
    together = run(films)
    np.testing.assert_array_equal(signed(together), sum(signed(each) for each in alone))
    np.testing.assert_array_equal(together.total.tail, sum(each.total.tail for each in alone))
    assert together.checkpoint != films.runnable.initial_checkpoint


def test_a_client_that_is_counted_twice_changes_the_sum(films: Films) -> None:
    once, twice = run(films), run(films, [*CLIENTS, CLIENTS[3]])
    assert twice.round_sum.sum_digest != once.round_sum.sum_digest
    assert twice.checkpoint != once.checkpoint
    assert int(twice.total.tail[TAIL_ONE]) == len(CLIENTS) + 1
    np.testing.assert_array_equal(signed(twice) - signed(once), signed(run(films, [CLIENTS[3]])))


def test_weights_are_clipped_and_examples_are_not(films: Films) -> None:
    made = run(films)
    queries = [client.count() - round(client.count() * 0.5) for client in CLIENTS]
    assert max(queries) > MAXIMUM_WEIGHT > min(queries)
    weights = [min(query, MAXIMUM_WEIGHT) for query in queries]
    assert int(made.total.tail[TAIL_WEIGHT]) == made.round_sum.weight == sum(weights)
    assert made.round_sum.metric_sums["examples"] == sum(queries)
    assert len(made.total.tail) == TAIL_METRICS + len(made.round_sum.metric_sums)


def test_in_16_bits_the_second_round_starts_from_half_the_bytes(films: Films) -> None:
    bits = ("optimizer.rule=SGD", "optimizer.rate=1.0", "optimizer.checkpoint_bits=16")
    first, full = run(films, CLIENTS, *bits), run(films, CLIENTS, *bits[:2])
    tables = read_safetensors(first.checkpoint)
    assert {str(table.dtype) for table in tables.values()} == {"float16"}
    for name, table in read_safetensors(full.checkpoint).items():
        np.testing.assert_array_equal(tables[name], table.astype(np.float16))
    second = run_round(films.runnable, first.checkpoint, first.optimizer_state, spec_of(*bits), CLIENTS, round_number=2)
    copy = run_round(films.runnable, as_float32(first.checkpoint), None, spec_of(*bits[:2]), CLIENTS, round_number=2)
    assert second.round_sum.sum_digest == copy.round_sum.sum_digest  # updates are taken against what devices fetched
    assert second.checkpoint != first.checkpoint


def as_float32(checkpoint: bytes) -> bytes:
    return write_safetensors({name: table.astype(np.float32) for name, table in read_safetensors(checkpoint).items()})


def test_the_checkpoint_moves_by_the_weighted_mean_update(films: Films) -> None:
    made = run(films, CLIENTS, "optimizer.rule=SGD", "optimizer.rate=1.0")
    spec, start = spec_of(), films.runnable.initial_checkpoint
    before, after = read_safetensors(start), read_safetensors(made.checkpoint)
    compared = [compare_with_torch(films, start, client, spec.work) for client in CLIENTS]
    weights = [min(each.device.examples, MAXIMUM_WEIGHT) for each in compared]
    limit_of_one = MAXIMUM_WEIGHT * BOUND
    rounding = len(CLIENTS) * limit_of_one * GROUP / (2**31 - 1) / sum(weights)
    for name in before:
        contributions = [
            np.clip(weight * each.updates[name].astype(np.float64), -limit_of_one, limit_of_one)
            for weight, each in zip(weights, compared, strict=True)
        ]
        expected = before[name].astype(np.float64) + sum(contributions) / sum(weights)
        # What float32 keeps of the parameter comes on top of the rounding of the integers.
        limit = rounding + float(np.spacing(np.abs(after[name]).max()))
        assert np.abs(after[name] - expected).max() <= limit


@pytest.mark.parametrize("changed", ["initial", "split", "rounding"])
def test_every_seed_of_a_client_counts(films: Films, changed: str) -> None:
    seeds = replace(CLIENTS[0].seeds, **{changed: bytes(32)})
    others = [Client(CLIENTS[0].examples, seeds), *CLIENTS[1:]]
    difference = np.abs(signed(run(films, others)) - signed(run(films)))
    draws_nothing = changed == "initial" and isinstance(films.model.reconstruction, Ridge)
    assert difference.any() != draws_nothing
    if changed == "rounding":  # a draw moves an integer by one at most
        assert difference.max() == 1


def test_the_next_round_goes_on_from_the_optimizers_state(films: Films) -> None:
    spec, first = spec_of(), run(films)
    second = run_round(films.runnable, first.checkpoint, first.optimizer_state, spec, CLIENTS, round_number=2)
    forgetful = run_round(films.runnable, first.checkpoint, None, spec, CLIENTS, round_number=2)
    assert second.round_sum.sum_digest == forgetful.round_sum.sum_digest != first.round_sum.sum_digest
    assert second.checkpoint != forgetful.checkpoint


def test_epochs_grow_with_the_number_of_the_round(films: Films) -> None:
    said = [f"work.update_schedule.{name}" for name in ("batch_size=5", "epochs=3")]
    growing, start = spec_of(*said, "work.update_schedule.epochs_grow=true"), films.runnable.initial_checkpoint
    for number, epochs in ((1, 1), (2, 2), (3, 3), (4, 3)):
        made = run_round(films.runnable, start, None, growing, CLIENTS, round_number=number)
        same = run(films, CLIENTS, said[0], f"work.update_schedule.epochs={epochs}")
        assert made.round_sum.sum_digest == same.round_sum.sum_digest
        assert (made.round_sum.sum_digest == run(films, CLIENTS, *said).round_sum.sum_digest) == (epochs == 3)


def test_a_device_agrees_with_torch(films: Films) -> None:
    start, work = run(films).checkpoint, spec_of().work
    for client in CLIENTS:
        compared = compare_with_torch(films, start, client, work)
        assert compared.local_difference <= 1e-5
        assert compared.update_difference <= 1e-5


def test_a_client_that_could_not_have_reported_is_an_error(films: Films) -> None:
    with pytest.raises(TooFewExamplesError):
        run(films, [*CLIENTS, client_of(9, 1)])


def test_a_round_without_clients_is_refused(films: Films) -> None:
    with pytest.raises(ValueError, match="at least one client"):
        run(films, [])
