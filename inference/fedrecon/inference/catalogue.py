"""Which checkpoint is live for each task, and the recommender that serves it.

The coordinator is asked for its tasks and followed with `Admin.WatchTask`; every newly committed checkpoint is
exported in the background, and takes the place of the one before when it is proved.

Rules:
- The newest wins: what was committed while another checkpoint is exported is exported next, and only the last of it.
- A checkpoint that cannot be exported never displaces one that can: what was live stays, and the log says why.
- Without the coordinator everything live goes on being served. Nothing is kept here: after a restart it is asked again.
- No task names a recommender, so blobs that are served are refreshed before anybody may collect them; one that is
  missing all the same is exported again.
- Until the gate of evaluation rounds exists, every committed checkpoint is live.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from fedrecon.inference.measures import Measures
from fedrecon.inference.publishing import Publication, publish
from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.logs import logger_of
from fedrecon.v1.admin_pb2 import ListCheckpointsRequest, ListTasksRequest, Task, WatchTaskRequest

if TYPE_CHECKING:  # a name of the type stubs alone
    from fedrecon.v1.admin_pb2_grpc import AdminAsyncStub

LISTING_SECONDS = 1.0
"""Time between two looks for new tasks; also the pause before a lost coordinator is asked again."""

_CALL_SECONDS = 10.0
_WATCH_SECONDS = 3600.0
_STORAGE_RETRY_SECONDS = 5.0
_CHECKPOINTS_LOOKED_AT = 1_000
_SOON_MILLISECONDS = (500, 2_000)

_log = logger_of(__name__)


@dataclass(slots=True)
class _Followed:
    """A task that is followed.

    Attributes:
        newest: the task as it stood last; None once it is being exported.
        changed: set when there is something newer.
        publication: what is live; None before the first export.
        problem: why the newest checkpoint is not live; empty if it is.
        taken: the task as it was exported last.
        done: what shaped that export; empty while none has ended.
    """

    newest: Task | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    publication: Publication | None = None
    problem: str = ""
    taken: Task | None = None
    done: tuple[bytes, ...] = ()

    def offer(self, task: Task) -> None:
        self.newest = task
        self.changed.set()

    async def take(self) -> Task:
        while self.newest is None:
            self.changed.clear()
            await self.changed.wait()
        task, self.newest = self.newest, None
        self.taken = task
        return task

    def again(self) -> None:
        """Lets the last export be made again, unless there is something newer."""
        self.done = ()
        if self.newest is None and self.taken is not None:
            self.offer(self.taken)


class Catalogue:
    """The recommenders that are live.

    Args:
        admin: the coordinator's Admin service.
        blobs: where plans and checkpoints lie, and recommenders go.
        threads: where exports run.
        measures: what is counted.
    """

    def __init__(self, admin: AdminAsyncStub, blobs: BlobStore, threads: Executor, measures: Measures) -> None:
        self._admin = admin
        self._blobs = blobs
        self._threads = threads
        self._measures = measures
        self._followed: dict[str, _Followed] = {}
        self._listed = False
        self._reachable = True

    def live(self, task: str) -> Publication:
        """Returns what is live for a task.

        Raises:
            Refusal: NOT_FOUND for an unknown task; FAILED_PRECONDITION while nothing is live.
        """
        followed = self._followed.get(task)
        if followed is not None and followed.publication is not None:
            return followed.publication
        if followed is None and self._listed:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_TASK",
                f"There is no task {task!r}.",
                "Look at `fedrecon task list`; a task that was just created is known within seconds.",
            )
        if followed is not None and followed.problem:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_EXPORTABLE",
                f"The checkpoint of task {task!r} cannot be served: {followed.problem}.",
                "Mend the task's plan or vocabulary; the next checkpoint is tried again.",
            )
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_READY",
            f"Task {task!r} has no recommender yet.",
            "Ask again in a moment: it is made as soon as there is a checkpoint.",
            retry_milliseconds=_SOON_MILLISECONDS,
        )

    def serves(self, digest: bytes) -> bool:
        """Returns whether a blob is a file of something live."""
        return any(digest in {each.recommender.digest, each.vocabulary.digest} for each in self.all_live())

    def all_live(self) -> list[Publication]:
        """Returns what is live, of all tasks."""
        return [followed.publication for followed in self._followed.values() if followed.publication is not None]

    async def follow(self) -> None:
        """Follows all tasks of the coordinator, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    listed = await self._admin.ListTasks(ListTasksRequest(), timeout=_CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    self._note_lost(error)
                else:
                    self._note_found()
                    for task in listed.tasks:
                        self._measures.note_live(task.spec.name, task.checkpoint.digest)
                        if task.spec.name not in self._followed:
                            followed = self._followed[task.spec.name] = _Followed()
                            followed.offer(task)
                            group.create_task(self._watch(task.spec.name, followed))
                            group.create_task(self._publish(followed))
                    self._listed = True
                await asyncio.sleep(LISTING_SECONDS)

    async def keep_served(self, seconds: float) -> None:
        """Keeps what is served from being collected, until it is cancelled.

        Args:
            seconds: time between two refreshments, well below the grace time of blobs.
        """
        while True:
            await asyncio.sleep(seconds)
            for name, followed in list(self._followed.items()):
                if (live := followed.publication) is None:
                    continue
                try:
                    for blob in (live.recommender, live.vocabulary):
                        await asyncio.to_thread(self._blobs.refresh, blob.digest)
                except (BlobMissing, CorruptBlob) as error:
                    _log.error("recommender will be exported again", task=name, why=str(error))
                    followed.again()
                except Exception as error:  # noqa: BLE001 - whatever a store raises: the grace time is long
                    _log.warning("recommender not refreshed", task=name, error=type(error).__name__)

    async def _watch(self, name: str, followed: _Followed) -> None:
        """Offers every state of a task; a lost stream is opened again."""
        while True:
            try:
                async for answer in self._admin.WatchTask(WatchTaskRequest(task=name), timeout=_WATCH_SECONDS):
                    followed.offer(answer.task)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._note_lost(error)
            await asyncio.sleep(LISTING_SECONDS)

    async def _publish(self, followed: _Followed) -> None:
        """Exports the newest checkpoint whenever it, or what shapes its recommender, has changed."""
        while True:
            task = await followed.take()
            wanted = _shape(task)
            if not task.checkpoint.digest or wanted == followed.done:
                continue
            try:
                publication = await asyncio.get_running_loop().run_in_executor(
                    self._threads, publish, task, await self._round_of(task), self._blobs
                )
            except (BlobMissing, CorruptBlob, OSError, grpc.aio.AioRpcError) as error:
                self._measures.exports.labels(outcome="failed").inc()
                _log.warning("export will be tried again", task=task.spec.name, error=type(error).__name__)
                await asyncio.sleep(_STORAGE_RETRY_SECONDS)
                if followed.newest is None:
                    followed.offer(task)
            except ValueError as error:  # what the parts say of themselves: trying again would change nothing
                followed.done, followed.problem = wanted, str(error)
                self._measures.exports.labels(outcome="refused").inc()
                _log.error("checkpoint cannot be served", task=task.spec.name, why=str(error))
            except Exception as error:  # noqa: BLE001 - a plan that breaks the exporter must not stop the other tasks
                followed.done, followed.problem = wanted, f"the export failed: {type(error).__name__}"
                self._measures.exports.labels(outcome="failed").inc()
                _log.error("export failed", task=task.spec.name, exc_info=error)
            else:
                followed.done, followed.problem, followed.publication = wanted, "", publication
                self._note_published(publication)

    async def _round_of(self, task: Task) -> int:
        """Returns the round that made a task's live checkpoint."""
        asked = ListCheckpointsRequest(task=task.spec.name, limit=_CHECKPOINTS_LOOKED_AT)
        listed = await self._admin.ListCheckpoints(asked, timeout=_CALL_SECONDS)
        for checkpoint in listed.checkpoints:
            if checkpoint.blob.digest == task.checkpoint.digest:
                return checkpoint.round
        return task.committed

    def _note_published(self, publication: Publication) -> None:
        self._measures.exports.labels(outcome="published").inc()
        self._measures.note_served(
            publication.task, publication.round, publication.checkpoint.digest, publication.recommender.size
        )
        _log.info(
            "recommender published",
            task=publication.task,
            round=publication.round,
            bytes=publication.recommender.size,
            largest_difference=publication.largest_difference,
        )

    def _note_lost(self, error: grpc.aio.AioRpcError) -> None:
        if self._reachable:
            _log.warning("coordinator lost", code=error.code().name)
        self._reachable = False

    def _note_found(self) -> None:
        if not self._reachable:
            _log.info("coordinator found again")
        self._reachable = True


def _shape(task: Task) -> tuple[bytes, ...]:
    """Returns what a recommender depends on: it is made again when any of it changes."""
    spec = task.spec
    vocabularies = [
        part for name in sorted(spec.vocabularies) for part in (name.encode(), spec.vocabularies[name].digest)
    ]
    return (task.checkpoint.digest, spec.plan.digest, spec.work.SerializeToString(deterministic=True), *vocabularies)
