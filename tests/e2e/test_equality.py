"""The same plan, seeds and cohorts give the same bits through the services and in one process; torch agrees.

Devices draw from the system as always, and what they drew is kept: so every committed round can be run again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedrecon.device_sdk.participation import Fate
from fedrecon.learning.rounds_in_process import CommittedRound, run_round
from fedrecon.ops.blobs import BlobStore, open_blobs
from fedrecon.ops.fleet.people import People
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors
from support.compiled_films import Films, compile_films
from support.recording import Recorded
from support.torch_clients import compare_with_torch
from support.town import RATINGS, Town

ROUNDS = 3
CLIENTS = 4  # of every round, compared with torch

CASES = {
    # The defaults, but in groups of four: what a sum is does not depend on who was added to which.
    "ridge": ("secure_sum.maximum_reports=8", "secure_sum.minimum_group=4", "secure_sum.maximum_weight=20"),
    # All that is drawn counts, and the optimizer remembers two moments.
    "gradient": (
        "work.split=BY_FRACTION",
        "work.support_fraction=0.5",
        "optimizer.rule=ADAM",
        "optimizer.momentum=0.9",
        "optimizer.second_momentum=0.99",
        "optimizer.rate=0.02",
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """What the services committed, and all that it was made of."""

    films: Films
    spec: TaskSpec
    blobs: BlobStore
    committed: list[admin.Round]
    clients: list[list[Recorded]]
    dropouts: int

    def before(self, position: int) -> tuple[bytes, bytes | None]:
        """Returns the checkpoint and the optimizer's state that a committed round started from."""
        if position == 0:
            return self.films.runnable.initial_checkpoint, None
        last = self.committed[position - 1]
        return self.blobs.read(last.checkpoint.digest), self.blobs.read(last.optimizer_state.digest)

    def again(self, position: int, clients: list[Recorded]) -> CommittedRound:
        """Returns what the same round of these clients is in this process."""
        took_part = [each.client() for each in clients]
        return run_round(self.films.runnable, *self.before(position), self.spec, took_part, round_number=position + 1)


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, people: People) -> Run:
    films = compile_films(
        request.param, RATINGS.item_keys, 4, tmp_path_factory.mktemp("films") / "plan", titles=RATINGS.titles
    )
    home: Path = tmp_path_factory.mktemp("stack") / "home"
    with Stack(Settings(home=home)) as stack:
        town = Town(stack, people)
        town.create_task(films.folder, f"rounds.maximum_rounds={ROUNDS}", *CASES[request.param])
        town.wake(dropout=0.2)
        try:
            town.wait_until(is_complete)
            town.sleep_when_told()
        finally:
            town.sleep()
        committed = sorted(committed_rounds(town), key=lambda made: made.key.round)
        return Run(
            films=films,
            spec=town.task().spec,
            blobs=open_blobs(stack.home / "blobs"),
            committed=committed,
            clients=[town.recording.uploaded(made.key.round, made.key.attempt) for made in committed],
            dropouts=town.dropouts,
        )


def is_complete(task: admin.Task) -> bool:
    return task.state == admin.TASK_STATE_COMPLETED


def committed_rounds(town: Town) -> list[admin.Round]:
    return [made for made in town.rounds() if made.phase == admin.ROUND_PHASE_COMMITTED]


def test_every_committed_round_is_the_same_bits_in_one_process(run: Run) -> None:
    assert [made.key.round for made in run.committed] == list(range(1, ROUNDS + 1))
    assert run.dropouts > 0
    for position, (made, clients) in enumerate(zip(run.committed, run.clients, strict=True)):
        assert made.counted == len(clients)
        assert all(each.participation.fate is not Fate.VOID for each in clients)
        # The order is another one than that in which the aggregator added them.
        again = run.again(position, sorted(clients, key=lambda each: each.seeds.rounding))
        assert again.round_sum.sum_digest == digest_of(again.total.to_bytes()) == made.sum_digest
        assert again.round_sum.weight == made.weight
        assert again.round_sum.metric_sums == dict(made.metric_sums)
        assert again.round_sum.update_norm == made.update_norm
        through, here = read_safetensors(run.blobs.read(made.checkpoint.digest)), read_safetensors(again.checkpoint)
        assert through.keys() == here.keys()
        for name, parameter in through.items():
            np.testing.assert_allclose(here[name], parameter, rtol=1e-6, atol=0)
        assert digest_of(again.checkpoint) == made.checkpoint.digest
        assert digest_of(again.optimizer_state) == made.optimizer_state.digest


def test_another_cohort_or_another_draw_is_another_sum(run: Run) -> None:
    (made, clients), *_ = zip(run.committed, run.clients, strict=True)
    swapped = [
        Recorded(one.person, other.seeds, one.participation)
        for one, other in itertools.pairwise([*clients, clients[0]])
    ]
    for others in (clients[1:], [*clients, clients[0]], swapped):
        again = run.again(0, others)
        assert again.round_sum.sum_digest != made.sum_digest
        assert digest_of(again.checkpoint) != made.checkpoint.digest


def test_devices_of_the_run_agree_with_torch(run: Run) -> None:
    for position, clients in enumerate(run.clients):
        checkpoint, _ = run.before(position)
        for each in clients[:CLIENTS]:
            compared = compare_with_torch(run.films, checkpoint, each.client(), run.spec.work)
            assert compared.device.examples == each.participation.examples
            assert compared.local_difference <= 1e-5
            assert compared.update_difference <= 1e-5
            assert np.abs(compared.updates["item_vectors.weight"]).max() > 1e-3  # there was something to compare
