"""Inference with a coordinator that tells what a test wants: tasks, checkpoints, swaps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import grpc
import grpc.aio
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.inference.__main__ import start
from fedrecon.inference.settings import InferenceSettings
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.lifecycle import serve
from fedrecon.v1 import admin_pb2, plan_pb2, task_pb2
from fedrecon.v1.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import GetRecommenderRequest
from fedrecon.v1.inference_pb2_grpc import InferenceStub
from fedrecon.wire.manifests import read_manifest
from fedrecon.wire.tensors import read_safetensors, write_safetensors

if TYPE_CHECKING:  # names of the type stubs alone
    from fedrecon.v1.blobs_pb2_grpc import BlobsAsyncStub
    from fedrecon.v1.inference_pb2_grpc import InferenceAsyncStub

ITEMS, SECONDS = 12, 20.0
RETIRED = 4


def compile_twelve_films(folder: Path) -> Path:
    """Compiles a matrix factorisation of twelve items."""
    vocabulary = plan_pb2.Vocabulary(
        name="items",
        version=1,
        keys=[f"key-{row}" for row in range(ITEMS)],
        titles=[f"Film {row}" for row in range(ITEMS)],
        retired_rows=[RETIRED],
    )
    model = matrix_factorization(ITEMS, 3, mean=3.0)
    compile_plan(model, {"items": vocabulary}, Ed25519PrivateKey.generate(), folder)
    return folder


@dataclass
class Coordinator(AdminServicer):
    """Stands for the coordinator: tells the tasks that the test gives it."""

    tasks: dict[str, admin_pb2.Task] = field(default_factory=dict)
    rounds: dict[bytes, int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def commit(self, task: admin_pb2.Task, round_number: int) -> None:
        async with self.changed:
            task.live_round = round_number
            self.tasks[task.spec.name] = task
            self.rounds[task.checkpoint.digest] = round_number
            self.changed.notify_all()

    async def ListTasks(self, request: Any, context: Any) -> admin_pb2.ListTasksResponse:  # noqa: N802 - named by the contract
        del request, context
        return admin_pb2.ListTasksResponse(tasks=self.tasks.values())

    async def GetTask(self, request: admin_pb2.GetTaskRequest, context: Any) -> admin_pb2.GetTaskResponse:  # noqa: N802 - the same
        del context
        return admin_pb2.GetTaskResponse(task=self.tasks[request.task])

    async def WatchTask(  # noqa: N802 - the same
        self, request: admin_pb2.WatchTaskRequest, context: Any
    ) -> AsyncIterator[admin_pb2.WatchTaskResponse]:
        del context
        told = None
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self.tasks[request.task] is not told)  # noqa: B023 - awaited at once
                told = self.tasks[request.task]
            yield admin_pb2.WatchTaskResponse(task=told)

    async def GetPrivacy(self, request: Any, context: Any) -> admin_pb2.GetPrivacyResponse:  # noqa: N802 - the same
        del request, context
        return admin_pb2.GetPrivacyResponse(statement="no DP guarantee: the task has no noise")

    async def ListCheckpoints(self, request: Any, context: Any) -> admin_pb2.ListCheckpointsResponse:  # noqa: N802 - the same
        del request, context
        checkpoints = [
            admin_pb2.Checkpoint(round=number, blob=BlobReference(digest=digest))
            for digest, number in self.rounds.items()
        ]
        return admin_pb2.ListCheckpointsResponse(checkpoints=checkpoints)


@dataclass
class Deployment:
    """A coordinator, a blob store and a running inference."""

    coordinator: Coordinator
    blobs: LocalBlobs
    plan: Path
    inference: InferenceAsyncStub
    served_blobs: BlobsAsyncStub
    coordinator_target: str
    inference_target: str
    http: str
    restart: Callable[[], Awaitable[None]]

    def task(self, name: str, shift: float = 0.0, **changes: Any) -> admin_pb2.Task:
        """A task on the plan, whose checkpoint is the initial one moved by `shift`."""
        content = (self.plan / "manifest.json").read_bytes()
        manifest = read_manifest(content)
        for blob in (self.plan / "blobs").iterdir():
            self.blobs.put(blob.read_bytes())
        initial = read_safetensors(self.blobs.read(manifest.initial_checkpoint.digest))
        checkpoint = write_safetensors({key: values + np.float32(shift) for key, values in initial.items()})
        spec = task_pb2.TaskSpec(name=name, plan=BlobReference(digest=self.blobs.put(content), size=len(content)))
        reference = BlobReference(digest=self.blobs.put(checkpoint), size=len(checkpoint))
        return admin_pb2.Task(**({"spec": spec, "checkpoint": reference} | changes))

    async def wait_for_round(self, task: str, round_number: int) -> Any:
        """Waits until a round's checkpoint is live."""
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    live = await self.inference.GetRecommender(GetRecommenderRequest(task=task), timeout=SECONDS)
                    if live.round == round_number:
                        return live
                except grpc.aio.AioRpcError as error:
                    assert error.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}  # noqa: PT017
                await asyncio.sleep(0.05)

    async def fetch(self, blob: BlobReference) -> bytes:
        """Fetches a blob as a device does."""
        answers = self.served_blobs.Fetch(FetchRequest(digest=blob.digest), timeout=SECONDS)
        return b"".join([answer.chunk.data async for answer in answers])


@contextlib.asynccontextmanager
async def deployed(tmp_path: Path, plan: Path) -> AsyncIterator[Deployment]:
    """A coordinator that tells what the test wants, and a real inference that follows it."""
    coordinator = Coordinator()  # type: ignore[abstract]  # inference calls no other method
    server = grpc.aio.server()
    add_AdminServicer_to_server(coordinator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready = tmp_path / "ready.json"

    async def run() -> tuple[asyncio.Event, asyncio.Task[int], dict[str, str]]:
        settings = InferenceSettings(
            home=tmp_path,
            coordinator_target=f"127.0.0.1:{port}",
            metrics_port=-1,
            drain_seconds=1,
            inference_http_port=0,
        )
        stopping = asyncio.Event()
        running = asyncio.create_task(serve("inference", start, settings, 0, ready_file=ready, stopping=stopping))
        async with asyncio.timeout(SECONDS):
            while not ready.exists():
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
        return stopping, running, json.loads(ready.read_text())

    stopping, running, addresses = await run()
    channel = grpc.aio.insecure_channel(addresses["address"])

    async def restart() -> None:
        nonlocal stopping, running, channel
        stopping.set()
        assert await running == 0
        await channel.close()
        stopping, running, addresses = await run()
        channel = grpc.aio.insecure_channel(addresses["address"])
        made.inference_target, made.http = addresses["address"], f"http://{addresses['http_address']}"
        made.inference, made.served_blobs = InferenceStub(channel), BlobsStub(channel)

    made = Deployment(
        coordinator,
        LocalBlobs(tmp_path / "blobs"),
        plan,
        InferenceStub(channel),
        BlobsStub(channel),
        f"127.0.0.1:{port}",
        addresses["address"],
        f"http://{addresses['http_address']}",
        restart,
    )
    with patch("fedrecon.inference.catalogue.LISTING_SECONDS", 0.1):
        yield made
        stopping.set()
        assert await running == 0
    await channel.close()
    await server.stop(None)
