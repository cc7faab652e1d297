"""The whole stack on one machine: Valkey, aggregator, coordinator, inference, as processes of their own.

Rules:
- Services are started as programs and never imported, with the same settings as in production: what differs is only
  where Redis and the blobs are.
- Ports are chosen once: a service that dies comes back at the same address, so nobody who knew it needs to be told.
- Whatever dies is started again (with growing pauses if it dies at once); all of it recovers from journal and blobs.
- `<home>/stack.json` says where everything is, to other commands of this machine, and whom to trust there.
  `<home>/keys.json` (mode 600) holds the keys, and `<home>/tls` the certificates, that were made because the settings
  have none.
- Left-overs of a stack whose own process was killed are stopped before a new one starts on the same home.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from fedrecon.ops.durable_files import write_durably
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.local_keys import key_variables, make_keys, with_keys
from fedrecon.ops.local_tls import tls_variables, with_certificates
from fedrecon.ops.metrics_targets import write_metrics_targets
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack_refusals import (
    lock_home,
    make_home,
    refuse_full_home,
    refuse_wrong_redis,
    refuse_wrong_settings,
    unwritable_home,
)

STACK_FILE = "stack.json"
CONSOLE = "console"
_CALLS: dict[str, tuple[str, ...]] = {
    "aggregator": (),
    "coordinator": ("aggregator",),
    "inference": ("coordinator",),
    CONSOLE: ("coordinator",),
}
"""Whom each service calls, those that are called before those that call."""

ROLES = tuple(name for name in _CALLS if name != CONSOLE)
"""All services that a stack needs."""

_MODULES = {CONSOLE: "fedrecon.ops.console"}
"""Programs of services that are no room of their own."""

_HTTP_PORTS = {"inference": "FEDRECON_INFERENCE_HTTP_PORT", CONSOLE: "FEDRECON_CONSOLE_HTTP_PORT"}

_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02
_PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
_STEADY_SECONDS = 10.0
"""A service that lived so long did not die of its start."""


class _KilledInStart(UserMistake):
    """A service was killed before it was ready: the next start may go better."""


@dataclass(slots=True)
class Role:
    """One service of the stack.

    Attributes:
        name: Its room.
        process: Its process, if it was started.
        address: Where it answers, once it was ready.
        metrics_address: Where it tells its metrics.
        http_address: Where it answers over HTTP; empty if it does not.
        started: When its process was started, monotonic seconds.
        quick_deaths: Deaths in a row soon after the start.
        log_start: Where the log of its process begins in the log of all its predecessors, in bytes.
    """

    name: str
    process: subprocess.Popen[bytes] | None = None
    address: str = ""
    metrics_address: str = ""
    http_address: str = ""
    started: float = 0.0
    quick_deaths: int = 0
    log_start: int = 0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class Stack:
    """All services on one machine; `with_console` makes one that has the console, too.

    Attributes:
        settings: Shared by all of them; once it is started, with the keys and certificates of the home.
        environment: Variables that win over the process's own, for every service.
        roles: The services by name.
        valkey: The embedded server, unless the settings name a Redis.
        lock: Descriptor that holds the home for this stack, while it runs.
        is_file_stale: Whether the stack file has to be written again.

    Example:
        `with Stack(load_settings(Settings)) as stack: ...` runs a stack; call `mend()` now and then.
    """

    settings: Settings
    environment: dict[str, str] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=lambda: {name: Role(name) for name in ROLES})
    valkey: EmbeddedValkey | None = None
    lock: int | None = None
    is_file_stale: bool = False

    @classmethod
    def with_console(cls, settings: Settings) -> Self:
        """Return a stack that people look at."""
        return cls(settings, roles={name: Role(name) for name in _CALLS})

    @property
    def home(self) -> Path:
        """Folder of the stack."""
        return self.settings.home.absolute()

    def start(self) -> None:
        """Start everything and return when all of it is ready.

        Raises:
            UserMistake: The settings, the home or the Redis are wrong, or a service cannot start: with its log.
            ValkeyError: The embedded Valkey cannot start.
        """
        refuse_wrong_settings(self.settings)
        if self.settings.redis_url:
            refuse_wrong_redis(self.settings)
        make_home(self.home)
        self.lock = lock_home(self.home)
        try:
            _stop_leftovers(self.home / STACK_FILE)
            make_keys(self.home)
            self.settings = with_certificates(with_keys(self.settings, self.home), self.home)
            self.environment = {**key_variables(self.settings), **tls_variables(self.settings), **self.environment}
            if not self.settings.redis_url:
                self.valkey = EmbeddedValkey(self.home / "valkey")
                self.valkey.start()
                self._write_stack_file()
            for role in self.roles.values():
                self._start_role(role)
            self._write_stack_file()
        except OSError as error:
            self.stop()
            raise unwritable_home(self.home, error) from error
        except BaseException:
            self.stop()
            raise

    def mend(self) -> list[str]:
        """Start again what has died.

        Returns:
            What was started again, by name.

        Raises:
            UserMistake: A service died and cannot be started again.
            StorageFull: What died cannot be started on a full disk: try again when somebody has freed space.
            OSError: What was started again cannot be written down: the same.
            ValkeyError: The embedded Valkey died and does not start: the same.
        """
        mended = []
        is_valkey_dead = self.valkey is not None and not self.valkey.running
        if is_valkey_dead or not all(role.running for role in self.roles.values()):
            refuse_full_home(self.home)
        if self.valkey is not None and not self.valkey.running:
            self.valkey.start()
            self.is_file_stale = True
            mended.append("valkey")
        for role in self.roles.values():
            if role.running:
                continue
            self._restart_role(role)
            mended.append(role.name)
        if self.is_file_stale:
            self._write_stack_file()
        return mended

    def _restart_role(self, role: Role) -> None:
        """Start a service again that has died, until it is ready or has died too often."""
        while not role.running:
            lived = time.monotonic() - role.started
            role.quick_deaths = 0 if lived > _STEADY_SECONDS else role.quick_deaths + 1
            if role.quick_deaths >= len(_PAUSES_SECONDS):
                raise UserMistake(
                    f"The {role.name} died {role.quick_deaths} times in a row right after its start.",
                    f"The end of its log {self._log_of(role)}:\n{self._log_end(role)}",
                )
            time.sleep(_PAUSES_SECONDS[role.quick_deaths])
            self.is_file_stale = True
            with contextlib.suppress(_KilledInStart):
                self._start_role(role)

    def stop(self) -> None:
        """Stop everything, those that call before those that are called; Valkey last."""
        for name in reversed(self.roles):
            process = self.roles[name].process
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.roles[name].process = None
        if self.valkey is not None:
            self.valkey.stop()
            self.valkey = None
        if self.lock is not None:
            with contextlib.suppress(OSError):
                (self.home / STACK_FILE).unlink(missing_ok=True)
            os.close(self.lock)
            self.lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_role(self, role: Role) -> None:
        ready_file = self.home / f"{role.name}.ready.json"
        ready_file.unlink(missing_ok=True)
        module = _MODULES.get(role.name, f"fedrecon.{role.name}")
        with self._log_of(role).open("ab") as log:
            role.log_start = log.tell()
            role.process = subprocess.Popen(
                [sys.executable, "-m", module, "--ready-file", str(ready_file)],
                env={**os.environ, **self.environment, **self._addresses(role)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches this process, which stops the services in order.
                start_new_session=True,
            )
        role.started = time.monotonic()
        self._write_stack_file()  # at once: whoever kills this process now must not leave that one behind
        ready = self._wait_until_ready(role, ready_file)
        role.address, role.metrics_address = ready["address"], ready["metrics_address"] or ""
        role.http_address = ready.get("http_address", "")

    def _addresses(self, role: Role) -> dict[str, str]:
        """Return the variables that tell a service where it is, and where the others are."""
        variables = {"FEDRECON_HOME": str(self.home), "FEDRECON_LOG_FORMAT": "json"}
        if self.valkey is not None:
            variables["FEDRECON_REDIS_URL"] = self.valkey.url
        ports = {f"FEDRECON_{role.name.upper()}_PORT": role.address}
        if role.name in _HTTP_PORTS:
            ports[_HTTP_PORTS[role.name]] = role.http_address
        for variable, address in ports.items():
            if address:
                variables[variable] = address.rpartition(":")[2]
            elif variable not in os.environ:
                variables[variable] = "0"
        if role.metrics_address:
            variables["FEDRECON_METRICS_PORT"] = role.metrics_address.rpartition(":")[2]
        for called in _CALLS[role.name]:
            variables[f"FEDRECON_{called.upper()}_TARGET"] = self.roles[called].address
        return variables

    def _wait_until_ready(self, role: Role, ready_file: Path) -> dict[str, Any]:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):
                ready: dict[str, Any] = json.loads(ready_file.read_text())
                return ready
            if self.valkey is not None and not self.valkey.running:
                self.valkey.start()  # who starts waits for it, and nobody else would start it meanwhile
                self.is_file_stale = True
            if not role.running:
                was_killed = role.process is not None and role.process.returncode < 0
                raise (_KilledInStart if was_killed else UserMistake)(
                    f"The {role.name} did not start.",
                    f"The end of its log {self._log_of(role)}:\n{self._log_end(role)}",
                )
            if time.monotonic() > deadline:
                raise UserMistake(
                    f"The {role.name} is not ready after {_READY_SECONDS:.0f} s.",
                    f"The end of its log {self._log_of(role)}:\n{self._log_end(role)}",
                )
            time.sleep(_POLL_SECONDS)

    def _log_of(self, role: Role) -> Path:
        return self.home / "logs" / f"{role.name}.log"

    def _log_end(self, role: Role, lines: int = 8) -> str:
        """Return the last lines of a service's own process, not of its predecessors."""
        content = self._log_of(role).read_bytes()[role.log_start :]
        return "\n".join(content.decode(errors="replace").splitlines()[-lines:])

    def _write_stack_file(self) -> None:
        pids = {role.name: role.process.pid for role in self.roles.values() if role.process is not None}
        if self.valkey is not None:
            pids["valkey"] = self.valkey.pid
        content = {
            "pid": os.getpid(),
            "started": started_of(os.getpid()),
            "authority": str(self.settings.tls_server_authority or ""),
            "redis": self.valkey.url if self.valkey is not None else self.settings.redis_url,
            **{role.name: role.address for role in self.roles.values()},
            "metrics": {role.name: role.metrics_address for role in self.roles.values()},
            "http": {role.name: role.http_address for role in self.roles.values() if role.http_address},
            "processes": {name: {"pid": pid, "started": started_of(pid)} for name, pid in pids.items()},
        }
        write_durably(self.home / STACK_FILE, [json.dumps(content, indent=2).encode()])
        write_metrics_targets(self.home, {role.name: role.metrics_address for role in self.roles.values()})
        self.is_file_stale = False


def read_stack_file(home: Path) -> dict[str, Any] | None:
    """Return where the services of the stack on this folder are, or None if none runs there, or is just starting."""
    try:
        content: dict[str, Any] = json.loads((home / STACK_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if _lives(content) and all(content[name] for name in ROLES) else None


def started_of(pid: int) -> float | None:
    """Return when a process was started; None if it does not live. With its number it names a process for good."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _lives(named: dict[str, Any]) -> bool:
    """Whether the process that a file names by number and start still lives."""
    started = started_of(named["pid"])
    return started is not None and started == named["started"]


def _stop_leftovers(path: Path) -> None:
    """Stop the services of a stack whose own process is gone, as who holds the home's lock knows: nobody else would."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    for name in (*reversed(_CALLS), "valkey"):
        left = content["processes"].get(name)
        if left is None or not _lives(left):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(left["pid"])
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()
    path.unlink(missing_ok=True)
