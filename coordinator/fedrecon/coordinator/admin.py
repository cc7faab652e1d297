"""The Admin service: what operators and tools call.

Rules: a change is an event in the task's stream, written by whoever was asked; the runner that leads the task follows
that stream. Asking twice for the same state is not an error. What cannot be done yet is refused with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import grpc

from fedrecon.coordinator import draining, ledger, serving, stories, tasks
from fedrecon.coordinator.collecting import Collector
from fedrecon.coordinator.draining import AggregatorDrained, AggregatorUndrained
from fedrecon.coordinator.editing import find_checkpoint, require_appended, require_editable
from fedrecon.coordinator.entries import RECOMMENDERS_STREAM, TASK_STREAM, round_stream, task_entries
from fedrecon.coordinator.histories import Histories, messages_of, points_of
from fedrecon.coordinator.ledger import RoundAt, TaskAt
from fedrecon.coordinator.messages import (
    audit_messages,
    checkpoint_messages,
    draining_messages,
    task_message,
)
from fedrecon.coordinator.plans import load_plan
from fedrecon.coordinator.privacy import claim_of
from fedrecon.coordinator.reading import Reader
from fedrecon.coordinator.recommender_messages import recommender_audit, recommender_message
from fedrecon.coordinator.recommender_service import RecommenderCalls, calling_operator
from fedrecon.coordinator.registering import read_spec, register_task
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.coordinator.round_state import Phase, Round, Seen
from fedrecon.coordinator.specs import InvalidSpec
from fedrecon.coordinator.sums import SumsAway, SumsRefused
from fedrecon.coordinator.tasks import State, TaskCancelled, TaskEdited, TaskPaused, TaskResumed
from fedrecon.ops.blobs import CHUNK_BYTES
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.callers import current_role
from fedrecon.ops.journal import Append, HistoryCompacted, StaleWriter
from fedrecon.ops.operators import Role
from fedrecon.v1 import admin_pb2
from fedrecon.v1.aggregator_pb2 import GrowRequest
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.chunks import ChunkOrderError, take
from fedrecon.wire.digests import DigestMismatchError

LARGEST_BLOB_BYTES = 8 << 30
_SPOOLED_BYTES = 16 << 20
_DEFAULT_LIMIT = 100
_DEFAULT_POINTS = 200
_LARGEST_LIMIT = 1_000
"""Rounds that one call reads: `before_round` goes on from there."""
_WATCH_MILLISECONDS = 10_000
_LOOK_MILLISECONDS: dict[Phase | None, int] = {Phase.SELECTING: 2_000, Phase.REPORTING: 500}
"""How often a watcher looks at what no event tells: devices that wait, and reports that came."""
_AGGREGATOR_RETRY = (500, 5_000)

ROLES = {
    **dict.fromkeys(
        (
            "GetTask",
            "ListTasks",
            "ListRounds",
            "GetHistory",
            "ExplainRound",
            "WatchTask",
            "ListCheckpoints",
            "ListRecommenders",
            "GetPrivacy",
            "ListAudit",
            "ListAggregators",
            "GetCaller",
        ),
        Role.VIEWER,
    ),
    **dict.fromkeys(
        (
            "PutBlob",
            "CreateTask",
            "EditTask",
            "PauseTask",
            "ResumeTask",
            "RollBack",
            "AdmitRecommender",
            "PromoteRecommender",
            "RollBackRecommender",
            "DrainAggregator",
            "UndrainAggregator",
        ),
        Role.OPERATOR,
    ),
    **dict.fromkeys(("CancelTask", "CollectBlobs"), Role.ADMIN),
}
"""The least role for each call."""


class AdminService(RecommenderCalls):
    """Answers operators.

    Args:
        roster: The tasks.
        stopping: Set when the service drains: watching ends then.
    """

    def __init__(self, roster: Roster, stopping: asyncio.Event) -> None:
        self._roster = roster
        self._around = roster.around
        self._stopping = stopping
        self._reader = Reader(roster.around.journal)
        self._collector = Collector(roster.around)
        self._histories = Histories(roster.around.journal)

    async def PutBlob(  # noqa: N802 - the contract's name, as all that follow
        self, request_iterator: AsyncIterator[admin_pb2.PutBlobRequest], context: Any
    ) -> admin_pb2.PutBlobResponse:
        """Stores a blob of a plan."""
        del context
        size = 0
        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spooled:
            async for request in request_iterator:
                try:
                    spooled.write(take(request.chunk, size, LARGEST_BLOB_BYTES))
                except (ChunkOrderError, DigestMismatchError) as error:
                    raise Refusal(
                        grpc.StatusCode.INVALID_ARGUMENT, "BAD_CHUNK", str(error), "Send the blob again from its start."
                    ) from error
                size += len(request.chunk.data)
            spooled.seek(0)
            chunks = iter(lambda: spooled.read(CHUNK_BYTES), b"")
            digest = await asyncio.to_thread(self._around.blobs.put, chunks)
        return admin_pb2.PutBlobResponse(blob=BlobReference(digest=digest, size=size))

    async def CreateTask(  # noqa: N802
        self, request: admin_pb2.CreateTaskRequest, context: Any
    ) -> admin_pb2.CreateTaskResponse:
        """Registers a task."""
        del context
        created = await asyncio.to_thread(read_spec, request.spec, self._around.blobs, calling_operator())
        if request.spec.vocabularies:
            checkpoint, _ = await self._grown(request.spec, created.checkpoint, None)
            created = replace(created, checkpoint=checkpoint)
        await register_task(self._around.journal, request.spec.name, created, self._around.clock.now_milliseconds())
        return admin_pb2.CreateTaskResponse(task=await self._task(request.spec.name))

    async def EditTask(self, request: admin_pb2.EditTaskRequest, context: Any) -> admin_pb2.EditTaskResponse:  # noqa: N802
        """Changes what a task is asked for; rounds that open from now on go by it."""
        del context
        name = request.spec.name
        task, version = await self._known(name)
        if request.version != version:
            raise Refusal(
                grpc.StatusCode.ABORTED,
                "TASK_MOVED_ON",
                f"Task {name!r} is at version {version}, the change starts from {request.version}.",
                "Read the task again, and change what it says now.",
            )
        before = TaskSpec.FromString(task.spec)
        require_editable(before, request.spec)
        read = await asyncio.to_thread(read_spec, request.spec, self._around.blobs, calling_operator())
        event = TaskEdited(read.spec, read.maximum_rounds, read.maximum_attempts, read.operator)
        more: tuple[Append, ...] = ()
        if request.spec.vocabularies != before.vocabularies:
            await asyncio.to_thread(require_appended, before, request.spec, self._around.blobs)
            checkpoint, state = await self._grown(request.spec, task.checkpoint, task.optimizer_state)
            if checkpoint != task.checkpoint:
                event = replace(event, checkpoint=checkpoint, optimizer_state=state)
            more = await self._items_renewed(name, request.spec)
        return admin_pb2.EditTaskResponse(task=await self._keep(name, task, version, event, *more))

    async def RollBack(self, request: admin_pb2.RollBackRequest, context: Any) -> admin_pb2.RollBackResponse:  # noqa: N802
        """Makes an older checkpoint, with its optimizer state, the live one; a round under way is given up."""
        del context
        while True:
            task, version = await self._known(request.task)
            entries = await ledger.load_task_entries(self._around.journal, request.task)
            found = await asyncio.to_thread(find_checkpoint, task, entries, request.round, self._around.blobs)
            event = replace(found, reason=request.reason, operator=calling_operator())
            spec = TaskSpec.FromString(task.spec)
            if spec.vocabularies:
                checkpoint, state = await self._grown(spec, event.checkpoint, event.optimizer_state)
                event = replace(event, checkpoint=checkpoint, optimizer_state=state)
            try:
                return admin_pb2.RollBackResponse(task=await self._keep(request.task, task, version, event))
            except StaleWriter:
                continue  # a round was committed meanwhile: the wish is the same

    async def GetTask(self, request: admin_pb2.GetTaskRequest, context: Any) -> admin_pb2.GetTaskResponse:  # noqa: N802
        """Shows a task."""
        del context
        return admin_pb2.GetTaskResponse(task=await self._task(request.task))

    async def ListTasks(self, request: admin_pb2.ListTasksRequest, context: Any) -> admin_pb2.ListTasksResponse:  # noqa: N802
        """Lists all tasks, by name."""
        del request, context
        names = await ledger.load_names(self._around.journal)
        return admin_pb2.ListTasksResponse(tasks=[await self._task(name) for name in names])

    async def PauseTask(self, request: admin_pb2.PauseTaskRequest, context: Any) -> admin_pb2.PauseTaskResponse:  # noqa: N802
        """Stops new rounds."""
        del context
        event = TaskPaused(request.reason, calling_operator())
        return admin_pb2.PauseTaskResponse(task=await self._change(request.task, event, State.PAUSED))

    async def ResumeTask(  # noqa: N802
        self, request: admin_pb2.ResumeTaskRequest, context: Any
    ) -> admin_pb2.ResumeTaskResponse:
        """Goes on."""
        del context
        event = TaskResumed(calling_operator())
        return admin_pb2.ResumeTaskResponse(task=await self._change(request.task, event, State.RUNNING))

    async def CancelTask(  # noqa: N802
        self, request: admin_pb2.CancelTaskRequest, context: Any
    ) -> admin_pb2.CancelTaskResponse:
        """Ends a task for good."""
        del context
        event = TaskCancelled(request.reason, calling_operator())
        return admin_pb2.CancelTaskResponse(task=await self._change(request.task, event, State.CANCELLED))

    async def ListRounds(self, request: admin_pb2.ListRoundsRequest, context: Any) -> admin_pb2.ListRoundsResponse:  # noqa: N802
        """Lists attempts, newest first."""
        del context
        task, _ = await self._known(request.task)
        limit = min(request.limit or _DEFAULT_LIMIT, _LARGEST_LIMIT)
        number = min(request.before_round - 1, task.number) if request.before_round else task.number
        listed: list[admin_pb2.Round] = []
        while number >= 1 and len(listed) < limit:
            found = await ledger.load_round(self._around.journal, request.task, number)
            listed += reversed(messages_of(found))
            number -= 1
        return admin_pb2.ListRoundsResponse(rounds=listed[:limit])

    async def GetHistory(self, request: admin_pb2.GetHistoryRequest, context: Any) -> admin_pb2.GetHistoryResponse:  # noqa: N802
        """Tells how rounds went over a task's life, in at most so many points."""
        del context
        task, _ = await self._known(request.task)
        figures = await self._histories.read(request.task, task.committed)
        points = min(request.points or _DEFAULT_POINTS, _LARGEST_LIMIT)
        return admin_pb2.GetHistoryResponse(points=points_of(figures, points))

    async def ExplainRound(  # noqa: N802
        self, request: admin_pb2.ExplainRoundRequest, context: Any
    ) -> admin_pb2.ExplainRoundResponse:
        """Tells the journal of one round in words."""
        del context
        await self._known(request.task)
        found = await ledger.load_round(self._around.journal, request.task, request.round)
        if found.summary is not None:
            return admin_pb2.ExplainRoundResponse(attempts=found.summary.messages, story=found.summary.story)
        if not found.attempts:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_ROUND",
                f"Task {request.task!r} has no round {request.round}.",
                "List its rounds.",
            )
        entries = await ledger.load_round_entries(self._around.journal, request.task, request.round)
        return admin_pb2.ExplainRoundResponse(
            attempts=messages_of(found),
            story=stories.tell_all((entry.at, entry.event) for entry in entries),
        )

    async def WatchTask(  # noqa: N802
        self, request: admin_pb2.WatchTaskRequest, context: Any
    ) -> AsyncIterator[admin_pb2.WatchTaskResponse]:
        """Streams a task's state, at once and on every change."""
        del context
        shown: admin_pb2.Task | None = None
        while not self._stopping.is_set():
            task, version, found = await self._look_at(request.task)
            served = (await self._reader.recommenders(request.task)).version
            current = await self._message_of(request.task, task, version, found)
            if current != shown:
                shown = current
                yield admin_pb2.WatchTaskResponse(task=current)
            await self._wait_for_change(request.task, version, served, task.number, found.version)

    async def ListCheckpoints(  # noqa: N802
        self, request: admin_pb2.ListCheckpointsRequest, context: Any
    ) -> admin_pb2.ListCheckpointsResponse:
        """Lists checkpoints, newest first."""
        del context
        task, _ = await self._known(request.task)
        entries = await ledger.load_task_entries(self._around.journal, request.task)
        listed = checkpoint_messages(task, entries)[: request.limit or _DEFAULT_LIMIT]
        return admin_pb2.ListCheckpointsResponse(checkpoints=listed)

    async def GetPrivacy(self, request: admin_pb2.GetPrivacyRequest, context: Any) -> admin_pb2.GetPrivacyResponse:  # noqa: N802
        """Tells what privacy is claimed, or what is missing."""
        del context
        task, _ = await self._known(request.task)
        claim = await asyncio.to_thread(claim_of, task)
        return admin_pb2.GetPrivacyResponse(
            statement=claim.statement, epsilon=claim.epsilon, delta=claim.delta, assumptions=claim.assumptions
        )

    async def ListAudit(self, request: admin_pb2.ListAuditRequest, context: Any) -> admin_pb2.ListAuditResponse:  # noqa: N802
        """Lists what operators changed, newest first."""
        del context
        if request.task:
            await self._known(request.task)
        names = [request.task] if request.task else await ledger.load_names(self._around.journal)
        audit: list[admin_pb2.AuditEntry] = []
        for name in names:
            audit += audit_messages(name, await ledger.load_task_entries(self._around.journal, name))
            audit += recommender_audit(name, await serving.load_entries(self._around.journal, name))
        if not request.task:
            audit += draining_messages((await draining.load(self._around.journal))[0])
        audit.sort(key=lambda entry: entry.unix_milliseconds, reverse=True)
        return admin_pb2.ListAuditResponse(entries=audit[: request.limit or _DEFAULT_LIMIT])

    async def CollectBlobs(  # noqa: N802
        self, request: admin_pb2.CollectBlobsRequest, context: Any
    ) -> admin_pb2.CollectBlobsResponse:
        """Removes blobs that nothing needs any more, or tells which would go."""
        del context
        swept = await self._collector.collect(dry_run=request.dry_run)
        return admin_pb2.CollectBlobsResponse(**asdict(swept))

    async def ListAggregators(  # noqa: N802
        self, request: admin_pb2.ListAggregatorsRequest, context: Any
    ) -> admin_pb2.ListAggregatorsResponse:
        """Lists the aggregators of the deployment."""
        del request, context
        listed = await asyncio.gather(*map(self._aggregator, self._around.aggregators.targets))
        return admin_pb2.ListAggregatorsResponse(aggregators=listed)

    async def GetCaller(self, request: admin_pb2.GetCallerRequest, context: Any) -> admin_pb2.GetCallerResponse:  # noqa: N802
        """Tells who calls, and what it may do."""
        del request, context
        role = admin_pb2.OperatorRole.Value(f"OPERATOR_ROLE_{current_role.get().name}")
        return admin_pb2.GetCallerResponse(name=calling_operator(), role=role)

    async def DrainAggregator(  # noqa: N802
        self, request: admin_pb2.DrainAggregatorRequest, context: Any
    ) -> admin_pb2.DrainAggregatorResponse:
        """Gives an aggregator no new groups."""
        del context
        event = AggregatorDrained(self._known_aggregator(request.target), request.reason, calling_operator())
        await draining.keep(self._around.journal, event, self._around.clock.now_milliseconds())
        return admin_pb2.DrainAggregatorResponse(aggregator=await self._aggregator(request.target))

    async def UndrainAggregator(  # noqa: N802
        self, request: admin_pb2.UndrainAggregatorRequest, context: Any
    ) -> admin_pb2.UndrainAggregatorResponse:
        """Gives an aggregator groups again."""
        del context
        event = AggregatorUndrained(self._known_aggregator(request.target), calling_operator())
        await draining.keep(self._around.journal, event, self._around.clock.now_milliseconds())
        return admin_pb2.UndrainAggregatorResponse(aggregator=await self._aggregator(request.target))

    def _known_aggregator(self, target: str) -> str:
        if target not in self._around.aggregators.targets:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_AGGREGATOR",
                f"There is no aggregator {target!r}; known are {', '.join(self._around.aggregators.targets)}.",
                "Name one of them, as FEDRECON_AGGREGATOR_TARGET of this coordinator does.",
            )
        return target

    async def _aggregator(self, target: str) -> admin_pb2.AggregatorState:
        status = await self._around.aggregators.status(target)
        return admin_pb2.AggregatorState(
            target=target,
            drained=target in await draining.load_drained(self._around.journal),
            answers=status is not None,
            open_groups=0 if status is None else status.open_groups,
        )

    async def _change(self, name: str, event: tasks.Event, wanted: State) -> admin_pb2.Task:
        while True:
            task, version = await self._known(name)
            if task.state is wanted:
                return await self._task(name)
            try:
                return await self._keep(name, task, version, event)
            except StaleWriter:
                continue  # somebody else wrote: decide anew

    async def _keep(
        self, name: str, task: tasks.Task, version: int, event: tasks.Event, *more: Append
    ) -> admin_pb2.Task:
        """Keeps an operator's change, and what belongs to it in other streams.

        Raises:
            Refusal: The task's state does not allow it.
            StaleWriter: Somebody else wrote.
        """
        now = self._around.clock.now_milliseconds()
        try:
            tasks.step(task, event, now)
        except IllegalEvent as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "WRONG_STATE",
                f"Task {name!r} is {task.state}: {error}.",
                "A task that has ended stays ended: create another.",
            ) from error
        own = Append(TASK_STREAM, version, (task_entries.encode(now, event),))
        await self._around.journal.append(name, [own, *more])
        return await self._task(name)

    async def _grown(self, spec: TaskSpec, checkpoint: Blob, state: Blob | None) -> tuple[Blob, Blob | None]:
        """Returns a checkpoint and its optimizer state with as many rows as a task's vocabularies have."""
        try:
            prepared = await asyncio.to_thread(load_plan, spec, self._around.blobs)
            request = GrowRequest(
                plan_digest=spec.plan.digest,
                checkpoint_digest=checkpoint.digest,
                optimizer_state_digest=b"" if state is None else state.digest,
                optimizer=spec.optimizer,
                rows=prepared.rows,
            )
            grown = await self._around.aggregators.grow(request)
        except InvalidSpec as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.reason, f"{error}.", "Correct it.") from error
        except SumsAway as away:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "AGGREGATOR_AWAY",
                f"Rows for new items are the aggregator's to make, and it does not answer: {away}.",
                "Try again when it does.",
                retry_milliseconds=_AGGREGATOR_RETRY,
            ) from away
        except SumsRefused as refused:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                refused.reason,
                f"Rows for new items cannot be made: {refused}.",
                "Nothing has changed; look at the aggregator's log.",
            ) from refused
        after = Blob(grown.checkpoint.digest, grown.checkpoint.size)
        if not grown.optimizer_state.digest:
            return after, None
        return after, Blob(grown.optimizer_state.digest, grown.optimizer_state.size)

    async def _known(self, name: str) -> tuple[tasks.Task, int]:
        names = await ledger.load_names(self._around.journal)
        at = await self._reader.task(name) if name in names else TaskAt(None, 0)
        if at.task is None:
            known = ", ".join(names) or "none"
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_TASK",
                f"There is no task {name!r}; known tasks: {known}.",
                "Name one of them, or create the task.",
            )
        return at.task, at.version

    async def _task(self, name: str) -> admin_pb2.Task:
        return await self._message_of(name, *await self._look_at(name))

    async def _look_at(self, name: str) -> tuple[tasks.Task, int, RoundAt]:
        """Returns a task, the version of its stream, and the round that runs or comes next."""
        task, version = await self._known(name)
        return task, version, await self._reader.round(name, task.number)

    async def _message_of(self, name: str, task: tasks.Task, version: int, found: RoundAt) -> admin_pb2.Task:
        attempt = found.last
        if attempt is None and task.committed:
            attempt = (await self._reader.round(name, task.committed)).last
        message = task_message(task, version, attempt, self._seen(name, attempt))
        served = (await self._reader.recommenders(name)).recommenders.served
        message.recommenders.extend(recommender_message(each, each.evidence) for each in served)
        return message

    def _seen(self, name: str, attempt: Round | None) -> Seen | None:
        """What the runner in this process knows of an attempt that is under way."""
        runner = self._roster.ready_runner(name)
        if runner is None or attempt is None:
            return None
        running = runner.book.attempt
        is_same = running is not None and running.opened == attempt.opened
        return runner.seen if is_same else None

    async def _wait_for_change(
        self, name: str, task_version: int, served_version: int, number: int, round_version: int
    ) -> None:
        journal, clock = self._around.journal, self._around.clock
        runner = self._roster.ready_runner(name)
        attempt = None if runner is None else runner.book.attempt
        longest = _LOOK_MILLISECONDS.get(attempt.phase if attempt else None, _WATCH_MILLISECONDS)
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(journal.tail(name, TASK_STREAM, task_version, _WATCH_MILLISECONDS)),
            asyncio.ensure_future(journal.tail(name, RECOMMENDERS_STREAM, served_version, _WATCH_MILLISECONDS)),
            asyncio.ensure_future(journal.tail(name, round_stream(number), round_version, _WATCH_MILLISECONDS)),
            asyncio.ensure_future(clock.sleep_until(clock.now_milliseconds() + longest)),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                with contextlib.suppress(HistoryCompacted):  # there was a change, and it was condensed already
                    each.result()  # an outage ends the stream with its refusal
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
