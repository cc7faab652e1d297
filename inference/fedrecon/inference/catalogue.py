"""What answers for each task: the live version, the canary, and the one before, each as a proved recommender.

The coordinator is asked for its tasks and followed with `Admin.WatchTask`; whatever a task wants served (`versions`) is
exported in the background, and answers from the moment it is proved.

Rules:
- The newest wish wins: what was wished for while something else is exported comes next, and only the last of it.
- What cannot be exported never displaces what can: what was live stays, and the log says why.
- Which version is served is the coordinator's word alone, so all replicas agree as soon as they have heard it. Without
  the coordinator everything goes on being served. Nothing is kept here: after a restart it is asked again.
- A version is never changed while it answers: each call holds to the one that it was given.
- No task names a recommender, so blobs that are served are refreshed before anybody may collect them; one that is
  missing all the same is exported again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from fedrecon.inference.measures import Measures
from fedrecon.inference.publishing import Publication, publish
from fedrecon.inference.versions import Wanted, Wishes, wishes_of
from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.logs import logger_of
from fedrecon.v1.admin_pb2 import GetPrivacyRequest, GetPrivacyResponse, ListTasksRequest, Task, WatchTaskRequest
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.wire.places import PLACES

if TYPE_CHECKING:  # a name of the type stubs alone
    from fedrecon.v1.admin_pb2_grpc import AdminAsyncStub

LISTING_SECONDS = 1.0
"""Time between two looks for new tasks; also the pause before a lost coordinator is asked again."""

_CALL_SECONDS = 10.0
_WATCH_SECONDS = 3600.0
_STORAGE_RETRY_SECONDS = 5.0
_SOON_MILLISECONDS = (500, 2_000)

_GIVEN_REMEMBERED = 10
"""Recommenders from which deltas are made to the next; from others, and after a restart, the whole file is fetched."""

_log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """What answers for a task.

    Attributes:
        live: for everybody else; None while nothing is proved.
        canary: for those whose place is below `places`.
        places: of 10,000.
        before: for those who hold to it.
    """

    live: Publication | None = None
    canary: Publication | None = None
    places: int = 0
    before: Publication | None = None

    @property
    def publications(self) -> tuple[Publication, ...]:
        """All that answer."""
        return tuple(each for each in (self.live, self.canary, self.before) if each is not None)


@dataclass(slots=True)
class _Followed:
    """A task that is followed.

    Attributes:
        newest: the task as it stood last; None once it is being exported.
        changed: set when there is something newer.
        served: what answers.
        problem: why what is wished for is not live; empty if it is.
        taken: the task as it was exported last.
        refused: shapes that cannot be exported, and why; of the last wishes only.
        privacy: what is claimed for the task, as it was told last.
        missing: shapes whose files are gone from the blob store: they are exported again.
        given: the recommenders that were given out last, which devices may still have.
    """

    newest: Task | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    served: Served = field(default_factory=Served)
    problem: str = ""
    taken: Task | None = None
    refused: dict[tuple[bytes, ...], str] = field(default_factory=dict)
    privacy: GetPrivacyResponse = field(default_factory=GetPrivacyResponse)
    missing: set[tuple[bytes, ...]] = field(default_factory=set)
    given: deque[BlobReference] = field(default_factory=lambda: deque(maxlen=_GIVEN_REMEMBERED))

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

    def again(self, missing: Publication) -> None:
        """Lets an export be made again, though its recommender answers meanwhile."""
        self.missing.add(missing.wanted.shape)
        if self.newest is None and self.taken is not None:
            self.offer(self.taken)

    def published(self, wanted: Wanted) -> Publication | None:
        """Returns the recommender of a version that answers already, unless its file is gone."""
        if wanted.shape in self.missing:
            return None
        return next((each for each in self.served.publications if each.wanted.shape == wanted.shape), None)


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

    def choose(self, task: str, place: int | None = None, version: int = 0) -> Publication:
        """Returns what answers a caller.

        Args:
            task: of which task.
            place: of the user, 0 to 9,999; None: the caller gets no canary.
            version: that the caller holds to; 0: none.

        Raises:
            Refusal: NOT_FOUND for an unknown task or version; INVALID_ARGUMENT for a place that is none;
                FAILED_PRECONDITION while nothing is live.
        """
        if place is not None and place >= PLACES:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "BAD_PLACE",
                f"There is no place {place}.",
                f"Send one from 0 to {PLACES - 1}, by a keyed hash of the user.",
            )
        served = self._served(task)
        if version:
            found = next((each for each in served.publications if each.version == version), None)
            if found is None:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND,
                    "UNKNOWN_VERSION",
                    f"Version {version} of task {task!r} is not served.",
                    "Served are the live version, the canary, and the one before: see `fedrecon recommenders list`.",
                )
            return found
        if place is not None and served.canary is not None and place < served.places:
            return served.canary
        if served.live is None:
            raise self._not_live(task)
        return served.live

    def canary(self, task: str) -> tuple[Publication, int] | None:
        """Returns what some devices get, and the places that do; None if there is no canary."""
        served = self._served(task)
        return None if served.canary is None else (served.canary, served.places)

    def privacy(self, task: str) -> GetPrivacyResponse:
        """Returns what privacy is claimed for a task, as the coordinator told it last."""
        return self._followed[task].privacy

    def serves(self, digest: bytes) -> bool:
        """Returns whether a blob is a file of something that answers."""
        return any(
            digest in {each.recommender.digest, each.vocabulary.digest, *(delta.blob.digest for delta in each.deltas)}
            for followed in self._followed.values()
            for each in followed.served.publications
        )

    def all_live(self) -> list[Publication]:
        """Returns what is live, of all tasks."""
        return [followed.served.live for followed in self._followed.values() if followed.served.live is not None]

    def _served(self, task: str) -> Served:
        followed = self._followed.get(task)
        if followed is not None and followed.served.publications:
            return followed.served
        raise self._not_live(task)

    def _not_live(self, task: str) -> Refusal:
        """Returns why nothing answers for a task."""
        followed = self._followed.get(task)
        if followed is None and self._listed:
            return Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_TASK",
                f"There is no task {task!r}.",
                "Look at `fedrecon task list`; a task that was just created is known within seconds.",
            )
        if followed is not None and followed.problem:
            return Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_EXPORTABLE",
                f"The checkpoint of task {task!r} cannot be served: {followed.problem}.",
                "Mend the task's plan or vocabulary; the next checkpoint is tried again.",
            )
        if followed is not None and followed.taken is not None and _waits_for_promotion(followed.taken):
            return Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_PROMOTED",
                f"Task {task!r} serves what was promoted, and nothing is yet.",
                "`fedrecon recommenders list` names its candidates, `promote` makes one live.",
            )
        return Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_READY",
            f"Task {task!r} has no recommender yet.",
            "Ask again in a moment: it is made as soon as there is a checkpoint.",
            retry_milliseconds=_SOON_MILLISECONDS,
        )

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
                        if (live := wishes_of(task).live) is not None:
                            self._measures.note_live(task.spec.name, live.checkpoint.digest)
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
                for publication in followed.served.publications:
                    await self._refresh(name, followed, publication)

    async def _refresh(self, name: str, followed: _Followed, publication: Publication) -> None:
        try:
            for blob in (publication.recommender, publication.vocabulary):
                await asyncio.to_thread(self._blobs.refresh, blob.digest)
        except (BlobMissing, CorruptBlob) as error:
            _log.error("recommender will be exported again", task=name, why=str(error))
            followed.again(publication)
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
        """Exports whatever is wished for and does not answer yet, whenever the wishes have changed."""
        while True:
            task = await followed.take()
            wishes = wishes_of(task)
            all_wanted = [each for each in (wishes.live, wishes.canary, wishes.before) if each is not None]
            followed.refused = {each.shape: why for each in all_wanted if (why := followed.refused.get(each.shape))}
            if any(followed.published(each) is None and each.shape not in followed.refused for each in all_wanted):
                await self._ask_privacy(task.spec.name, followed)
            for wanted in all_wanted:
                await self._answer_with(followed, wishes, wanted)
                if followed.newest is not None:
                    break  # there are newer wishes
            else:
                _settle(followed, wishes)

    async def _answer_with(self, followed: _Followed, wishes: Wishes, wanted: Wanted) -> None:
        """Lets a version answer: the one that does already, or one that is exported now."""
        publication = followed.published(wanted)
        if publication is None and wanted.shape not in followed.refused:
            publication = await self._export(followed, wanted)
            if publication is not None:
                followed.missing.discard(wanted.shape)
                self._note_published(publication, is_live=wanted is wishes.live)
        elif publication is not None and wanted is wishes.live and publication is not followed.served.live:
            self._note_live(publication)  # it was the canary, or is rolled back to
        if publication is None:
            if wanted is wishes.live:
                followed.problem = followed.refused.get(wanted.shape, followed.problem)
            return
        served = followed.served
        if wanted is wishes.live:
            followed.problem = ""
            last = served.live
            is_another = last is not None and last.version not in {0, wanted.version}
            followed.served = replace(served, live=publication, before=last if is_another else served.before)
        elif wanted is wishes.canary:
            followed.served = replace(served, canary=publication, places=wishes.places)
        else:
            followed.served = replace(served, before=publication)

    async def _export(self, followed: _Followed, wanted: Wanted) -> Publication | None:
        """Returns the recommender of a version; None if it cannot be made, or not now."""
        name = wanted.spec.name
        try:
            made = await asyncio.get_running_loop().run_in_executor(
                self._threads, publish, wanted, self._blobs, tuple(followed.given)
            )
        except (BlobMissing, CorruptBlob, OSError) as error:
            self._measures.exports.labels(outcome="failed").inc()
            _log.warning("export will be tried again", task=name, error=type(error).__name__)
            await asyncio.sleep(_STORAGE_RETRY_SECONDS)
            if followed.newest is None and followed.taken is not None:
                followed.offer(followed.taken)
        except ValueError as error:  # what the parts say of themselves: trying again would change nothing
            followed.refused[wanted.shape] = str(error)
            self._measures.exports.labels(outcome="refused").inc()
            _log.error("checkpoint cannot be served", task=name, why=str(error))
        except Exception as error:  # noqa: BLE001 - a plan that breaks the exporter must not stop the other tasks
            followed.refused[wanted.shape] = f"the export failed: {type(error).__name__}"
            self._measures.exports.labels(outcome="failed").inc()
            _log.error("export failed", task=name, exc_info=error)
        else:
            if made.recommender not in followed.given:
                followed.given.append(made.recommender)
            return made
        return None

    async def _ask_privacy(self, name: str, followed: _Followed) -> None:
        try:
            followed.privacy = await self._admin.GetPrivacy(GetPrivacyRequest(task=name), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.warning("privacy of the task is not known", task=name, code=error.code().name)

    def _note_live(self, publication: Publication) -> None:
        self._measures.note_served(
            publication.task, publication.round, publication.checkpoint.digest, publication.recommender.size
        )

    def _note_published(self, publication: Publication, *, is_live: bool) -> None:
        self._measures.exports.labels(outcome="published").inc()
        if is_live:
            self._note_live(publication)
        _log.info(
            "recommender published",
            task=publication.task,
            version=publication.version,
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


def _settle(followed: _Followed, wishes: Wishes) -> None:
    """Stops what is wished for no more: a canary that ended, and everything if nothing may be live."""
    served = followed.served
    if wishes.canary is None:
        served = replace(served, canary=None, places=0)
    if wishes.before is None:
        served = replace(served, before=None)
    if wishes.live is None:
        served = replace(served, live=None)
    followed.served = served


def _waits_for_promotion(task: Task) -> bool:
    return task.spec.serving.by_promotion and wishes_of(task).live is None
