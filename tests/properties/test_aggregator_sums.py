"""Whatever order reports come in, however often, and however often the aggregator starts again: one sum."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecon.aggregator.attempt import Attempt
from fedrecon.aggregator.attempts import Attempts
from fedrecon.aggregator.group_events import Config, Metric, Phase, Segment
from fedrecon.aggregator.holding import Holding
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.messages import protocol_of
from fedrecon.aggregator.optimizers import adagrad, adam, sgd, yogi
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.aggregator.summing import Storage
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_TRUSTED
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, add, quantise, zero

SESSIONS = 9
CONFIG = Config(
    task="films",
    round=1,
    attempt=1,
    kind=1,
    protocol=SUM_PROTOCOL_TRUSTED,
    segments=(Segment("items", 6, 1.0),),
    metrics=(Metric("squared_error", 25.0),),
    ring_bits=32,
    maximum_reports=5,
    maximum_weight=4,
    minimum_group=0,
    cohort_size=10,
    plan_digest=bytes(32),
    checkpoint_digest=bytes(32),
    expires_milliseconds=1_000,
)
KEY = RoundKey(task="films", round=1, attempt=1)


def report_of(session: int) -> Vector:
    generator = np.random.default_rng(session)
    return quantise(
        [generator.uniform(-1, 1, 6)], session + 1, [float(session)], CONFIG.fixed_point, generator.bytes(32)
    )


REPORTS = [report_of(session) for session in range(SESSIONS)]


@dataclass(frozen=True)
class Upload:
    session: int
    waits: bool


@dataclass(frozen=True)
class Restart:
    pass


steps = st.lists(
    st.one_of(
        st.builds(Upload, st.integers(0, SESSIONS - 1), st.booleans()),
        st.just(Restart()),
    ),
    max_size=25,
)


async def upload(attempt: Attempt, session: int) -> None:
    """What the service does once a vector is whole and checked."""
    name, vector = bytes([session]) * 16, REPORTS[session]
    digest = digest_of(vector.to_bytes())
    held = attempt.holding(name)
    if held is None:
        held = attempt.place(name)
        held.add(name, digest, vector)
    assert held.digest_of(name) == digest
    await held.acknowledged(name)


async def sum_after(folder: Path, script: list[Upload | Restart]) -> tuple[set[int], Vector, int]:
    """Plays a script; returns who was acknowledged, the sum of all groups, and the reports in it."""
    journal, clock = MemoryJournal(), ManualClock(0)
    acknowledged: set[int] = set()

    async def begin() -> tuple[Snapshots, Attempts]:
        snapshots = Snapshots(folder, bytes(32), LocalBlobs(folder / "sums"))
        measures = Measures(Metrics.create("aggregator"))
        holding = Holding(snapshots.holder, journal, clock)
        attempts = Attempts(Storage(journal, snapshots, clock, measures), protocol_of, 1_000, holding)
        await attempts.recover()
        return snapshots, attempts

    async def upload_and_note(attempt: Attempt, session: int) -> None:
        await upload(attempt, session)
        acknowledged.add(session)

    snapshots, attempts = await begin()
    await attempts.open(CONFIG)
    running: list[asyncio.Task[None]] = []
    for step in script:
        match step:
            case Upload(session=session, waits=waits):
                running.append(asyncio.create_task(upload_and_note(attempts.find(KEY), session)))
                await asyncio.sleep(0)
                if waits:
                    await asyncio.gather(*running)
            case Restart():
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                running.clear()
                await attempts.stop()
                snapshots.close()
                snapshots, attempts = await begin()
    await asyncio.gather(*running)
    attempt = attempts.find(KEY)
    total, reports = zero(CONFIG.fixed_point), 0
    for summing in attempt.summings:
        await summing.end(discard=False)
        if summing.group.phase is Phase.CLOSED:
            add(total, await summing.read_sum())
            reports += len(summing.group.reports)
    in_sum = {session[0] for summing in attempt.summings for session in summing.group.reports}
    assert acknowledged <= in_sum
    snapshots.close()
    return in_sum, total, reports


@settings(max_examples=25, deadline=None)
@given(steps)
def test_any_order_repetition_and_restart_gives_the_plain_sum(script: list[Upload | Restart]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        in_sum, total, reports = asyncio.run(sum_after(Path(folder), script))
    plain = zero(CONFIG.fixed_point)
    for session in in_sum:
        add(plain, REPORTS[session])
    assert total.to_bytes() == plain.to_bytes()
    assert reports == len(in_sum)
    if not any(isinstance(step, Restart) for step in script):
        assert in_sum == {step.session for step in script if isinstance(step, Upload)}


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), st.integers(1, 6))
def test_optimizers_stay_finite_and_leave_zero_rows_alone(change: list[float], rounds: int) -> None:
    for optimizer in (
        sgd(0.5, 0.9),
        adagrad(0.5, 0.9, 1e-3, 0.0),
        adam(0.5, 0.9, 0.99, 1e-3, 0.0),
        yogi(0.5, 0.9, 0.99, 1e-3, 0.0),
    ):
        before = {"items": np.zeros((2, len(change)), np.float32)}
        update = {"items": np.stack([np.array(change), np.zeros(len(change))])}
        parameters, state = before, optimizer.init(before)
        for _ in range(rounds):
            parameters, state = optimizer.update(update, state, parameters)
        assert np.isfinite(parameters["items"]).all()
        assert not parameters["items"][1].any()
        assert (np.sign(parameters["items"][0]) * np.sign(change) >= 0).all()
