"""An aggregator over loopback, a coordinator and devices that speak to it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fedrecon.aggregator.running import assemble
from fedrecon.aggregator.settings import AggregatorSettings
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.ops.blobs import BlobStore, LocalBlobs
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.clock import Clock, SystemClock
from fedrecon.ops.journal import Journal
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.tls import open_service_channel
from fedrecon.ops.tokens import issue_token
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    MergeRequest,
    OpenRequest,
    SessionProof,
    UploadHeader,
    UploadRequest,
)
from fedrecon.v1.aggregator_pb2_grpc import AggregatorStub, SumsStub
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.v1.plan_pb2 import Layout, MetricSum, Segment
from fedrecon.v1.task_pb2 import SecureSum, ServerOptimizer
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, add, quantise, zero
from fedrecon.wire.fixed_point import Segment as FixedPointSegment
from fedrecon.wire.tensors import write_safetensors

TOKEN_KEY = bytes(range(32))
SEAL_KEY = bytes(range(32, 64))
ROUND = RoundKey(task="films", round=3, attempt=1)
PLAN = digest_of(b"plan")
ITEMS, FACTORS = 6, 2
CHECKPOINT = {
    "items": np.arange(ITEMS * FACTORS, dtype=np.float32).reshape(ITEMS, FACTORS),
    "untouched": np.array([5.0, 6.0], np.float32),
}
FIXED_POINT = FixedPoint((FixedPointSegment(ITEMS * FACTORS, 1.0),), (25.0,), maximum_reports=50, maximum_weight=10)
LATER_MILLISECONDS = 600_000


@dataclass
class Aggregator:
    """A running aggregator and its callers."""

    target: str
    channel: grpc.aio.Channel
    metrics: Metrics
    blobs: LocalBlobs
    journal: Any
    folder: Path
    stopping: asyncio.Event
    clock: Clock

    @property
    def devices(self) -> Any:
        return AggregatorStub(self.channel)

    @property
    def sums(self) -> Any:
        return SumsStub(self.channel)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"fedrecon_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    journal: Journal | None = None,
    clock: Clock | None = None,
    port: int = 0,
    sums: Path | None = None,
    blobs_folder: Path | None = None,
    store: BlobStore | None = None,
    **settings: Any,
) -> AsyncIterator[Aggregator]:
    journal = MemoryJournal() if journal is None else journal
    made = AggregatorSettings(
        metrics_port=-1,
        drain_seconds=0.2,
        home=folder,
        round_token_key=TOKEN_KEY.hex(),
        **{"enrolment": "off", **settings},  # most tests are not about who speaks
    )
    clock = SystemClock() if clock is None else clock
    snapshots = Snapshots(made.folder, SEAL_KEY, LocalBlobs(sums or made.folder / "sums"))
    blobs = LocalBlobs(blobs_folder or folder / "blobs")
    metrics, stopping, ready = Metrics.create("aggregator"), asyncio.Event(), folder / f"{secrets.token_hex(4)}.json"

    async def start(service: Service[AggregatorSettings]) -> None:
        await assemble(service, journal, snapshots, blobs if store is None else store, clock)

    server = asyncio.create_task(
        serve("aggregator", start, made, port, metrics=metrics, ready_file=ready, stopping=stopping)
    )
    try:
        while not ready.exists():
            await asyncio.sleep(0.005)
            if server.done():
                await server
        target = json.loads(ready.read_text())["address"]
        async with open_service_channel(target, made) as channel:
            yield Aggregator(target, channel, metrics, blobs, journal, folder, stopping, clock)
    finally:
        stopping.set()
        await server
        snapshots.close()


def now() -> int:
    return SystemClock().now_milliseconds()


def opening(checkpoint: bytes, **changes: Any) -> OpenRequest:
    request = OpenRequest(
        round=ROUND,
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        secure_sum=SecureSum(
            protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=50, maximum_weight=10
        ),
        layout=Layout(segments=[Segment(parameter="items", all_rows=True, bound=1.0, width=FACTORS)]),
        segment_elements=[ITEMS * FACTORS],
        metrics=[MetricSum(name="squared_error", bound=25.0)],
        cohort_size=20,
        plan_digest=PLAN,
        checkpoint_digest=checkpoint,
        expires_unix_milliseconds=now() + LATER_MILLISECONDS,
    )
    for name, value in changes.items():
        if isinstance(value, int | bytes):
            setattr(request, name, value)
        else:
            getattr(request, name).CopyFrom(value)
    return request


@dataclass
class Device:
    """A device with a report."""

    session: bytes
    vector: bytes
    group: bytes = b""
    part: int = 0

    @property
    def proof(self) -> SessionProof:
        key = RoundKey(task=ROUND.task, round=ROUND.round, attempt=ROUND.attempt, part=self.part)
        token = issue_token(TOKEN_KEY, key, self.session, now() + LATER_MILLISECONDS)
        return SessionProof(round=key, session=self.session, round_token=token)

    def parts(self, group: bytes, offset: int = 0, size: int = 1 << 20) -> Iterator[UploadRequest]:
        yield UploadRequest(
            header=UploadHeader(
                proof=self.proof, group=group, size=len(self.vector), digest=digest_of(self.vector), offset=offset
            )
        )
        for chunk in cut(self.vector, offset, size):
            yield UploadRequest(chunk=chunk)

    async def upload(self, aggregator: Aggregator, group: bytes, timeout: float = 10) -> Any:  # noqa: ASYNC109
        return await aggregator.devices.Upload(self.parts(group), timeout=timeout)


def make_device(seed: int, fixed_point: FixedPoint = FIXED_POINT) -> Device:
    generator = np.random.default_rng(seed)
    update = generator.uniform(-1, 1, ITEMS * FACTORS)
    vector = quantise([update], int(generator.integers(1, 20)), [generator.uniform(0, 20)], fixed_point, bytes(32))
    return Device(generator.bytes(16), vector.to_bytes())


def total_of(devices: Sequence[Device]) -> bytes:
    total = zero(FIXED_POINT)
    body = FIXED_POINT.elements * 4
    for device in devices:
        part = zero(FIXED_POINT)
        part.body[:] = np.frombuffer(device.vector[:body], "<u4")
        part.tail[:] = np.frombuffer(device.vector[body:], "<u8")
        add(total, part)
    return total.to_bytes()


async def refused(call: Any, code: grpc.StatusCode, reason: str) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    explained = refusal_of(caught.value)
    assert explained is not None, caught.value
    assert (caught.value.code(), explained.reason) == (code, reason)
    return explained


async def opened(aggregator: Aggregator, **changes: Any) -> tuple[bytes, list[bytes]]:
    checkpoint = aggregator.blobs.put(write_safetensors(CHECKPOINT))
    answer = await aggregator.sums.Open(opening(checkpoint, **changes), timeout=5)
    return checkpoint, list(answer.groups)


def merging(checkpoint: bytes, groups: list[bytes], **changes: Any) -> MergeRequest:
    optimizer = ServerOptimizer(
        rule=task_pb2.OPTIMIZER_RULE_ADAM, rate=0.1, momentum=0.9, second_momentum=0.99, adaptivity=1e-3
    )
    request = MergeRequest(
        round=ROUND,
        groups=groups,
        plan_digest=PLAN,
        checkpoint_digest=checkpoint,
        optimizer=optimizer,
        minimum_reports=1,
    )
    for name, value in changes.items():
        if isinstance(value, int | bytes):
            setattr(request, name, value)
        else:
            getattr(request, name).CopyFrom(value)
    return request
