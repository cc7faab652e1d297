"""Drives a chaos run: a real stack, devices in a process of their own, and blows as a program says.

Rules: the journal is watched as it is written, so that a blow falls in the stage that it is aimed at; whoever dies is
started again at once. A stage that does not come within a minute is a fault: rounds must go on by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.blobs import open_blobs
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from support.chaos_evidence import Evidence, Times, load_checkpoints, load_trails, times_of
from support.chaos_judging import Verdict, judge
from support.chaos_log import read_notes
from support.chaos_network import Proxy
from support.chaos_programs import Blow, Stage
from support.chaos_second import SECOND, PairedStack, SecondAggregator, free_target
from support.chaos_watch import TASK, Watch

DROPOUT = 0.2
SPEC = (
    "rounds.report_goal=8",
    "secure_sum.minimum_group=3",
    "rounds.minimum_reports=6",
    "rounds.over_selection=2.0",
    "rounds.minimum_cohort=12",
    "rounds.maximum_attempts=0",
    "rounds.selection_milliseconds=100",
    "rounds.reporting_milliseconds=20000",
    "rounds.retry_milliseconds=100",
    "secure_sum.maximum_reports=8",
)
"""Two groups; enough devices that a round need not wait for its window although a fifth drops out."""

_STUCK_SECONDS = 60.0
_SOONER = 0.7


class Stuck(Exception):  # noqa: N818 - named for what happened
    """Rounds do not go on."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed.

    Attributes:
        victim: Which.
        at: When, Unix milliseconds.
        stage: Where the round was.
        alone: Whether no other was killed at about the same time.
    """

    victim: str
    at: int
    stage: Stage
    alone: bool


@dataclass(slots=True)
class Run:
    """A chaos run under way.

    Attributes:
        stack: The stack.
        watch: What follows its rounds.
        journal: Its journal.
        log: What its devices write down.
        kills: Who was killed.
        second: Another aggregator, if there is one: who kills it starts it again when rounds have gone on without.
    """

    stack: Stack
    watch: Watch
    journal: RedisJournal
    log: Path
    kills: list[Kill] = field(default_factory=list)
    second: SecondAggregator | None = None
    _mending: asyncio.Task[None] | None = None

    async def rounds(self, count: int) -> None:
        """Returns when so many more rounds were committed."""
        for _ in range(count):
            number = self.watch.number
            async with self._not_stuck(f"round {number} to be committed"):
                while self.watch.number == number:
                    self.watch.changed.clear()
                    await self.watch.changed.wait()

    async def strike(self, blow: Blow, usual: dict[Stage, float]) -> None:
        """Kills whom a blow names where it says, and returns when all lives again and a report was accepted."""
        alone, delay = blow.follower is None, blow.share * usual.get(blow.stage, 0.0)
        async with self._not_stuck(f"a round to be {blow.stage}"):
            while True:
                await self.watch.entered(blow.stage)
                await asyncio.sleep(delay)
                if self.watch.stage is blow.stage:
                    break
                delay *= _SOONER  # this one was over before: the next one is hit earlier
        number = self.watch.number
        self._kill(blow.victim, alone=alone)
        if blow.follower is not None:
            await asyncio.sleep(blow.follower.after_seconds)
            self._kill(blow.follower.victim, alone=False)
        if self._mending is not None:
            await self._mending
        # Reports were accepted since, also where the round that was hit needed none any more.
        await self.rounds(max(0, number + 2 - self.watch.number))
        if self.second is not None and self.second.pid is None:
            await asyncio.to_thread(self.second.start)

    async def stop_for(self, victim: str, seconds: float) -> None:
        """Lets a process stand still, as a machine that swaps or is moved does, and returns when rounds go on."""
        pid = self._pid_of(victim)
        assert pid is not None
        number = self.watch.number
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        await self.rounds(max(0, number + 2 - self.watch.number))

    def _kill(self, victim: str, *, alone: bool) -> None:
        stage = self.watch.stage
        pid = self._pid_of(victim)
        if pid is None:
            return  # it is dead already: a follower came before it was started again
        if victim in self.stack.roles:
            self.stack.roles[victim].started = 0.0  # no death of its start: it is started again without a pause
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(victim, time.time_ns() // 1_000_000, stage, alone))
        while self._pid_of(victim) is not None:
            pass  # a signal takes a moment, and who is not dead yet is not mended
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    def _pid_of(self, victim: str) -> int | None:
        if victim == "valkey":
            assert self.stack.valkey is not None
            return self.stack.valkey.pid if self.stack.valkey.running else None
        if victim == SECOND:
            assert self.second is not None
            return self.second.pid
        process = self.stack.roles[victim].process
        return process.pid if process is not None and process.poll() is None else None

    async def _mend(self) -> None:
        while not self._all_run():
            await asyncio.to_thread(self.stack.mend)

    def _all_run(self) -> bool:
        valkey = self.stack.valkey
        return valkey is not None and valkey.running and all(role.running for role in self.stack.roles.values())

    @contextlib.asynccontextmanager
    async def _not_stuck(self, waiting_for: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                yield
        except TimeoutError as error:
            attempt = self.watch.attempt
            where = "before its first attempt" if attempt is None else f"attempt {attempt.attempt}, {attempt.phase}"
            raise Stuck(
                f"waited {_STUCK_SECONDS:.0f} s for {waiting_for}; round {self.watch.number} is at {where}; "
                f"last killed: {self.kills[-1] if self.kills else 'nobody'}"
            ) from error

    async def end(self) -> tuple[Evidence, Verdict]:
        """Lets the round under way end, sends the devices home, and judges."""
        await asyncio.to_thread(self._pause_task)
        await self._settled()
        evidence = await self.evidence()
        kept = await load_checkpoints(self.journal, TASK, self.watch.number)
        blobs = open_blobs(self.stack.settings.blobs_place)
        return evidence, judge(evidence, read_notes(self.log), blobs.read, kept)

    async def evidence(self) -> Evidence:
        return Evidence(dict(self.watch.entries), await load_trails(self.journal, TASK))

    def _pause_task(self) -> None:
        with open_sync_channel(self.stack.roles["coordinator"].address, self.stack.home) as channel:
            request = admin.PauseTaskRequest(task=TASK, reason="the run ends")
            AdminStub(channel).PauseTask(request, timeout=30)

    async def _settled(self) -> None:
        async with self._not_stuck("the last round to end"):
            while self.watch.stage not in {Stage.SELECTING, Stage.BETWEEN}:
                self.watch.changed.clear()
                await self.watch.changed.wait()


_SETTINGS = {"FEDRECON_KEPT_ROUNDS": "20"}
"""Old rounds become summaries while services are killed; what is judged was taken down as it was written."""


@dataclass(slots=True)
class Network:
    """What devices reach services through.

    Attributes:
        coordinator: To the coordinator.
        aggregator: To the aggregator.
    """

    coordinator: Proxy = field(default_factory=Proxy)
    aggregator: Proxy = field(default_factory=Proxy)


@contextlib.asynccontextmanager
async def failing_network() -> AsyncIterator[Network]:
    """Gives a network whose connections can be cut."""
    network = Network()
    proxies = (network.coordinator, network.aggregator)
    for proxy in proxies:
        await proxy.start()
    try:
        yield network
    finally:
        for proxy in proxies:
            await proxy.stop()


@contextlib.asynccontextmanager
async def running(
    home: Path, plan: Path, *, seed: int, network: Network | None = None, has_second: bool = False
) -> AsyncIterator[Run]:
    """Starts a stack, perhaps with a second aggregator, a task and its devices; ends all of them."""
    advertised = {} if network is None else {"FEDRECON_AGGREGATOR_ADVERTISED": network.aggregator.address}
    environment = _SETTINGS | advertised
    stack = Stack(Settings(home=home), environment=environment)
    second = None
    if has_second:
        stack = PairedStack(Settings(home=home), environment=environment, second=free_target())
        second = SecondAggregator(stack)
    await asyncio.to_thread(stack.start)
    coordinator = stack.roles["coordinator"].address
    if network is not None:
        network.coordinator.upstream, network.aggregator.upstream = coordinator, stack.roles["aggregator"].address
        coordinator = network.coordinator.address
    try:
        if second is not None:
            await asyncio.to_thread(second.start)
        async with training(stack, plan, coordinator, seed=seed) as run:
            run.second = second
            yield run
    finally:
        if second is not None:
            await asyncio.to_thread(second.stop)
        await asyncio.to_thread(stack.stop)


@contextlib.asynccontextmanager
async def training(
    stack: Stack, plan: Path, coordinator: str, *, seed: int, spec: Sequence[str] = SPEC, place: Sequence[str] = ()
) -> AsyncIterator[Run]:
    """Creates a task on a stack that runs, and lets devices live that know a coordinator; ends them.

    Args:
        stack: It runs.
        plan: Folder of the plan.
        coordinator: What devices know.
        seed: Of what devices do.
        spec: Of the task.
        place: What starts the process of the devices, such as a command that runs it in another network.
    """
    await asyncio.to_thread(_create_task, stack, plan, spec)
    assert stack.valkey is not None
    journal = await RedisJournal.connect(stack.valkey.url, patience_seconds=_STUCK_SECONDS)
    watch = Watch(journal, stack.home / "blobs")
    watching = asyncio.create_task(watch.run())
    run = Run(stack, watch, journal, stack.home / "devices.log")
    try:
        with _devices(stack, coordinator, run.log, seed, place):
            yield run
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await journal.close()


def _create_task(stack: Stack, plan: Path, spec: Sequence[str]) -> None:
    with open_sync_channel(stack.roles["coordinator"].address, stack.home) as channel:
        create_task(AdminStub(channel), build_spec(TASK, None, spec), plan)


@contextlib.contextmanager
def _devices(stack: Stack, coordinator: str, log: Path, seed: int, place: Sequence[str]) -> Iterator[None]:
    """Lets devices live in a process of their own."""
    command = [*place, sys.executable, "-m", "support.chaos_devices", coordinator, TASK]
    options = ["--log", log, "--cache", stack.home / "devices", "--dropout", DROPOUT, "--seed", seed]
    options += ["--authority", stack.settings.tls_server_authority]
    tests = Path(__file__).parent.parent
    paths = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (stack.home / "logs" / "devices.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, *map(str, options)], env={**os.environ, "PYTHONPATH": paths}, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended.

    Attributes:
        kills: Who was killed.
        evidence: What the journal holds.
        verdict: What it came to.
        calm_until: End of the undisturbed rounds, Unix milliseconds.
        seconds: How long it took.
    """

    kills: list[Kill]
    evidence: Evidence
    verdict: Verdict
    calm_until: int
    seconds: float


