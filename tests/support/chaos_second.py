"""A second aggregator in a chaos run: nobody starts it again at once, as the stack does with its own services."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedrecon.ops.stack import Role, Stack

SECOND = "second aggregator"
"""Its name as a victim."""

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.02


@dataclass(slots=True)
class PairedStack(Stack):
    """A stack whose coordinator knows a second aggregator.

    Attributes:
        second: Its target.
    """

    second: str = ""

    def _addresses(self, role: Role) -> dict[str, str]:
        variables = Stack._addresses(self, role)
        if role.name == "coordinator":
            variables["FEDRECON_AGGREGATOR_TARGET"] += f",{self.second}"
        return variables


@dataclass(slots=True)
class SecondAggregator:
    """The process.

    Attributes:
        stack: The stack that it belongs to.
        process: The process, once it was started.
    """

    stack: PairedStack
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its number; None if it does not live."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Starts it, and returns when it is ready."""
        home, valkey = self.stack.home, self.stack.valkey
        assert valkey is not None
        ready = home / "second.ready.json"
        ready.unlink(missing_ok=True)
        variables = {
            "FEDRECON_HOME": str(home),
            "FEDRECON_REDIS_URL": valkey.url,
            "FEDRECON_AGGREGATOR_FOLDER": str(home / "second"),
            "FEDRECON_AGGREGATOR_PORT": self.stack.second.rpartition(":")[2],
            "FEDRECON_LOG_FORMAT": "json",
        }
        with (home / "logs" / "second.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedrecon.aggregator", "--ready-file", str(ready)],
                env={**os.environ, **self.stack.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not ready.exists():
            assert self.pid is not None, Path(log.name).read_text()[-2_000:]
            assert time.monotonic() < deadline, "the second aggregator is not ready"
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Ends it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def free_target() -> str:
    """Returns a target at which nobody answers yet."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{place.getsockname()[1]}"
