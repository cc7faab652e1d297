"""The life of a service: settings, start, ready, drain, end.

Rules:
- The port is opened before the service starts its own work, so that it knows its address; calls are accepted after.
- Ready means: health says SERVING, then the ready file appears, whole.
- SIGTERM and SIGINT: health says NOT_SERVING, no new calls, running calls have `drain_seconds` to end (`stopping` tells
  those that wait), then background tasks are cancelled, then resources are closed, last opened first. Exit code 0.
- A background task that crashes stops the service at once with exit code 1: a supervisor starts it again, and recovery
  is replay. Half a service is worse than none.
- Exit codes: 0 stopped as asked, 1 crashed, 2 the settings or the port are wrong, 3 storage cannot be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from starlette.routing import BaseRoute

from fedrecon.ops.boundary import Boundary, refusal_for
from fedrecon.ops.callers import known_callers
from fedrecon.ops.http_server import make_app, open_http_socket, serve_http
from fedrecon.ops.limits import Limits
from fedrecon.ops.logs import configure_logs, logger_of
from fedrecon.ops.metrics import Metrics, serve_metrics
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.operators import Role
from fedrecon.ops.ports import open_port
from fedrecon.ops.settings import Settings, load_settings, settings_json, settings_table
from fedrecon.ops.storage_refusals import refuse_storage_failures
from fedrecon.ops.storage_watch import StorageWatch
from fedrecon.ops.tls import LARGEST_MESSAGE_BYTES
from fedrecon.ops.traces import open_traces

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    # Two services on one port would share its calls at random; without this Linux allows it.
    ("grpc.so_reuseport", 0),
    # gRPC cancels calls beyond 1,000 that wait to be taken up: a selection window gathers more devices than that.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    # Devices may ping every 10 s, also while they wait, without being sent away for `too_many_pings`.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Dead devices are noticed within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_BURST_SECONDS = 10
_GARBAGE_THRESHOLDS = (20_000, 20, 20)

_log = logger_of(__name__)

SettingsType = TypeVar("SettingsType", bound=Settings)


class _Names:
    """Stands for a server while a servicer is added, and remembers the names of its services."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.names += [handler.service_name() for handler in handlers]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self._server.add_registered_method_handlers(service, handlers)


