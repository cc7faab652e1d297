"""How fast reports become part of a running sum, and how much memory that takes.

The aggregator runs as in production, with a real Valkey: a report counts when its device was told that it is durable
(sum sealed and on disk, event in the journal, both with fsync). `share_of_bare_stream` is its rate against a bare
grpc.aio server that takes the same streams and discards them, in turns in the same run, the median over the turns.
Beside it stands the same against a bare server that hashes them, since SHA-256 is most of the work where the processor
has no instruction for it.
`peak_memory_ratio_1000_over_100` says that memory does not grow with the number of reports: the larger ratio of two
sizes of report, each figure from an aggregator of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc.aio
import numpy as np

from fedrecon.benchmarks.bare import DIGEST, DISCARD
from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.processes import TOKEN_KEY, Running, running_module, running_valkey
from fedrecon.device_sdk.requests import UPLOAD
from fedrecon.ops.service_identity import proving_interceptors
from fedrecon.ops.tls import open_channel
from fedrecon.ops.tokens import SESSION_BYTES, issue_token, session_key
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    OpenRequest,
    SessionProof,
    UploadHeader,
    UploadRequest,
)
from fedrecon.v1.aggregator_pb2_grpc import SumsStub
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.v1.plan_pb2 import Layout, MetricSum, Segment
from fedrecon.v1.task_pb2 import SecureSum
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, quantise
from fedrecon.wire.fixed_point import Segment as FixedPointSegment
from fedrecon.wire.proofs import NONCE_BYTES, call_mac

SHARE_LIMIT = 0.8
MEMORY_RATIO_LIMIT = 1.1
SMALL, LARGE = 185_300, 5_000_000
"""Parameters of a report: MovieLens 1M with 50 factors, and 27 times that."""

AT_ONCE = 64
_LARGE_AT_ONCE = 8
"""Uploads of large reports at once: what the aggregator holds of unfinished ones is bounded, by default to 256 MiB."""

_REPORTS = 512
_TURNS = 5
_FEW, _MANY = 100, 1_000
_WEIGHT, _BOUND = 10, 1.0
_LATER_SECONDS = 3_600
_DEVICE_KEY = bytes(range(64, 96))
_CALL_SECONDS = 600.0


def measure_ingest() -> list[Measure]:
    """Upload reports to an aggregator and to a bare server, in turns.

    Returns:
        Rates, their ratio, and peak memory for few and for many reports.
    """
    measures = _rates()
    ratios = []
    for parameters, at_once in ((SMALL, AT_ONCE), (LARGE, _LARGE_AT_ONCE)):
        few, many = [_peak_memory(parameters, count, at_once) for count in (_FEW, _MANY)]
        ratios.append(many / few)
        measures += [
            Measure(f"peak_memory_mb_{parameters}_parameters_{_FEW}_reports", few / 1e6, "MB"),
            Measure(f"peak_memory_mb_{parameters}_parameters_{_MANY}_reports", many / 1e6, "MB"),
            Measure(f"peak_memory_ratio_{parameters}_parameters", many / few, "ratio"),
        ]
    measures.append(Measure("peak_memory_ratio_1000_over_100", max(ratios), "ratio", MEMORY_RATIO_LIMIT))
    return measures


def _rates() -> list[Measure]:
    reports = Reports(SMALL)
    bare_rates, digested_rates, rates = [], [], []
    with _running_aggregator() as aggregator, _running_bare() as bare:
        for turn in range(_TURNS + 1):
            bare_rate = asyncio.run(_bare_rate(bare, DISCARD, reports, _REPORTS))
            digested_rate = asyncio.run(_bare_rate(bare, DIGEST, reports, _REPORTS))
            rate = asyncio.run(_rate(aggregator, reports, _REPORTS, turn + 1, AT_ONCE))
            if turn > 0:  # the first one warms both up
                bare_rates.append(bare_rate)
                digested_rates.append(digested_rate)
                rates.append(rate)
    shares = [rate / bare_rate for rate, bare_rate in zip(rates, bare_rates, strict=True)]
    digested_shares = [rate / bare_rate for rate, bare_rate in zip(rates, digested_rates, strict=True)]
    return [
        Measure("report_mb_per_second", statistics.median(rates) / 1e6, "MB/s"),
        Measure("reports_per_second", statistics.median(rates) / reports.size, "1/s"),
        Measure("bare_stream_mb_per_second", statistics.median(bare_rates) / 1e6, "MB/s"),
        Measure("share_of_bare_stream", statistics.median(shares), "ratio", SHARE_LIMIT, "at least"),
        Measure("bare_hashed_stream_mb_per_second", statistics.median(digested_rates) / 1e6, "MB/s"),
        Measure("share_of_bare_hashed_stream", statistics.median(digested_shares), "ratio"),
        Measure("uploads_at_once", AT_ONCE, "count"),
    ]


def _peak_memory(parameters: int, count: int, at_once: int) -> int:
    """Return the peak memory of a new aggregator that takes so many reports, in bytes."""
    with _running_aggregator() as aggregator:
        asyncio.run(_rate(aggregator, Reports(parameters), count, 1, at_once))
        return aggregator.peak_memory_bytes()


@contextlib.contextmanager
def _running_aggregator() -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="fedrecon-ingest-") as folder,
        running_valkey(Path(folder)) as redis,
        running_module("fedrecon.aggregator", Path(folder), {"FEDRECON_REDIS_URL": redis}) as aggregator,
    ):
        yield aggregator


@contextlib.contextmanager
def _running_bare() -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="fedrecon-bare-") as folder,
        running_module("fedrecon.benchmarks.bare", Path(folder)) as bare,
    ):
        yield bare


class Reports:
    """Reports of one size: the same vector for every session, so that the client has nothing to compute.

    Args:
        parameters: Elements of the vector's body.

    Attributes:
        size: Bytes of the vector.
    """

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters
        fixed_point = FixedPoint((FixedPointSegment(parameters, _BOUND),), (25.0,), _MANY, _WEIGHT)
        update = np.random.default_rng(1).uniform(-_BOUND, _BOUND, parameters)
        vector = quantise([update], _WEIGHT, [1.0], fixed_point, bytes(32)).to_bytes()
        self.size = len(vector)
        self._digest = digest_of(vector)
        self._chunks = [UploadRequest(chunk=chunk).SerializeToString() for chunk in cut(vector, 0)]

    def opening(self, number: int) -> OpenRequest:
        """Return the call that opens a round for them."""
        return OpenRequest(
            round=_round(number),
            kind=coordinator_pb2.SESSION_KIND_TRAIN,
            secure_sum=SecureSum(
                protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=_MANY, maximum_weight=_WEIGHT
            ),
            layout=Layout(segments=[Segment(parameter="items", all_rows=True, bound=_BOUND, width=1)]),
            segment_elements=[self.parameters],
            metrics=[MetricSum(name="squared_error", bound=25.0)],
            cohort_size=_MANY,
            plan_digest=digest_of(b"plan"),
            checkpoint_digest=digest_of(b"checkpoint"),
            expires_unix_milliseconds=_later(),
        )

    def uploads(self, number: int, group: bytes, count: int) -> Iterator[list[bytes]]:
        """Give the streams of so many sessions."""
        for _ in range(count):
            session = secrets.token_bytes(SESSION_BYTES)
            proof = SessionProof(
                round=_round(number),
                session=session,
                round_token=issue_token(TOKEN_KEY, _round(number), session, _later()),
            )
            header = UploadHeader(proof=proof, group=group, size=self.size, digest=self._digest)
            credentials = header.proof.credentials
            credentials.device_key, credentials.nonce = _DEVICE_KEY, secrets.token_bytes(NONCE_BYTES)
            key = session_key(TOKEN_KEY, _round(number), session, _DEVICE_KEY)
            credentials.mac = call_mac(key, UPLOAD.path, header, credentials)
            yield [UploadRequest(header=header).SerializeToString(), *self._chunks]


async def _rate(aggregator: Running, reports: Reports, count: int, number: int, at_once: int) -> float:
    """Return the bytes of reports that a running sum takes per second."""
    async with open_channel(aggregator.target, interceptors=proving_interceptors(TOKEN_KEY)) as channel:
        sums = SumsStub(channel)
        opened = await sums.Open(reports.opening(number), timeout=_CALL_SECONDS)
        uploads = list(reports.uploads(number, opened.groups[0], count))
        seconds = await _send(aggregator.target, UPLOAD.path, uploads, at_once)
        closed = await sums.Close(CloseRequest(round=_round(number)), timeout=_CALL_SECONDS)
        taken = sum(group.reports for group in closed.groups)
        if taken != count:
            raise RuntimeError(f"the sum holds {taken} of {count} reports that were acknowledged")
    return count * reports.size / seconds


async def _bare_rate(bare: Running, path: str, reports: Reports, count: int) -> float:
    """Return the same for streams that are discarded, or hashed and discarded."""
    uploads = list(reports.uploads(1, b"", count))
    return count * reports.size / await _send(bare.target, path, uploads, AT_ONCE)


async def _send(target: str, path: str, uploads: Iterable[list[bytes]], at_once: int) -> float:
    """Send all streams, so many at a time; return how long it took, in seconds."""
    waiting = iter(uploads)
    async with open_channel(target) as channel:
        await channel.channel_ready()
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path)

        async def take_turns() -> None:
            for upload in waiting:
                await method(iter(upload), timeout=_CALL_SECONDS)

        began = time.perf_counter()
        await asyncio.gather(*(take_turns() for _ in range(at_once)))
        return time.perf_counter() - began


def _round(number: int) -> RoundKey:
    return RoundKey(task="ingest", round=number, attempt=1)


def _later() -> int:
    return round((time.time() + _LATER_SECONDS) * 1000)
