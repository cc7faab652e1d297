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
from fedrecon.inference.versions import Wanted
from fedrecon.ops.blobs import BlobMissing
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics
from fedrecon.v1 import admin_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference

SECONDS = 10.0


def task_with(checkpoint: str, name: str = "films", **spec: Any) -> admin_pb2.Task:
    return admin_pb2.Task(
        spec=task_pb2.TaskSpec(name=name, **spec),
        checkpoint=BlobReference(digest=checkpoint.encode(), size=1),
        live_round=7,
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

    async def GetPrivacy(self, request: Any, timeout: float) -> admin_pb2.GetPrivacyResponse:  # noqa: N802, ASYNC109
        del request
        assert timeout > 0
        return admin_pb2.GetPrivacyResponse(statement="no DP guarantee")


class Exports:
    """Stands for `publish`: notes what is exported, and waits or fails when told to."""

    def __init__(self) -> None:
        self.exported: list[tuple[str, int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failures: list[Exception] = []

    def __call__(self, wanted: Wanted, blobs: Any, before: Any) -> Publication:
        del blobs, before
        self.exported.append((wanted.checkpoint.digest.decode(), wanted.round))
        assert self.may_go_on.wait(SECONDS)
        if self.failures:
            raise self.failures.pop(0)
        unopened = cast("Any", None)
        return Publication(wanted, b"", BlobReference(), BlobReference(), unopened, 0.0, unopened)


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
                    live = self.catalogue.choose(task)
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
                    self.catalogue.choose(task)
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
        followed.catalogue.choose("films")
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


def version_of(number: int, stage: str, checkpoint: str, places: int = 0) -> admin_pb2.Recommender:
    return admin_pb2.Recommender(
        version=number,
        stage=admin_pb2.RecommenderStage.Value(f"RECOMMENDER_STAGE_{stage}"),
        round=10 * number,
        checkpoint=BlobReference(digest=checkpoint.encode(), size=1),
        spec=task_pb2.TaskSpec(name="films"),
        canary_places=places,
    )


def serving(*versions: admin_pb2.Recommender, by_promotion: bool = True) -> admin_pb2.Task:
    task = task_with("newest", serving=task_pb2.Serving(by_promotion=by_promotion))
    task.recommenders.extend(versions)
    return task


async def test_nothing_answers_before_something_was_promoted_where_the_task_wants_that(exports: Exports) -> None:
    async with Followed(Admin(serving())) as followed:
        refusal = await followed.until_refused("NOT_PROMOTED", "films")
        assert "promote" in refusal.advice
    assert exports.exported == []


async def test_from_the_first_promotion_on_commits_change_nothing(exports: Exports) -> None:
    admin = Admin(task_with("first"))
    async with Followed(admin) as followed:
        await followed.until_live("first")
        admin.states.put_nowait(serving(version_of(1, "LIVE", "first"), by_promotion=False))
        await until(lambda: followed.catalogue.choose("films").version == 1)
    assert exports.exported == [("first", 7), ("first", 10)]


@pytest.mark.parametrize(("places", "on_canary"), [(0, 0), (1, 1), (2_500, 2_500), (10_000, 10_000)])
async def test_a_canary_answers_exactly_the_places_below_its_own(exports: Exports, places: int, on_canary: int) -> None:
    admin = Admin(serving(version_of(1, "LIVE", "live"), version_of(2, "CANARY", "canary", places)))
    async with Followed(admin) as followed:
        await followed.until_live("live")
        await until(lambda: followed.catalogue.canary("films") is not None)
        choose = followed.catalogue.choose
        assert sum(choose("films", place).version == 2 for place in range(10_000)) == on_canary
        assert choose("films").version == 1
        assert choose("films", 0, version=1).version == 1
    assert len(exports.exported) == 2


async def test_a_promotion_of_the_canary_and_a_roll_back_swap_without_an_export(exports: Exports) -> None:
    admin = Admin(serving(version_of(1, "LIVE", "one"), version_of(2, "CANARY", "two", 500)))
    async with Followed(admin) as followed:
        await until(lambda: len(exports.exported) == 2)
        admin.states.put_nowait(serving(version_of(2, "LIVE", "two"), version_of(1, "RETIRED", "one")))
        await until(lambda: followed.catalogue.choose("films").version == 2)
        await until(lambda: followed.catalogue.canary("films") is None)
        assert followed.catalogue.choose("films", version=1).checkpoint.digest == b"one"
        admin.states.put_nowait(serving(version_of(1, "LIVE", "one"), version_of(2, "RETIRED", "two")))
        await until(lambda: followed.catalogue.choose("films").version == 1)
        assert followed.catalogue.choose("films", version=2).checkpoint.digest == b"two"
        with pytest.raises(Refusal, match="Version 3"):
            followed.catalogue.choose("films", version=3)
    assert len(exports.exported) == 2


async def test_what_is_promoted_but_cannot_be_exported_leaves_the_one_before_live(exports: Exports) -> None:
    admin = Admin(serving(version_of(1, "LIVE", "one")))
    async with Followed(admin) as followed:
        await followed.until_live("one")
        exports.failures = [ValueError("has no items")]
        admin.states.put_nowait(serving(version_of(2, "LIVE", "two"), version_of(1, "RETIRED", "one")))
        await until(lambda: len(exports.exported) == 2)
        await until(lambda: bool(followed.catalogue._followed["films"].problem))
        assert followed.catalogue.choose("films").version == 1
        # It is not tried again until something changes; a roll-back is served at once.
        admin.states.put_nowait(serving(version_of(1, "LIVE", "one"), version_of(2, "RETIRED", "two")))
        await until(admin.states.empty)
        await until(lambda: not followed.catalogue._followed["films"].problem)
        assert followed.catalogue.choose("films").version == 1


async def test_replicas_that_heard_the_same_serve_the_same(exports: Exports) -> None:
    told = serving(
        version_of(4, "LIVE", "four"), version_of(6, "CANARY", "six", 300), version_of(3, "RETIRED", "three")
    )
    async with Followed(Admin(told)) as one, Followed(Admin(told)) as other:
        await until(lambda: len(exports.exported) == 6)
        await until(
            lambda: all(len(each.catalogue._followed["films"].served.publications) == 3 for each in (one, other))
        )
        for place in (None, 0, 299, 300, 9_999):
            chosen = {each.catalogue.choose("films", place).checkpoint.digest for each in (one, other)}
            assert len(chosen) == 1
