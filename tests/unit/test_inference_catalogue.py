"""What is followed, what is exported, and what is live: without a network, with exports that the test controls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, cast

import pytest

from fedrecon.inference.catalogue import Catalogue
from fedrecon.inference.measures import Measures
from fedrecon.inference.publishing import Publication
from fedrecon.ops.blobs import BlobMissing
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics
from fedrecon.v1 import admin_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference

SECONDS = 10.0


def task_with(checkpoint: str, name: str = "films", **spec: Any) -> admin_pb2.Task:
    return admin_pb2.Task(
        spec=task_pb2.TaskSpec(name=name, **spec), checkpoint=BlobReference(digest=checkpoint.encode(), size=1)
    )


class Admin:
    """A coordinator that tells what the test puts in."""

    def __init__(self, *tasks: admin_pb2.Task) -> None:
        self.tasks = {task.spec.name: task for task in tasks}
        self.states: asyncio.Queue[admin_pb2.Task] = asyncio.Queue()

    async def ListTasks(self, request: Any, timeout: float) -> admin_pb2.ListTasksResponse:  # noqa: N802, ASYNC109 - gRPC's own
        del request
        assert timeout > 0
        return admin_pb2.ListTasksResponse(tasks=self.tasks.values())

    async def WatchTask(  # noqa: N802 - the same
        self,
        request: admin_pb2.WatchTaskRequest,
        timeout: float,  # noqa: ASYNC109 - the same
    ) -> AsyncIterator[admin_pb2.WatchTaskResponse]:
        del request
        assert timeout > 0
        while True:
            yield admin_pb2.WatchTaskResponse(task=await self.states.get())

    async def ListCheckpoints(self, request: Any, timeout: float) -> admin_pb2.ListCheckpointsResponse:  # noqa: N802, ASYNC109
        del request
        assert timeout > 0
        return admin_pb2.ListCheckpointsResponse(
            checkpoints=[admin_pb2.Checkpoint(round=7, blob=BlobReference(digest=b"first"))]
        )


class Exports:
    """Stands for `publish`: notes what is exported, and waits or fails when told to."""

    def __init__(self) -> None:
        self.exported: list[tuple[str, int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failures: list[Exception] = []

    def __call__(self, task: admin_pb2.Task, round_number: int, blobs: Any) -> Publication:
        del blobs
        self.exported.append((task.checkpoint.digest.decode(), round_number))
        assert self.may_go_on.wait(SECONDS)
        if self.failures:
            raise self.failures.pop(0)
        unopened = cast("Any", None)
        return Publication(
            task.spec.name,
            round_number,
            task.checkpoint,
            b"",
            BlobReference(),
            BlobReference(),
            unopened,
            0.0,
            unopened,
        )


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    made = Exports()
    monkeypatch.setattr("fedrecon.inference.catalogue.publish", made)
    monkeypatch.setattr("fedrecon.inference.catalogue.LISTING_SECONDS", 0.01)
    monkeypatch.setattr("fedrecon.inference.catalogue._STORAGE_RETRY_SECONDS", 0.01)
    return made


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not happened():  # noqa: ASYNC110 - threads set no asyncio.Event
            await asyncio.sleep(0.005)


class Followed:
    """A catalogue that follows, as long as the block lasts."""

    def __init__(self, admin: Admin) -> None:
        self._threads = ThreadPoolExecutor(1)
        measures = Measures(Metrics.create("inference"))
        self.catalogue = Catalogue(cast("Any", admin), cast("Any", None), self._threads, measures)

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self.catalogue.follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        self._threads.shutdown()

    async def until_live(self, checkpoint: str, task: str = "films") -> Publication:
        async with asyncio.timeout(SECONDS):
            while True:
                assert not self._following.done()
                try:
                    live = self.catalogue.live(task)
                except Refusal:
                    live = None
                if live is not None and live.checkpoint.digest == checkpoint.encode():
                    return live
                await asyncio.sleep(0.005)

    async def until_refused(self, reason: str, task: str) -> Refusal:
        async with asyncio.timeout(SECONDS):
            while True:
                assert not self._following.done()
                with pytest.raises(Refusal) as caught:
                    self.catalogue.live(task)
                if caught.value.reason == reason:
                    return caught.value
                await asyncio.sleep(0.005)


async def test_of_what_was_committed_during_an_export_only_the_newest_is_exported(exports: Exports) -> None:
    admin = Admin(task_with("first"))
    exports.may_go_on.clear()
    async with Followed(admin) as followed:
        await until(lambda: bool(exports.exported))
        for checkpoint in ("second", "third", "fourth"):
            admin.states.put_nowait(task_with(checkpoint))
        await until(admin.states.empty)
        exports.may_go_on.set()
        await followed.until_live("fourth")
    assert [checkpoint for checkpoint, _ in exports.exported] == ["first", "fourth"]


async def test_a_change_that_does_not_touch_the_recommender_exports_nothing(exports: Exports) -> None:
    admin = Admin(task_with("first"))
    async with Followed(admin) as followed:
        assert (await followed.until_live("first")).round == 7
        paused = task_with("first")
        paused.state, paused.committed = admin_pb2.TASK_STATE_PAUSED, 9
        admin.states.put_nowait(paused)
        admin.states.put_nowait(task_with("second"))
        await followed.until_live("second")
    assert [checkpoint for checkpoint, _ in exports.exported] == ["first", "second"]


async def test_a_new_vocabulary_or_rate_is_exported_again(exports: Exports) -> None:
    admin = Admin(task_with("first"))
    async with Followed(admin) as followed:
        await followed.until_live("first")
        admin.states.put_nowait(task_with("first", vocabularies={"items": BlobReference(digest=b"newer")}))
        await until(lambda: len(exports.exported) == 2)
        admin.states.put_nowait(task_with("first", work=task_pb2.LocalWork(hyperparameters={"reconstruct.rate": 0.2})))
        await until(lambda: len(exports.exported) == 3)


async def test_a_missing_blob_is_waited_for(exports: Exports) -> None:
    exports.failures = [BlobMissing("not here yet"), OSError("disk")]
    async with Followed(Admin(task_with("first"))) as followed:
        await followed.until_live("first")
    assert len(exports.exported) == 3


@pytest.mark.parametrize("failure", [ValueError("has no items"), RuntimeError("a fault of a library")])
async def test_a_task_that_cannot_be_exported_does_not_stop_the_others(exports: Exports, failure: Exception) -> None:
    exports.failures = [failure]
    async with Followed(Admin(task_with("bad", "broken"), task_with("first"))) as followed:
        await followed.until_live("first")
        refusal = await followed.until_refused("NOT_EXPORTABLE", "broken")
    assert ("has no items" in refusal.message) == isinstance(failure, ValueError)
    assert len(exports.exported) == 2


async def test_before_the_coordinator_was_heard_no_task_is_called_unknown(exports: Exports) -> None:
    followed = Followed(Admin())
    with pytest.raises(Refusal) as caught:
        followed.catalogue.live("films")
    assert caught.value.reason == "NOT_READY"
    assert caught.value.retry_milliseconds is not None
    async with followed:
        await followed.until_refused("UNKNOWN_TASK", "films")
    assert exports.exported == []


class Blobs:
    """Notes what is refreshed; fails as told."""

    def __init__(self) -> None:
        self.refreshed: list[bytes] = []
        self.failures: list[Exception] = []

    def refresh(self, digest: bytes) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.refreshed.append(digest)


async def test_what_is_served_is_refreshed_and_exported_again_where_it_is_missing(exports: Exports) -> None:
    blobs = Blobs()
    async with Followed(Admin(task_with("first"))) as followed:
        followed.catalogue._blobs = cast("Any", blobs)
        await followed.until_live("first")
        keeping = asyncio.create_task(followed.catalogue.keep_served(0.01))
        await until(lambda: len(blobs.refreshed) >= 4)
        assert len(exports.exported) == 1
        blobs.failures = [OSError("the store is away"), RuntimeError("it has errors of its own"), BlobMissing("gone")]
        await until(lambda: len(exports.exported) == 2)
        assert exports.exported[0] == exports.exported[1]
        before = len(blobs.refreshed)
        await until(lambda: len(blobs.refreshed) > before)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
