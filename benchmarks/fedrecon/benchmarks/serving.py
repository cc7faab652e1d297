"""How many recommendations a service gives per second, and how long they take at half of that.

The stack runs as in production; callers in one process ask it over TLS, each with examples of their own, as fast as it
answers. `share_of_bare_echo` is that rate against a bare grpc.aio server that echoes the very same requests of the same
client, in turns in the same run, the median over the turns. Then both are asked at half of the service's rate, at even
intervals whatever the answers do, which is how queues are seen.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.benchmarks.bare import ECHO
from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.processes import running_module
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import Ridge
from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.local_tls import tls_variables
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.ops.tls import open_channel
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.inference_pb2 import Column, RecommendRequest, RecommendResponse
from fedrecon.v1.plan_pb2 import Vocabulary

if TYPE_CHECKING:
    Method = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

RECOMMEND = "/fedrecon.v1.Inference/Recommend"
SHARE_LIMIT = 0.25
_TASK = "films"
_TURNS, _TURN_SECONDS, _CALLERS = 5, 1.5, 64
_HALF_LOAD_SECONDS = 4.0
_CALL_SECONDS, _READY_SECONDS, _LOOK_SECONDS = 30.0, 120.0, 0.2


def measure_serving(films: int, factors: int, ratings: int, wanted: int) -> list[Measure]:
    """Ask a service for recommendations, and a bare server for echoes, in turns.

    Args:
        films: Items of the catalogue.
        factors: Numbers in an item's vector.
        ratings: Of each user.
        wanted: Recommendations of each user.

    Returns:
        Rates, their ratio, and 99th percentiles at half load.
    """
    source = np.random.default_rng(2)
    requests = [_request(source, films, ratings, wanted) for _ in range(_CALLERS)]
    with tempfile.TemporaryDirectory(prefix="fedrecon-serving-") as name:
        folder = Path(name)
        model = matrix_factorization(films, factors, mean=3.6, bias=True, reconstruction=Ridge("rating"))
        vocabulary = Vocabulary(name=ITEMS, version=1, keys=[str(row) for row in range(films)])
        compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder / "plan")
        with (
            Stack(Settings(home=folder / "home")) as stack,
            running_module("fedrecon.benchmarks.bare", folder, tls_variables(stack.settings)) as bare,
        ):
            with open_sync_channel(stack.roles["coordinator"].address, stack.home) as channel:
                create_task(AdminStub(channel), build_spec(_TASK, None, []), folder / "plan")
            return asyncio.run(_measure(stack, bare.target, requests))


def _request(source: np.random.Generator, films: int, ratings: int, wanted: int) -> bytes:
    columns = [
        Column(field="item", keys=[str(row) for row in source.choice(films, ratings, replace=False)]),
        Column(field="rating", values=source.integers(1, 6, ratings).tolist()),
    ]
    return RecommendRequest(task=_TASK, columns=columns, count=wanted, exclude_seen=True).SerializeToString()


async def _measure(stack: Stack, bare: str, requests: Sequence[bytes]) -> list[Measure]:
    authority = stack.settings.tls_server_authority
    async with (
        open_channel(stack.roles["inference"].address, authority) as service_channel,
        open_channel(bare, authority) as bare_channel,
    ):
        service: Method = service_channel.unary_unary(RECOMMEND)
        echo: Method = bare_channel.unary_unary(ECHO)
        await _until_live(service, requests[0])
        rates, echoes = [], []
        for turn in range(_TURNS + 1):
            rate, echoed = await _rate(service, requests), await _rate(echo, requests)
            if turn > 0:  # the first one warms everything up
                rates.append(rate)
                echoes.append(echoed)
        half = statistics.median(rates) / 2
        waits, echo_waits = await _wait_at(half, service, requests), await _wait_at(half, echo, requests)
    shares = [rate / echoed for rate, echoed in zip(rates, echoes, strict=True)]
    return [
        Measure("service_recommendations_per_second", statistics.median(rates), "1/s"),
        Measure("service_bare_echoes_per_second", statistics.median(echoes), "1/s"),
        Measure("service_share_of_bare_echo", statistics.median(shares), "ratio", SHARE_LIMIT, "at least"),
        Measure("service_half_load_p99_ms", _last(waits), "ms"),
        Measure("service_bare_echo_half_load_p99_ms", _last(echo_waits), "ms"),
    ]


async def _until_live(service: Method, request: bytes) -> None:
    """Wait for the first export, and see that an answer is one."""
    async with asyncio.timeout(_READY_SECONDS):
        while True:
            try:
                answer = RecommendResponse.FromString(await service(request, timeout=_CALL_SECONDS))
            except grpc.aio.AioRpcError as error:
                if error.code() not in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}:
                    raise
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                assert answer.recommendations  # noqa: S101 - a benchmark of nothing would be fast
                return


async def _rate(method: Method, requests: Sequence[bytes]) -> float:
    """Return answers per second to callers that ask again as soon as they are answered."""
    answered = 0
    began = time.perf_counter()
    end = began + _TURN_SECONDS

    async def ask(request: bytes) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await method(request, timeout=_CALL_SECONDS)
            answered += 1

    await asyncio.gather(*map(ask, requests))
    return answered / (time.perf_counter() - began)


async def _wait_at(rate: float, method: Method, requests: Sequence[bytes]) -> list[float]:
    """Return the milliseconds that calls take which come at even intervals, from when they should have come."""
    waits: list[float] = []
    began = time.perf_counter()

    async def ask(request: bytes, planned: float) -> None:
        await method(request, timeout=_CALL_SECONDS)
        waits.append(1000 * (time.perf_counter() - planned))

    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(itertools.islice(itertools.cycle(requests), int(rate * _HALF_LOAD_SECONDS))):
            planned = began + number / rate
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            group.create_task(ask(request, planned))
    return waits


def _last(waits: Sequence[float]) -> float:
    return float(np.quantile(waits, 0.99))
