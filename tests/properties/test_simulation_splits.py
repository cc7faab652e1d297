"""Splits and schedules of many clients at once are those of devices one by one, and no support is ever queried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrecon.coordinator.specs import work_of
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE
from fedrecon.learning.simulation import ClientExamples, Simulator
from fedrecon.learning.simulation.batches import Batches, Half, lay_out, split
from fedrecon.learning.simulation.cohorts import LARGEST_CHUNK
from fedrecon.learning.simulation.descents import Reader
from fedrecon.learning.simulation.vectorising import Vectorised
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork, TaskSpec
from fedrecon.wire import schedules

Positions = NDArray[np.int64]

RULES = [rule for rule in task_pb2.SplitRule.values() if rule != task_pb2.SPLIT_RULE_UNSPECIFIED]
DRAWN, NONE = task_pb2.SPLIT_RULE_BY_FRACTION, task_pb2.SPLIT_RULE_NONE
ROUNDS = 3

batch_sizes = st.integers(1, 7)
fractions = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.0, 1.0))
laid_out_schedules = st.builds(
    Schedule,
    batch_size=batch_sizes,
    epochs=st.integers(0, 4),
    maximum_steps=st.integers(0, 12),
    epochs_grow=st.booleans(),
)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients of these numbers of examples, and some of them in any order."""

    counts: tuple[int, ...]
    chosen: tuple[int, ...]

    @property
    def offsets(self) -> Positions:
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @property
    def clients(self) -> Positions:
        return np.array(self.chosen, dtype=np.int64)


@st.composite
def crowds(draw: st.DrawFn, most: int = 40) -> Crowd:
    counts = draw(st.lists(st.one_of(st.integers(0, 2), st.integers(0, most)), min_size=1, max_size=7))
    chosen = draw(st.lists(st.integers(0, len(counts) - 1), unique=True, min_size=1))
    return Crowd(tuple(counts), tuple(chosen))


def split_crowd(crowd: Crowd, work: LocalWork, batch_size: int, seed: int = 0) -> tuple[Half, Half]:
    return split(crowd.offsets, crowd.clients, work, batch_size, np.random.default_rng(seed))


def each_of(half: Half) -> list[Positions]:
    """Returns every client's positions."""
    return np.split(half.positions, half.offsets[1:-1])


@given(crowds(), st.sampled_from([rule for rule in RULES if rule != DRAWN]), fractions, batch_sizes)
def test_every_client_is_split_as_its_device_splits(crowd: Crowd, rule: Any, fraction: float, size: int) -> None:
    work = LocalWork(split=rule, support_fraction=fraction)
    found = split_crowd(crowd, work, size)
    supports, queries = map(each_of, found)
    assert len(supports) == len(queries) == len(crowd.chosen)
    for client, support, query in zip(crowd.chosen, supports, queries, strict=True):
        expected = schedules.split(crowd.counts[client], rule, batch_size=size, support_fraction=fraction)
        assert (support - crowd.offsets[client]).tolist() == expected[0].tolist()
        assert (query - crowd.offsets[client]).tolist() == expected[1].tolist()
    for half in found:
        assert half.positions.dtype == half.offsets.dtype == np.int64


@given(crowds(), fractions, st.integers(0, 2**32 - 1))
def test_drawn_halves_are_as_large_as_a_devices_and_share_nothing(crowd: Crowd, fraction: float, seed: int) -> None:
    work = LocalWork(split=DRAWN, support_fraction=fraction)
    for support, query, client in zip(*map(each_of, split_crowd(crowd, work, 5, seed)), crowd.chosen, strict=True):
        expected, _ = schedules.split(crowd.counts[client], DRAWN, batch_size=5, support_fraction=fraction)
        assert len(support) == len(expected)
        for half in (support, query):
            assert (np.diff(half) > 0).all(), "ascending, none twice"
        everything = np.arange(crowd.offsets[client], crowd.offsets[client + 1])
        assert sorted([*support, *query]) == everything.tolist()


def test_drawn_halves_differ_from_draw_to_draw_and_from_client_to_client() -> None:
    crowd, work = Crowd((30, 30), (0, 1)), LocalWork(split=DRAWN, support_fraction=0.5)
    draws = [each_of(split_crowd(crowd, work, 5, seed)[0]) for seed in (1, 2, 1)]
    assert [half.tolist() for half in draws[0]] == [half.tolist() for half in draws[2]]
    assert draws[0][0].tolist() != draws[1][0].tolist()
    assert draws[0][0].tolist() != (draws[0][1] - 30).tolist()


def test_every_example_is_drawn_for_the_support_equally_often() -> None:
    crowd, work = Crowd((3, 8), (0, 1)), LocalWork(split=DRAWN, support_fraction=0.5)
    generator, times = np.random.default_rng(0), np.zeros(11)
    for _ in range(2_000):
        times[split(crowd.offsets, crowd.clients, work, 5, generator)[0].positions] += 1
    shares = times / 2_000
    assert np.abs(shares[:3] - 2 / 3).max() < 0.05  # round(3 * 0.5) is 2
    assert np.abs(shares[3:] - 1 / 2).max() < 0.05


