"""A service as its clients and its supervisor see it: over loopback, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedrecon.ops.boundary import ERROR_METADATA, Refusal, refusal_of, refuse_as
from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_channel
from fedrecon.v1.common_pb2 import Chunk

NAME = "fedrecon.tests.Pieces"


class StorageGoneError(Exception):
    """What a storage room would raise; its text holds an address."""


class StorageFullError(StorageGoneError):
    pass


refuse_as(
    StorageGoneError,
    grpc.StatusCode.UNAVAILABLE,
    "STORAGE_GONE",
    "The storage does not answer.",
    "Try again later.",
    retry_milliseconds=(1000, 2000),
)


async def one(request: Chunk, context: Any) -> Chunk:
    match request.data:
        case b"refuse":
            raise Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK", "No such task.", "List them.")
        case b"refuse at length":
            text = request.digest.decode(errors="surrogatepass") * 10_000
            raise Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK", text, text)
        case b"storage":
            raise StorageFullError("redis://secret@host")
        case b"bug":
            raise ValueError("the rating of device 7 is 4.5")
        case b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "by hand")
        case b"sleep":
            await asyncio.sleep(30)
    return request


async def many(request: Chunk, context: Any) -> AsyncIterator[Chunk]:
    del context
    for offset in range(request.offset):
        yield Chunk(offset=offset)
    if request.data == b"refuse":
        raise Refusal(grpc.StatusCode.DATA_LOSS, "BROKEN_BLOB", "The blob is broken.", "Restore it.")


async def total(requests: AsyncIterator[Chunk], context: Any) -> Chunk:
    del context
    offsets = [request.offset async for request in requests]
    if 13 in offsets:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_LUCK", "No 13.", "Leave it out.")
    return Chunk(offset=sum(offsets))


async def echoes(requests: AsyncIterator[Chunk], context: Any) -> AsyncIterator[Chunk]:
    del context
    async for request in requests:
        yield request


def add_pieces(servicer: object, server: Any) -> None:
    del servicer
    codec: dict[str, Any] = {
        "request_deserializer": Chunk.FromString,
        "response_serializer": Chunk.SerializeToString,
    }
    methods = {
        "One": grpc.unary_unary_rpc_method_handler(one, **codec),
        "Many": grpc.unary_stream_rpc_method_handler(many, **codec),
        "Total": grpc.stream_unary_rpc_method_handler(total, **codec),
        "Echoes": grpc.stream_stream_rpc_method_handler(echoes, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))


async def start(service: Service[Settings]) -> None:
    service.add(add_pieces, None)


def call(channel: grpc.aio.Channel, method: str, kind: str = "unary_unary") -> Any:
    make = getattr(channel, kind)
    return make(f"/{NAME}/{method}", request_serializer=Chunk.SerializeToString, response_deserializer=Chunk.FromString)


@dataclass
class Running:
    channel: grpc.aio.Channel
    metrics: Metrics
    address: str
    metrics_address: str | None
    stopping: asyncio.Event
    server: asyncio.Task[int]
    events: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path,
    start: Callable[[Service[Settings]], Coroutine[Any, Any, None]] = start,
    **settings: Any,
) -> AsyncIterator[Running]:
    metrics, stopping, ready = Metrics.create("pieces"), asyncio.Event(), tmp_path / "ready.json"
    made = Settings(**({"metrics_port": -1} | settings))
    task = asyncio.create_task(serve("pieces", start, made, 0, metrics=metrics, ready_file=ready, stopping=stopping))
    while not ready.exists():
        await asyncio.sleep(0.01)
        if task.done():
            await task
    told = json.loads(ready.read_text())
    async with open_channel(told["address"]) as channel:
        yield Running(channel, metrics, told["address"], told["metrics_address"], stopping, task)
    stopping.set()
    await task


async def refused(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


async def test_all_four_kinds_of_calls_are_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert (await call(service.channel, "One")(Chunk(offset=7), timeout=5)).offset == 7
        many_answers = call(service.channel, "Many", "unary_stream")(Chunk(offset=3), timeout=5)
        assert [chunk.offset async for chunk in many_answers] == [0, 1, 2]
        pieces = iter([Chunk(offset=1), Chunk(offset=2)])
        assert (await call(service.channel, "Total", "stream_unary")(pieces, timeout=5)).offset == 3
        pieces = iter([Chunk(offset=1), Chunk(offset=2)])
        echoed = call(service.channel, "Echoes", "stream_stream")(pieces, timeout=5)
        assert [chunk.offset async for chunk in echoed] == [1, 2]


async def test_a_refusal_reaches_the_caller_with_reason_and_advice(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        error = await refused(call(service.channel, "One")(Chunk(data=b"refuse"), timeout=5))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        explained = refusal_of(error)
        assert explained is not None
        assert (explained.reason, explained.message, explained.advice) == (
            "UNKNOWN_TASK",
            "No such task.",
            "List them.",
        )
        assert not explained.HasField("retry")


@pytest.mark.parametrize("letter", ["x", "é", "€", "😀", "\n", "\ud800"])
async def test_a_refusal_of_any_length_and_script_reaches_the_caller(tmp_path: Path, letter: str) -> None:
    async with running(tmp_path) as service:
        question = Chunk(data=b"refuse at length", digest=letter.encode(errors="surrogatepass"))
        error = await refused(call(service.channel, "One")(question, timeout=5))
        explained = refusal_of(error)
        assert explained is not None
        assert (error.code(), explained.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK")
        assert explained.message
        assert explained.advice


async def test_a_refusal_inside_a_stream_follows_what_was_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        stream = call(service.channel, "Many", "unary_stream")(Chunk(offset=2, data=b"refuse"), timeout=5)
        assert (await stream.read()).offset == 0
        assert (await stream.read()).offset == 1
        explained = refusal_of(await refused(stream.read()))
        assert explained is not None
        assert explained.reason == "BROKEN_BLOB"
        total_call = call(service.channel, "Total", "stream_unary")(iter([Chunk(offset=13)]), timeout=5)
        explained = refusal_of(await refused(total_call))
        assert explained is not None
        assert explained.reason == "BAD_LUCK"


async def test_a_registered_exception_is_refused_without_its_own_text(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        error = await refused(call(service.channel, "One")(Chunk(data=b"storage"), timeout=5))
        explained = refusal_of(error)
        assert explained is not None
        assert explained.reason == "STORAGE_GONE"
        assert explained.retry.max_milliseconds == 2000
        assert "secret" not in str(error)
        counter = service.metrics.grpc_server_handled_total
        counted = counter.labels(grpc_method=f"{NAME}/One", grpc_code="UNAVAILABLE")._value.get()
        assert counted == 1  # gRPC's own retries do not repeat what has been answered


async def test_an_unknown_exception_is_an_incident_that_says_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        with structlog.testing.capture_logs() as lines:
            error = await refused(call(service.channel, "One")(Chunk(data=b"bug"), timeout=5))
        assert error.code() is grpc.StatusCode.INTERNAL
        explained = refusal_of(error)
        assert explained is not None
        assert "4.5" not in str(error)
        incident = explained.message.split("incident ")[1].rstrip(").")
    failed = next(line for line in lines if line["event"] == "call failed")
    assert failed["incident"] == incident
    assert isinstance(failed["exc_info"], ValueError)


async def test_a_call_without_a_deadline_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for method, kind in (("One", "unary_unary"), ("Many", "unary_stream")):
            asked = call(service.channel, method, kind)(Chunk(offset=1))
            explained = refusal_of(await refused(asked if kind == "unary_unary" else asked.read()))
            assert explained is not None
            assert explained.reason == "DEADLINE_REQUIRED"


async def test_calls_are_counted_by_method_and_code(tmp_path: Path) -> None:
    async with running(tmp_path, metrics_port=0) as service:
        await call(service.channel, "One")(Chunk(), timeout=5)
        await refused(call(service.channel, "One")(Chunk(data=b"refuse"), timeout=5))
        await refused(call(service.channel, "One")(Chunk(data=b"abort"), timeout=5))
        await refused(call(service.channel, "One")(Chunk(data=b"sleep"), timeout=0.05))
        await refused(call(service.channel, "NoSuchMethod")(Chunk(), timeout=5))
        await asyncio.sleep(0.1)
        page = await asyncio.to_thread(_read, f"http://{service.metrics_address}/metrics")
    for code, count in (("OK", 1), ("NOT_FOUND", 1), ("ABORTED", 1), ("DEADLINE_EXCEEDED", 1)):
        line = f'fedrecon_grpc_server_handled_total{{grpc_code="{code}",grpc_method="{NAME}/One"}} {count}.0'
        assert line in page
    assert "NoSuchMethod" not in page
    assert f'fedrecon_grpc_server_handling_seconds_count{{grpc_method="{NAME}/One"}} 4.0' in page


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback address
        return str(answer.read().decode())


async def test_a_message_over_4_mib_is_refused_by_grpc_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        answer = await call(service.channel, "One")(Chunk(data=bytes(4 * 1024 * 1024 - 100)), timeout=5)
        assert len(answer.data) == 4 * 1024 * 1024 - 100
        error = await refused(call(service.channel, "One")(Chunk(data=bytes(4 * 1024 * 1024 + 1)), timeout=5))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal_of(error) is None


async def test_the_ready_file_of_a_killed_predecessor_is_not_believed(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text('{"address": "127.0.0.1:1"}')
    seen: list[bool] = []

    async def looking(service: Service[Settings]) -> None:
        seen.append(ready.exists())
        service.stopping.set()

    assert await serve("pieces", looking, Settings(metrics_port=-1), 0, ready_file=ready) == 0
    assert seen == [False]


async def test_a_service_comes_back_at_its_port_while_a_client_stays(tmp_path: Path) -> None:
    port = 0
    channel: grpc.aio.Channel | None = None
    for _ in range(2):
        stopping, ready = asyncio.Event(), tmp_path / "ready.json"
        settings = Settings(metrics_port=-1)
        task = asyncio.create_task(serve("pieces", start, settings, port, ready_file=ready, stopping=stopping))
        while not ready.exists():
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
        address = json.loads(ready.read_text())["address"]
        port = int(address.rpartition(":")[2])
        channel = channel or open_channel(address)
        assert (await call(channel, "One")(Chunk(offset=7), timeout=5)).offset == 7
        stopping.set()
        assert await task == 0
    assert channel is not None
    await channel.close()


async def test_the_metrics_port_is_closed_with_the_service(tmp_path: Path) -> None:
    async with running(tmp_path, metrics_port=0) as service:
        address = service.metrics_address
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(_read, f"http://{address}/metrics")


async def test_health_and_reflection_answer_without_a_deadline(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        health = health_pb2_grpc.HealthStub(service.channel)
        for name in ("", NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        async for listed in stub.ServerReflectionInfo(asked):
            names = [entry.name for entry in listed.list_services_response.service]
    assert NAME in names


async def test_a_drain_ends_running_calls_and_tells_health_watchers(tmp_path: Path) -> None:
    async with running(tmp_path, drain_seconds=10) as service:
        watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        slow = call(service.channel, "Echoes", "stream_stream")(timeout=8)
        await slow.write(Chunk(offset=1))
        assert (await slow.read()).offset == 1
        began = time.monotonic()
        service.stopping.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.sleep(0.1)
        assert not service.server.done()
        await slow.write(Chunk(offset=2))
        assert (await slow.read()).offset == 2
        await slow.done_writing()
        assert await slow.read() is grpc.aio.EOF
        assert await service.server == 0
        assert time.monotonic() - began < 2  # the watcher did not hold it up for the whole drain


async def test_calls_that_outlast_the_drain_are_cut(tmp_path: Path) -> None:
    async with running(tmp_path, drain_seconds=0.1) as service, grpc.aio.insecure_channel(service.address) as channel:
        asked = asyncio.ensure_future(call(channel, "One")(Chunk(data=b"sleep"), timeout=20))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        service.stopping.set()
        error = await refused(asked)
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert await service.server == 0
        assert time.monotonic() - began < 2


async def test_resources_close_after_the_background_tasks_that_use_them(tmp_path: Path) -> None:
    events: list[str] = []

    async def tick() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            events.append("task ended")

    async def with_resources(service: Service[Settings]) -> None:
        service.resources.callback(events.append, "first closed")
        service.resources.callback(events.append, "second closed")
        service.run("tick", tick())
        service.add(add_pieces, None)

    async with running(tmp_path, with_resources) as service:
        await call(service.channel, "One")(Chunk(), timeout=5)
    assert events == ["task ended", "second closed", "first closed"]


async def test_a_crash_of_a_background_task_stops_the_service(tmp_path: Path) -> None:
    trip = asyncio.Event()

    async def crash() -> None:
        await trip.wait()
        raise RuntimeError("broken")

    async def crashing(service: Service[Settings]) -> None:
        service.add(add_pieces, None)
        service.run("crash", crash())

    async with running(tmp_path, crashing) as service:
        trip.set()
        assert await asyncio.wait_for(service.server, 5) == 1


async def test_a_start_that_fails_raises_its_own_exception() -> None:
    async def failing(service: Service[Settings]) -> None:
        service.run("waits", asyncio.sleep(60))
        raise StorageGoneError

    with pytest.raises(StorageGoneError):
        await serve("pieces", failing, Settings(metrics_port=-1), 0)


async def test_a_start_that_waits_can_be_stopped() -> None:
    stopping = asyncio.Event()

    async def waiting(service: Service[Settings]) -> None:
        del service
        stopping.set()
        await asyncio.sleep(60)

    assert await asyncio.wait_for(serve("pieces", waiting, Settings(metrics_port=-1), 0, stopping=stopping), 5) == 0


@pytest.mark.parametrize("setting", ["coordinator_port", "metrics_port"])
async def test_a_taken_port_is_named_with_its_setting(setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(metrics_port=port if setting == "metrics_port" else -1)
        with pytest.raises(UserMistake) as caught:
            await serve("pieces", start, settings, 0 if setting == "metrics_port" else port, port_setting=setting)
    text = str(caught.value)
    assert str(port) in text
    assert f"FEDRECON_{setting.upper()}" in text
    assert "in use" in text.lower()


PROGRAM = textwrap.dedent(
    """
    import asyncio, sys
    import grpc
    from fedrecon.ops.lifecycle import run_service
    from fedrecon.ops.journal import JournalUnavailable
    from fedrecon.ops.settings import Settings
    from fedrecon.v1.common_pb2 import Chunk

    class PieceSettings(Settings):
        piece_port: int = 0
        piece_fault: str = ""

    async def one(request, context):
        await asyncio.sleep(request.offset / 1000)
        return request

    def add(servicer, server):
        method = grpc.unary_unary_rpc_method_handler(
            one, request_deserializer=Chunk.FromString, response_serializer=Chunk.SerializeToString
        )
        pieces = grpc.method_handlers_generic_handler("fedrecon.tests.Pieces", {"One": method})
        server.add_generic_rpc_handlers((pieces,))

    async def start(service):
        if service.settings.piece_fault == "journal":
            raise JournalUnavailable("the journal at store:6379 did not answer")
        if service.settings.piece_fault == "bug":
            raise RuntimeError("a bug")
        service.add(add, None)

    sys.exit(run_service("pieces", start, PieceSettings, "piece_port"))
    """
)


def spawn(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDRECON_")} | variables
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_sigterm_of_a_process_lets_a_running_call_end(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    with spawn(tmp_path, "--ready-file", str(ready)) as process:
        try:
            while not ready.exists():
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.02)
            told = json.loads(ready.read_text())
            assert told["pid"] == process.pid
            async with open_channel(told["address"]) as channel:
                asked = asyncio.ensure_future(call(channel, "One")(Chunk(offset=600), timeout=10))
                await asyncio.sleep(0.2)
                process.send_signal(signal.SIGTERM)
                assert (await asked).offset == 600
            _, errors = await asyncio.to_thread(process.communicate, timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in lines] == ["service ready", "service draining", "service stopped"]
    assert {line["service"] for line in lines} == {"pieces"}
    assert not ready.exists()


def test_wrong_settings_end_a_process_with_exit_code_2(tmp_path: Path) -> None:
    with spawn(tmp_path, FEDRECON_PIECE_PROT="7", FEDRECON_DRAIN_SECONDS="soon") as process:
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "FEDRECON_PIECE_PROT: there is no such setting; did you mean FEDRECON_PIECE_PORT?" in errors
    assert "FEDRECON_DRAIN_SECONDS" in errors
    assert not output


@pytest.mark.parametrize(
    ("fault", "code", "event", "text"),
    [
        ("journal", 3, "service cannot go on", "the journal at store:6379 did not answer"),
        ("bug", 1, "service crashed", "RuntimeError: a bug"),
    ],
)
def test_a_start_that_fails_ends_a_process_with_its_own_code(
    tmp_path: Path, fault: str, code: int, event: str, text: str
) -> None:
    with spawn(tmp_path, FEDRECON_PIECE_FAULT=fault, FEDRECON_METRICS_PORT="none") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    (line,) = [json.loads(line) for line in errors.splitlines()]
    assert line["event"] == event
    assert text in str(line)


def test_a_taken_port_ends_a_process_with_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with spawn(tmp_path, FEDRECON_PIECE_PORT=port) as process:
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"FEDRECON_PIECE_PORT: 127.0.0.1:{port} cannot be opened: address already in use." in errors
    assert "Traceback" not in errors


def test_a_process_prints_its_settings_with_secrets_masked(tmp_path: Path) -> None:
    secret = "ab" * 32
    with spawn(tmp_path, "--print-settings", "--json", FEDRECON_SEAL_KEY=secret, FEDRECON_PIECE_PORT="7") as process:
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    printed = json.loads(output)
    assert printed["FEDRECON_PIECE_PORT"] == 7
    assert printed["FEDRECON_SEAL_KEY"] == "********"
    assert secret not in output


def test_the_metadata_name_is_the_one_of_the_contract() -> None:
    assert ERROR_METADATA == "fedrecon-error-bin"