async def run_program(
    home: Path,
    plan: Path,
    program: Sequence[Blow],
    *,
    seed: int,
    calm_rounds: int,
    has_second: bool = False,
    missing: Callable[[Sequence[Kill], Times], Sequence[Blow]] = lambda _kills, _times: (),
    told: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Runs undisturbed rounds, then a program, and judges the whole.

    Args:
        home: Folder of the stack.
        plan: Folder of the plan that it trains.
        program: Blows, one after the other.
        seed: Of what devices do.
        calm_rounds: Undisturbed rounds, at least 1.
        has_second: Whether there is a second aggregator, which stays away when it is killed.
        missing: Gives further blows where kills did not fall as they were aimed.
        told: Hears of every blow before it falls.
    """
    began = time.monotonic()
    async with running(home, plan, seed=seed, has_second=has_second) as run:
        await run.rounds(1 + calm_rounds)  # the first one warms everything up
        calm_until = time.time_ns() // 1_000_000
        usual = times_of(await run.evidence()).usual_lengths()
        blows = list(program)
        while blows:
            for blow in blows:
                told(repr(blow))
                await run.strike(blow, usual)
            blows = list(missing(run.kills, times_of(await run.evidence())))
        await run.rounds(1)
        evidence, verdict = await run.end()
    return Outcome(run.kills, evidence, verdict, calm_until, time.monotonic() - began)