def test_a_rule_that_is_not_stated_is_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        split_crowd(Crowd((3,), (0,)), LocalWork(), 5)


@given(crowds(), st.sampled_from(RULES), batch_sizes)
def test_halves_of_some_clients_are_theirs_in_the_order_asked_for(crowd: Crowd, rule: Any, size: int) -> None:
    everyone = Crowd(crowd.counts, tuple(range(len(crowd.counts))))
    for half in split_crowd(everyone, LocalWork(split=rule, support_fraction=0.5), size):
        own, picked = each_of(half), each_of(half.select(crowd.clients))
        assert [one.tolist() for one in picked] == [own[client].tolist() for client in crowd.chosen]
        padded, mask = half.padded(crowd.clients)
        rows = zip(padded, mask, crowd.chosen, strict=True)
        assert all(row[real > 0].tolist() == own[client].tolist() for row, real, client in rows)
        assert not padded[mask == 0].any()


def read(half: Half, schedule: Schedule, round_number: int, clients: Sequence[int]) -> tuple[Batches, Any, Any]:
    """Returns the positions, and what is real of them, that clients read in every step, through a reader."""
    batches = lay_out(half, schedule, round_number)
    most = int(batches.steps.max(initial=0))
    chosen, running = batches.numbers(np.array(clients, dtype=np.int64), most)
    shape = (*chosen.shape, schedule.batch_size)
    if not len(batches.positions):
        assert not running.any()
        return batches, np.zeros(shape, dtype=np.int64), np.zeros(shape)
    columns = {"position": torch.arange(int(half.positions.max(initial=0)) + 1)}
    fields, mask = Reader.of(columns, batches).pick(chosen)
    assert fields["position"].shape == mask.shape == shape
    return batches, fields["position"].numpy(), mask.numpy() * running[:, :, None]


