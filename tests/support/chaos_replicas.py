"""Two of every service behind balancers, as Kubernetes runs them, and a restart of each of them, one after the other.

Rules: a service is stopped as a rolling upgrade stops it: the balancer forgets it, a moment later it gets SIGTERM, it
drains, ends by itself with exit code 0, starts again, and is known again when it is ready. Aggregators have no
balancer: devices are told which one is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedrecon.ops.stack import Role, Stack
from support.chaos_network import Proxy
from support.chaos_second import free_target

PAIRS = ("aggregator", "coordinator", "inference")
"""Who is there twice, in the order of restarts."""

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.02
_FORGOTTEN_SECONDS = 1.0
"""What passes between being forgotten and SIGTERM: what `preStop` is for."""


class Balancer(Proxy):
    """Passes every new connection on to the next of several services.

    Attributes:
        upstreams: Where they answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.upstreams: list[str] = []
        self._turns: Iterator[int] = itertools.count()

    def next_upstream(self) -> str:
        return self.upstreams[next(self._turns) % len(self.upstreams)] if self.upstreams else ""


@dataclass(slots=True)
class Replica:
    """One process of a service.

    Attributes:
        stack: The stack that it belongs to.
        role: The service.
        name: Of its files and its log.
        target: Where it answers.
        process: The process, once it was started.
    """

    stack: Stack
    role: str
    name: str
    target: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns when it is ready."""
        home = self.stack.home
        ready = home / f"{self.name}.ready.json"
        ready.unlink(missing_ok=True)
        variables = {
            **self.stack._addresses(self.stack.roles[self.role]),
            f"FEDRECON_{self.role.upper()}_PORT": self.target.rpartition(":")[2],
            "FEDRECON_METRICS_PORT": "0",
            "FEDRECON_AGGREGATOR_FOLDER": str(home / self.name),
            "FEDRECON_INFERENCE_HTTP_PORT": "0",
        }
        with (home / "logs" / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"fedrecon.{self.role}", "--ready-file", str(ready)],
                env={**os.environ, **self.stack.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not ready.exists():
            assert self.process.poll() is None, Path(log.name).read_text()[-2_000:]
            assert time.monotonic() < deadline, f"{self.name} is not ready"
            time.sleep(_POLL_SECONDS)

    def stop(self) -> int:
        """Ends it as a supervisor does; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@dataclass(slots=True)
class ReplicatedStack(Stack):
    """A stack whose callers know the second one of every service.

    Attributes:
        second: Target of the second aggregator.
        front: Of coordinators, as inference calls them.
    """

    second: str = ""
    front: str = ""

    def _addresses(self, role: Role) -> dict[str, str]:
        variables = Stack._addresses(self, role)
        if role.name == "coordinator":
            variables["FEDRECON_AGGREGATOR_TARGET"] += f",{self.second}"
        if role.name == "inference":
            variables["FEDRECON_COORDINATOR_TARGET"] = self.front
        return variables


@dataclass(slots=True)
class Restart:
    """What one restart came to.

    Attributes:
        name: Who was restarted.
        exit_code: With which it ended.
        drain_seconds: From SIGTERM to the end.
        away_seconds: From SIGTERM until it was ready again.
    """

    name: str
    exit_code: int
    drain_seconds: float
    away_seconds: float


@dataclass(slots=True)
class Deployment:
    """Two of every service, under way.

    Attributes:
        stack: The first ones.
        seconds: The second ones, by role.
        coordinators: Balancer before the coordinators.
        inferences: Balancer before inference.
        restarts: What was restarted so far.
    """

    stack: ReplicatedStack
    seconds: dict[str, Replica]
    coordinators: Balancer
    inferences: Balancer
    restarts: list[Restart] = field(default_factory=list)

    async def roll(self, role: str, *, is_second: bool) -> None:
        """Restarts one process of a service as a rolling upgrade does."""
        replica = self.seconds[role] if is_second else None
        target = replica.target if replica is not None else self.stack.roles[role].address
        front = {"coordinator": self.coordinators, "inference": self.inferences}.get(role)
        if front is not None:
            front.upstreams.remove(target)
            await asyncio.sleep(_FORGOTTEN_SECONDS)
        began = time.monotonic()
        exit_code = await asyncio.to_thread(replica.stop if replica is not None else lambda: self._stop_first(role))
        drained = time.monotonic()
        await asyncio.to_thread(replica.start if replica is not None else self._start_first)
        name = f"{role} {2 if is_second else 1}"
        self.restarts.append(Restart(name, exit_code, drained - began, time.monotonic() - began))
        if front is not None:
            front.upstreams.append(target)

    def _stop_first(self, role: str) -> int:
        process = self.stack.roles[role].process
        assert process is not None
        self.stack.roles[role].started = 0.0  # no death of its start: it is started again without a pause
        process.send_signal(signal.SIGTERM)
        return process.wait()

    def _start_first(self) -> None:
        assert self.stack.mend()


@contextlib.asynccontextmanager
async def deployed(stack: ReplicatedStack) -> AsyncIterator[Deployment]:
    """Starts a stack, then the second one of every service; ends all of them."""
    coordinators, inferences = Balancer(), Balancer()
    for balancer in (coordinators, inferences):
        await balancer.start()
    stack.second, stack.front = free_target(), coordinators.address
    seconds = {role: Replica(stack, role, f"{role}-2", free_target()) for role in PAIRS}
    seconds["aggregator"].target = stack.second
    try:
        starting = asyncio.create_task(asyncio.to_thread(stack.start))
        while not stack.roles["coordinator"].address and not starting.done():  # noqa: ASYNC110 - a stack has no event
            await asyncio.sleep(_POLL_SECONDS)
        coordinators.upstreams.append(stack.roles["coordinator"].address)
        await starting
        inferences.upstreams.append(stack.roles["inference"].address)
        for replica in seconds.values():
            await asyncio.to_thread(replica.start)
        coordinators.upstreams.append(seconds["coordinator"].target)
        inferences.upstreams.append(seconds["inference"].target)
        yield Deployment(stack, seconds, coordinators, inferences)
    finally:
        for replica in reversed(seconds.values()):
            if replica.process is not None:
                await asyncio.to_thread(replica.stop)
        await asyncio.to_thread(stack.stop)
        for balancer in (coordinators, inferences):
            await balancer.stop()
