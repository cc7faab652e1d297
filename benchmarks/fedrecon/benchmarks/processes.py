"""Processes that a benchmark measures: services as in production, and a bare gRPC server to compare them with.

Rules: each in a process of its own, on this machine, with the settings' defaults; what a service is compared with is
measured in the same run, by the same client.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.mistakes import UserMistake

TOKEN_KEY = bytes(range(32))
"""Key of round tokens and of calls between services, in benchmarks alone."""

_SEAL_KEY = bytes(range(32, 64))
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Running:
    """A process that answers.

    Attributes:
        target: Where, `host:port`.
        pid: Its number.
    """

    target: str
    pid: int

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the process ever had resident.

        Raises:
            UserMistake: This system does not tell.
        """
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except FileNotFoundError as error:
            raise UserMistake("Peak memory is read from /proc, which is not here.", "Measure on Linux.") from error
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(peak) * 1024


@contextlib.contextmanager
def running_valkey(folder: Path) -> Iterator[str]:
    """Run an embedded Valkey, durable as always; give its URL."""
    with EmbeddedValkey(folder / "valkey") as server:
        yield server.url


@contextlib.contextmanager
def running_module(module: str, folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a module that writes a ready file, and end it.

    Args:
        module: `fedrecon.aggregator`, for instance.
        folder: Its home; its log is `NAME.log` there.
        variables: Of its environment, besides those that every service here has.
    """
    name = module.rpartition(".")[2]
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / f"{name}.ready.json"
    ready.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "FEDRECON_HOME": str(folder),
        "FEDRECON_SEAL_KEY": _SEAL_KEY.hex(),
        "FEDRECON_ROUND_TOKEN_KEY": TOKEN_KEY.hex(),
        f"FEDRECON_{name.upper()}_PORT": "0",
        "FEDRECON_METRICS_PORT": "none",
        "FEDRECON_LOG_LEVEL": "error",
        **(variables or {}),
    }
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--ready-file", str(ready)], env=environment, stdout=log, stderr=log
        )
    try:
        yield Running(_ready(process, ready, folder / f"{name}.log"), process.pid)
    finally:
        process.terminate()
        process.wait()


def _ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserMistake("A process of the benchmark did not start.", f"The end of its log:\n{log.read_text()}")
        time.sleep(_LOOK_SECONDS)
    address: str = json.loads(ready.read_text())["address"]
    return address