@given(crowds(), st.sampled_from(RULES), laid_out_schedules, st.integers(1, 6))
def test_every_client_takes_the_steps_of_its_device(
    crowd: Crowd, rule: Any, schedule: Schedule, round_number: int
) -> None:
    task = TaskSpec(work=LocalWork(split=rule, support_fraction=0.5, update_schedule=schedule))
    told = work_of(task, round_number).update_schedule
    assert told.epochs == (min(round_number, schedule.epochs) if schedule.epochs_grow else schedule.epochs)
    for half in split_crowd(crowd, task.work, schedule.batch_size):
        batches, positions, mask = read(half, schedule, round_number, range(len(crowd.chosen)))
        for client, own in enumerate(each_of(half)):
            order, expected = schedules.order(own, told)
            steps = len(order)
            assert batches.steps[client] == steps
            assert mask[client, :steps].tolist() == expected.tolist()
            assert not mask[client, steps:].any()
            real = expected > 0
            assert positions[client, :steps][real].tolist() == order[real].tolist()
        assert batches.repeats == any(
            len(schedules.order(own, told)[0]) > -(-len(own) // schedule.batch_size) for own in each_of(half)
        )


@given(
    crowds(),
    st.sampled_from([rule for rule in RULES if rule != NONE]),
    laid_out_schedules,
    laid_out_schedules,
    st.randoms(use_true_random=False),
)
def test_support_is_never_read_as_query_in_any_round_or_order_of_clients(
    crowd: Crowd, rule: Any, reconstruct: Schedule, update: Schedule, random: Any
) -> None:
    work = LocalWork(split=rule, support_fraction=0.5)
    owners = np.repeat(np.arange(len(crowd.counts)), crowd.counts)
    generator = np.random.default_rng(random.getrandbits(32))
    fixed: list[set[int]] = [set(), set()]
    for round_number in range(1, ROUNDS + 1):
        order = random.sample(range(len(crowd.chosen)), len(crowd.chosen))
        halves = split(crowd.offsets, crowd.clients, work, reconstruct.batch_size, generator)
        seen: list[set[int]] = []
        for half, schedule in zip(halves, (reconstruct, update), strict=True):
            _, positions, mask = read(half, schedule, round_number, order)
            assert all(
                set(owners[positions[place][mask[place] > 0]]) <= {crowd.chosen[client]}
                for place, client in enumerate(order)
            ), "a client reads only what is its own"
            seen.append(set(positions[mask > 0].tolist()))
        assert not seen[0] & seen[1]
        if rule != DRAWN:
            fixed = [before | now for before, now in zip(fixed, seen, strict=True)]
            assert not fixed[0] & fixed[1], "nor what supported in an earlier round"


@given(crowds(), st.sampled_from(RULES), batch_sizes)
def test_an_epoch_reads_every_example_in_one_half_and_with_no_split_in_both(crowd: Crowd, rule: Any, size: int) -> None:
    once, chosen = Schedule(batch_size=size, epochs=1), range(len(crowd.chosen))
    seen: Counter[int] = Counter()
    for half in split_crowd(crowd, LocalWork(split=rule, support_fraction=0.5), size):
        _, positions, mask = read(half, once, 1, chosen)
        seen.update(positions[mask > 0].tolist())
    owners = np.repeat(np.arange(len(crowd.counts)), crowd.counts)
    times = 2 if rule == NONE else 1
    assert seen == {place: times for place, owner in enumerate(owners) if owner in crowd.chosen}


@dataclass(slots=True)
class Steps:
    """What a simulation's steps read: how often each example was, by phase."""

    reconstruct: Counter[int] = field(default_factory=Counter)
    update: Counter[int] = field(default_factory=Counter)

    def watching(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `Vectorised.__call__` with a look at the examples that it is given."""

        def seen(of: Vectorised, *arguments: Any) -> Any:
            _, _, _, fields, mask, _, _, rates = arguments
            phase = self.reconstruct if RECONSTRUCT_RATE in rates else self.update
            phase.update(fields["rating"][mask > 0].long().tolist())
            return call(of, *arguments)

        return seen


def numbered_examples(counts: Sequence[int]) -> ClientExamples:
    """Returns examples of which each is known by its rating."""
    items = [np.arange(count, dtype=np.int64) for count in counts]
    offsets = np.cumsum([0, *counts])
    return ClientExamples.from_clients(
        [
            {"item": own, "rating": (own + begin).astype(np.float32)}
            for own, begin in zip(items, offsets[:-1], strict=True)
        ]
    )


ONCE = Schedule(batch_size=2, epochs=1)


@settings(max_examples=8, deadline=None)
@example(Crowd((0, 0), (1, 0)), RULES[0], ONCE, ONCE)
@given(
    crowds(most=9),
    st.sampled_from(RULES),
    st.builds(Schedule, batch_size=st.integers(1, 3), epochs=st.integers(1, 3), epochs_grow=st.booleans()),
    st.builds(Schedule, batch_size=st.integers(1, 3), epochs=st.integers(1, 3), epochs_grow=st.booleans()),
)
def test_the_steps_of_whole_rounds_read_what_devices_would(
    crowd: Crowd, rule: Any, reconstruct: Schedule, update: Schedule
) -> None:
    work = LocalWork(
        split=rule,
        support_fraction=0.5,
        reconstruct_schedule=reconstruct,
        update_schedule=update,
        # What matters is what is read: steps of no length stay finite whatever the numbers of the examples.
        hyperparameters={RECONSTRUCT_RATE: 0.0, "update.rate": 0.0},
    )
    model = matrix_factorization(10, 2)
    simulator, examples = Simulator(model, work, compiled=False), numbered_examples(crowd.counts)
    generator, whole = np.random.default_rng(0), set(np.arange(sum(crowd.counts)))
    for number in range(1, ROUNDS + 1):
        found = Steps()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Vectorised, "__call__", found.watching(Vectorised.__call__))
            simulator.run(model.global_parameters, examples, crowd.clients, number, generator)
        told = work_of(TaskSpec(work=work), number)
        if rule == DRAWN:
            own = [range(crowd.offsets[client], crowd.offsets[client + 1]) for client in crowd.chosen]
            assert not set(found.reconstruct) & set(found.update)
            assert set(found.reconstruct) | set(found.update) == {each for mine in own for each in mine} <= whole
            assert set(found.reconstruct.values()) <= {told.reconstruct_schedule.epochs}
            assert set(found.update.values()) <= {told.update_schedule.epochs}
            continue
        expected = Steps()
        for client in crowd.chosen:
            halves = schedules.split(
                crowd.counts[client], rule, batch_size=reconstruct.batch_size, support_fraction=0.5
            )
            phases = (expected.reconstruct, told.reconstruct_schedule), (expected.update, told.update_schedule)
            for half, (phase, schedule) in zip(halves, phases, strict=True):
                order, mask = schedules.order(half + crowd.offsets[client], schedule)
                phase.update(order[mask > 0].tolist())
        assert found == expected


def test_a_chunk_of_clients_without_query_examples_adds_nothing() -> None:
    again = Schedule(batch_size=2, epochs=2)
    work = LocalWork(split=RULES[0], reconstruct_schedule=again, update_schedule=again)
    model, counts = matrix_factorization(10, 2), (6, *[1] * (LARGEST_CHUNK + 5))
    found = []
    for number in (1, len(counts)):
        examples, starts = numbered_examples(counts[:number]), {"user_vector": torch.full((number, 2), 0.1)}
        simulator, everyone = Simulator(model, work, compiled=False), np.arange(number)
        found.append(simulator.run(model.global_parameters, examples, everyone, 1, np.random.default_rng(0), starts))
    alone, together = found
    assert together.weight == alone.weight == 2
    assert alone.updates["item_vectors.weight"].any()
    assert torch.allclose(together.updates["item_vectors.weight"], alone.updates["item_vectors.weight"], atol=1e-6)