@dataclass(slots=True)
class Service(Generic[SettingsType]):
    """A service that starts, as its own `start` function sees it.

    Attributes:
        name: Name of the service, in logs and metrics.
        settings: Its settings.
        metrics: What it counts.
        address: `host:port` that was opened for it.
        resources: What to close at the end, last opened first: connections, pools, temporary folders.
        stopping: Set when the service begins to drain: calls that wait should answer.
        http_address: `host:port` where it answers over HTTP; empty if it does not.
    """

    name: str
    settings: SettingsType
    metrics: Metrics
    address: str
    resources: contextlib.AsyncExitStack
    stopping: asyncio.Event
    _server: grpc.aio.Server
    _boundary: Boundary
    _group: asyncio.TaskGroup
    _health: health.aio.HealthServicer
    http_address: str = ""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _service_names: list[str] = field(default_factory=list)

    def add(
        self,
        add_servicer_to_server: Callable[[Any, Any], None],
        servicer: Any,
        *,
        internal: bool = False,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        """Answer the calls of one service of the contract.

        Args:
            add_servicer_to_server: The generated function, for example `add_CoordinatorServicer_to_server`.
            servicer: What answers.
            internal: Whether only services of the deployment may call it.
            roles: Who else may, by the method's own name: the least role of an operator.
        """
        names = _Names(self._server)
        add_servicer_to_server(servicer, names)
        self._service_names += names.names
        if internal:
            self._boundary.internal.update(names.names)
            for method, role in (roles or {}).items():
                self._boundary.roles.update({f"/{name}/{method}": role for name in names.names})

    def add_http(self, routes: list[BaseRoute], port: int, port_setting: str) -> None:
        """Answer requests over HTTP, too.

        Args:
            routes: What is answered.
            port: 0 for a free one.
            port_setting: Field of the settings that holds it, for the message when it is taken.

        Raises:
            UserMistake: The port is taken.
        """
        opened = open_http_socket(self.settings, port, port_setting)
        self.http_address = f"{self.settings.host}:{opened.getsockname()[1]}"
        self.run("serve http", serve_http(make_app(routes, self.settings), opened, self.settings))

    async def tell_health(self, name: str, serves: bool) -> None:
        """Tell by gRPC's health service how something of this service stands.

        Args:
            name: What, as who asks names it; beside the names of services.
            serves: Whether it works.
        """
        status = health_pb2.HealthCheckResponse
        await self._health.set(name, status.SERVING if serves else status.NOT_SERVING)

    def watch_storage(self) -> StorageWatch:
        """Return what tells of this service's stores; give it to those who open them."""
        return StorageWatch(self.metrics, self.tell_health)

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task until it ends or the service does; it is cancelled after the drain.

        Args:
            name: What it does, for the log.
            work: The task. If it raises, the service stops with exit code 1.

        Returns:
            The task, for those who want to cancel it earlier.
        """
        task = self._group.create_task(self._watched(name, work), name=name)
        self._tasks = [other for other in self._tasks if not other.done()]
        self._tasks.append(task)
        return task

    async def _watched(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            _log.exception("background task crashed", task=name, exc_info=error)
            raise


Start = Callable[[Service[SettingsType]], Coroutine[Any, Any, None]]
"""Opens a service's resources, adds its servicers and runs its background tasks."""


async def serve(
    name: str,
    start: Start[SettingsType],
    settings: SettingsType,
    port: int,
    *,
    port_setting: str = "port",
    metrics: Metrics | None = None,
    ready_file: Path | None = None,
    stopping: asyncio.Event | None = None,
) -> int:
    """Run a service until it is asked to stop or crashes.

    Args:
        name: Name of the service, in logs and metrics.
        start: See `Start`.
        settings: Its settings.
        port: Port to open on `settings.host`; 0 for a free one.
        port_setting: Field of the settings that holds it, for the message when it is taken.
        metrics: What it counts; new by default.
        ready_file: Where to write address, metrics address and process id (JSON) once it is ready.
        stopping: Set it to stop the service; SIGTERM and SIGINT set it too.

    Returns:
        The exit code, 0 or 1.

    Raises:
        UserMistake: The port is taken or a file cannot be read.
        Exception: What `start` raised.
    """
    refuse_storage_failures()
    if ready_file is not None:
        # Left by a killed predecessor: its address is not ours.
        await asyncio.to_thread(ready_file.unlink, missing_ok=True)
    metrics = metrics or Metrics.create(name)
    stopping = stopping or asyncio.Event()
    rate = settings.address_calls_per_second
    limits = Limits(rate, max(round(rate * _BURST_SECONDS), 1), time.monotonic)
    boundary = Boundary(metrics, known_callers(settings), limits)
    server = grpc.aio.server(interceptors=[boundary], options=SERVER_OPTIONS)
    failure: Exception | None = None
    async with contextlib.AsyncExitStack() as resources:
        address = open_port(server, settings, port, port_setting)
        metrics_address = None
        if settings.metrics_port >= 0:
            endpoint = serve_metrics(metrics, settings.host, settings.metrics_port)
            resources.push_async_callback(asyncio.to_thread, endpoint.close)
            metrics_address = endpoint.address
        _listen_to_signals(stopping, resources)
        try:
            async with asyncio.TaskGroup() as group:
                watched = health.aio.HealthServicer()
                service = Service(
                    name, settings, metrics, address, resources, stopping, server, boundary, group, watched
                )
                try:
                    if await _started(start(service), stopping):
                        await _serve_health_and_reflection(server, watched, service._service_names)  # noqa: SLF001
                        await server.start()
                        if ready_file is not None:
                            _write_ready_file(ready_file, address, metrics_address, service.http_address)
                            resources.callback(ready_file.unlink, missing_ok=True)
                        _log.info("service ready", address=address, metrics=metrics_address)
                        await stopping.wait()
                        await _drain(server, boundary, watched, settings.drain_seconds)
                except Exception as error:  # noqa: BLE001 - raised again outside of the group, which would wrap it
                    failure = error
                for task in service._tasks:  # noqa: SLF001 - the other half of this module
                    task.cancel()
        except ExceptionGroup:  # each has been logged where it happened
            return 1
        finally:
            await server.stop(None)  # before the resources that its calls use
        if failure is not None:
            raise failure
    _log.info("service stopped")
    return 0


async def _started(starting: Coroutine[Any, Any, None], stopping: asyncio.Event) -> bool:
    """Whether the start ended before the service was asked to stop; a start that waits for storage is cancelled."""
    work = asyncio.create_task(starting)
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
            return True
        return False
    finally:
        asked.cancel()
        work.cancel()
        await asyncio.gather(work, asked, return_exceptions=True)


def _listen_to_signals(stopping: asyncio.Event, resources: contextlib.AsyncExitStack) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in threads, nor on Windows
            loop.add_signal_handler(number, stopping.set)
            resources.callback(loop.remove_signal_handler, number)


async def _serve_health_and_reflection(
    server: grpc.aio.Server, servicer: health.aio.HealthServicer, names: Sequence[str]
) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


async def _drain(server: grpc.aio.Server, boundary: Boundary, health_servicer: Any, seconds: float) -> None:
    _log.info("service draining", seconds=seconds)
    await health_servicer.enter_graceful_shutdown()
    stopped = asyncio.create_task(server.stop(seconds))
    idle = asyncio.create_task(boundary.idle.wait())
    await asyncio.wait({stopped, idle}, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    # Watchers of health never end by themselves: they do not hold up a service that has no other call left.
    await asyncio.wait({stopped}, timeout=_LAST_ANSWERS_SECONDS)
    await server.stop(None)
    await stopped


_LAST_ANSWERS_SECONDS = 1.0
"""Time in which the last answers leave after their methods have ended, while somebody watches the health."""


def _write_ready_file(path: Path, address: str, metrics_address: str | None, http_address: str) -> None:
    addresses = {"address": address, "metrics_address": metrics_address, "http_address": http_address}
    content = json.dumps({**addresses, "pid": os.getpid()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
        partial.write(content)
    Path(partial.name).replace(path)


def run_service(
    name: str,
    start: Start[SettingsType],
    settings_class: type[SettingsType],
    port_setting: str,
    arguments: Sequence[str] | None = None,
    *,
    module: str | None = None,
) -> int:
    """Run a service as a program.

    Args:
        name: Name of the service.
        start: See `Start`.
        settings_class: Its settings.
        port_setting: Field of the settings that holds its port.
        arguments: Of the command line, without the program's name; the process's own by default.
        module: What is run, for its help; the room of the service's name by default.

    Returns:
        The exit code.

    Example of a room's `__main__.py`:
        `sys.exit(run_service("coordinator", start, CoordinatorSettings, "coordinator_port"))`
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module or f'fedrecon.{name}'}",
        description=f"Runs the {name}. Settings are variables FEDRECON_....",
    )
    parser.add_argument("--print-settings", action="store_true", help="print the settings, secrets masked, and end")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument("--ready-file", type=Path, help="file to write, as JSON, when the service is ready")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(settings_class)
        if options.print_settings:
            _print_settings(settings, as_json=options.json)
            return 0
        _refuse_plaintext(settings)
        configure_logs(name, level=settings.log_level, form=settings.log_format)
        with contextlib.ExitStack() as ending:
            ending.callback(open_traces(name, settings.traces_url))
            return asyncio.run(
                serve(
                    name,
                    _settling(start),
                    settings,
                    getattr(settings, port_setting),
                    port_setting=port_setting,
                    ready_file=options.ready_file,
                )
            )
    except UserMistake as mistake:
        sys.stderr.write(f"{mistake}\n")
        return 2
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # noqa: BLE001 - the last place where it can be said
        refusal = refusal_for(error)
        if refusal is not None:
            _log.error("service cannot go on", reason=refusal.reason, problem=str(error))
            return 3
        _log.exception("service crashed", exc_info=error)
        return 1


def _settling(start: Start[SettingsType]) -> Start[SettingsType]:
    """Return a start after which the garbage collector leaves alone what it made, and looks for cycles less often.

    Under load thousands of calls are young at once: with Python's own thresholds a coordinator spent an eighth of its
    time on looking through modules and classes, which never become garbage.
    """

    async def started(service: Service[SettingsType]) -> None:
        await start(service)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GARBAGE_THRESHOLDS)

    return started


def _refuse_plaintext(settings: Settings) -> None:
    """Refuse to be reached in plaintext from other machines, unless that is said by word.

    Raises:
        UserMistake: It would be.
    """
    if settings.tls_certificate is None and settings.tls != "off" and not settings.is_on_loopback:
        raise UserMistake(
            f"FEDRECON_HOST={settings.host} is reached from other machines, and there is no certificate.",
            "Set FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY (`fedrecon certs` makes them); or, where a proxy or "
            "mesh encrypts, FEDRECON_TLS=off.",
        )


def _print_settings(settings: Settings, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(settings_json(settings), indent=2) + "\n")
        return
    for variable, value, origin, meaning in settings_table(settings):
        sys.stdout.write(f"{variable}={value}  # {origin}: {meaning}\n")
