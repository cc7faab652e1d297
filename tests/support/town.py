"""A whole stack with people in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets import generate
from fedrecon.device_sdk import Participation
from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.fleet.behaviour import Behaviour
from fedrecon.ops.fleet.people import People
from fedrecon.ops.fleet.running import Fleet
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.ops.tls import server_authority
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.wire.tensors import read_safetensors
from support.recording import Recording

TASK = "films"
RATINGS = generate(users=120, items=60, seed=3)


@dataclass
class Town:
    """A running stack, a task, and devices that take part in a thread of their own."""

    stack: Stack
    people: People
    participations: list[Participation] = field(default_factory=list)
    recording: Recording = field(default_factory=Recording)
    dropouts: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    failures: list[BaseException] = field(default_factory=list)

    def create_task(self, plan: Path, *assignments: str) -> None:
        with open_sync_channel(self.stack.roles["coordinator"].address, self.stack.home) as channel:
            create_task(AdminStub(channel), build_spec(TASK, None, [*DEFAULTS, *assignments]), plan)

    def wake(self, *, dropout: float = 0.0, awake: int = 40) -> None:
        self._thread = threading.Thread(target=self._run, args=(dropout, awake), daemon=True)
        self._thread.start()

    def _run(self, dropout: float, awake: int) -> None:
        async def run() -> None:
            stopping = asyncio.Event()
            fleet = Fleet(
                people=self.people.training,
                coordinator=self.stack.roles["coordinator"].address,
                population=TASK,
                behaviour=Behaviour(dropout=dropout, median_seconds=0.02),
                awake=awake,
                seed=1,
                cache_folder=self.stack.home / "devices",
                authority=server_authority(self.stack.settings),
                entropy=self.recording.entropy,
            )
            work = asyncio.create_task(fleet.run(stopping, self._note))
            while not self._stopping.is_set() and not work.done():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.05)
            stopping.set()
            await work

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            self.failures.append(error)

    def _note(self, participation: Participation | None) -> None:
        self.recording.note(participation)
        if participation is None:
            self.dropouts += 1
        else:
            self.participations.append(participation)

    def sleep(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
            assert not self._thread.is_alive(), "the fleet does not end"
        assert not self.failures, self.failures

    def task(self) -> admin.Task:
        with open_sync_channel(self.stack.roles["coordinator"].address, self.stack.home) as channel:
            return AdminStub(channel).GetTask(admin.GetTaskRequest(task=TASK), timeout=10).task

    def rounds(self) -> list[admin.Round]:
        with open_sync_channel(self.stack.roles["coordinator"].address, self.stack.home) as channel:
            request = admin.ListRoundsRequest(task=TASK, limit=1000)
            return list(AdminStub(channel).ListRounds(request, timeout=10).rounds)

    def item_table(self, digest: bytes) -> NDArray[np.float32]:
        """The item vectors of a checkpoint."""
        with open_sync_channel(self.stack.roles["aggregator"].address, self.stack.home) as channel:
            chunks = BlobsStub(channel).Fetch(FetchRequest(digest=digest), timeout=10)
            content = b"".join(each.chunk.data for each in chunks)
        table: NDArray[np.float32] = read_safetensors(content)["item_vectors.weight"]
        return table

    def sleep_when_told(self) -> None:
        """Goes to sleep once every device whose report counts has ended its session: the last do after the commit."""
        self.wait_until(lambda _: self._everybody_told())
        self.sleep()

    def _everybody_told(self) -> bool:
        committed = [made for made in self.rounds() if made.phase == admin.ROUND_PHASE_COMMITTED]
        uploaded = self.recording.uploaded
        return all(len(uploaded(made.key.round, made.key.attempt)) >= made.counted for made in committed)

    def wait_until(self, condition: Callable[[admin.Task], bool], seconds: float = 240) -> admin.Task:
        deadline = time.monotonic() + seconds
        while True:
            assert not self.failures, self.failures
            task = self.task()
            if condition(task):
                return task
            assert time.monotonic() < deadline, f"not reached within {seconds} s: {task}"
            time.sleep(0.05)


DEFAULTS = (
    "rounds.report_goal=10",
    "rounds.over_selection=1.5",
    "rounds.maximum_rounds=4",
    "rounds.selection_milliseconds=200",
    "rounds.reporting_milliseconds=8000",
    "rounds.retry_milliseconds=200",
    "secure_sum.minimum_group=5",
)
