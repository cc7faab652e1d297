"""The coordinator's hand on the aggregators: calls of `Sums`, each safe to repeat.

Rules: an aggregator that is away is asked again, with growing pauses, for as long as the caller wants to wait; what it
refuses is final. A restarted aggregator is told of the attempt again before anything else: the same attempt gives the
same groups, and other groups mean that it has lost them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio

from fedrecon.coordinator.assignments import key_of, session_kind_of
from fedrecon.coordinator.round_events import Blob, Committed, GroupsClosed, Kind, Terms
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.specs import Prepared
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.logs import logger_of
from fedrecon.v1 import aggregator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    GroupProgress,
    GrowRequest,
    GrowResponse,
    MergeRequest,
    MergeResponse,
    OpenRequest,
    OpenResponse,
    WatchRequest,
)
from fedrecon.v1.aggregator_pb2_grpc import SumsStub
from fedrecon.v1.plan_pb2 import MetricSum
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.fixed_point import WITHIN_CLIP, WITHIN_CLIP_BOUND

_log = logger_of(__name__)

Response = TypeVar("Response")

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 60.0
WATCH_SECONDS = 300.0
MERGE_SECONDS = 600.0
_PHASE_SHARE = 0.15
"""Of the reporting window, for each phase after joining: calls and an upload, no training."""
_LATER_PHASES = 3
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_ENDED_PHASES = frozenset({aggregator_pb2.GROUP_PHASE_CLOSED, aggregator_pb2.GROUP_PHASE_ABORTED})


class SumsAway(Exception):  # noqa: N818 - named for what it says
    """The aggregator did not answer; it may later."""


class _LateAnswer(SumsAway):
    """The call's own deadline passed."""


class SumsRefused(Exception):  # noqa: N818 - the same
    """The aggregator answered with no.

    Attributes:
        reason: Its stable word.
        is_unknown: Whether it does not know the attempt.
    """

    def __init__(self, reason: str, message: str, *, is_unknown: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_unknown = is_unknown


@dataclass(frozen=True, slots=True)
class Progress:
    """What the groups of an attempt hold.

    Attributes:
        reports: Reports acknowledged.
        voided: Reports made void.
    """

    reports: int
    voided: int


def open_request(attempt: Round, spec: TaskSpec, prepared: Prepared, groups_expire_at: int) -> OpenRequest:
    """Returns the call that opens an attempt's groups: the same for the same arguments."""
    trains = attempt.kind is Kind.TRAIN
    is_masked = spec.secure_sum.protocol == task_pb2.SUM_PROTOCOL_SECAGG_PLUS
    joining_ends, phase_milliseconds = masked_windows(attempt.terms, groups_expire_at)
    return OpenRequest(
        round=key_of(attempt),
        kind=session_kind_of(attempt.kind),
        secure_sum=spec.secure_sum,
        layout=prepared.layout if trains else None,
        segment_elements=prepared.segment_elements if trains else (),
        metrics=[*prepared.manifest.metrics, *_own_metrics(spec)],
        cohort_size=attempt.terms.cohort_size,
        plan_digest=spec.plan.digest,
        checkpoint_digest=attempt.opened.checkpoint.digest,
        expires_unix_milliseconds=groups_expire_at,
        report_goal=attempt.terms.report_goal if is_masked else 0,
        joining_ends_unix_milliseconds=joining_ends if is_masked else 0,
        phase_milliseconds=phase_milliseconds if is_masked else 0,
    )


def group_milliseconds(terms: Terms) -> int:
    """Returns how long the groups of an attempt must live: until they are merged, and as long again."""
    return 2 * (terms.reporting_milliseconds + 2 * terms.aggregating_milliseconds)


def masked_windows(terms: Terms, groups_expire_at: int) -> tuple[int, int]:
    """Returns when masked groups stop waiting for members, Unix milliseconds, and how long a later phase may take.

    All phases end within the reporting window: devices wait no longer.
    """
    opened_at = groups_expire_at - group_milliseconds(terms)
    phase = max(1, round(terms.reporting_milliseconds * _PHASE_SHARE))
    return opened_at + terms.reporting_milliseconds - _LATER_PHASES * phase, phase


def merge_request(attempt: Round, spec: TaskSpec, groups: tuple[bytes, ...]) -> MergeRequest:
    """Returns the call that makes an attempt's checkpoint."""
    state = attempt.opened.optimizer_state
    return MergeRequest(
        round=key_of(attempt),
        groups=groups,
        plan_digest=spec.plan.digest,
        checkpoint_digest=attempt.opened.checkpoint.digest,
        optimizer_state_digest=b"" if state is None else state.digest,
        optimizer=spec.optimizer,
        privacy=spec.privacy if spec.HasField("privacy") else None,
        minimum_reports=attempt.terms.minimum_reports,
        clip_norm=attempt.opened.clip_norm,
        denominator=attempt.terms.report_goal if spec.HasField("privacy") else 0,
    )


def _own_metrics(spec: TaskSpec) -> list[MetricSum]:
    """Returns the metric sums that reports have beside the plan's."""
    return [MetricSum(name=WITHIN_CLIP, bound=WITHIN_CLIP_BOUND)] if spec.privacy.clip_quantile else []


def committed_of(merged: MergeResponse) -> Committed:
    """Returns the event that a merge leads to."""
    state = merged.optimizer_state
    return Committed(
        checkpoint=Blob(merged.checkpoint.digest, merged.checkpoint.size),
        optimizer_state=Blob(state.digest, state.size) if state.digest else None,
        reports=merged.reports,
        weight=merged.weight,
        metric_sums=tuple(sorted(merged.metric_sums.items())),
        update_norm=merged.update_norm,
        sum_digest=merged.sum_digest,
        clip_norm=merged.clip_norm,
    )


class Sums:
    """One aggregator.

    Args:
        channel: To it; closed by its owner.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = SumsStub(channel)

    async def open(self, request: OpenRequest) -> OpenResponse:
        """Opens the groups of an attempt, or finds them open.

        Raises:
            SumsAway: No answer.
            SumsRefused: The answer is no.
        """
        with _translated():
            response: OpenResponse = await self._stub.Open(request, timeout=OPEN_SECONDS)
        return response

    async def grow(self, request: GrowRequest) -> GrowResponse:
        """Appends rows for new items to a checkpoint and its optimizer state.

        Raises:
            SumsAway: No answer.
            SumsRefused: The answer is no.
        """
        with _translated():
            response: GrowResponse = await self._stub.Grow(request, timeout=MERGE_SECONDS)
        return response

    async def follow(self, request: OpenRequest, groups: tuple[bytes, ...]) -> AsyncIterator[Progress | None]:
        """Yields the progress of an attempt's groups on every change, None whenever the aggregator is away.

        Ends when all groups have ended.

        Args:
            request: What opened them: a restarted aggregator is told again.
            groups: The groups that it gave.

        Raises:
            SumsRefused: It has lost the groups, or refuses the attempt.
        """
        pauses = _pauses()
        while True:
            try:
                await self._reopen(request, groups)
                async for progress in self._watch(request):
                    pauses = _pauses()
                    yield _progress_of(progress)
                    if all(group.phase in _ENDED_PHASES for group in progress):
                        return
            except SumsAway as away:
                _log.warning("aggregator away", why=str(away))
                yield None
            await asyncio.sleep(next(pauses))

    async def close(self, request: OpenRequest, groups: tuple[bytes, ...], *, discard: bool = False) -> GroupsClosed:
        """Ends an attempt's uploads and waits until all its groups have ended, however long that takes.

        Args:
            request: What opened them.
            groups: The groups that it gave.
            discard: Whether to give all reports up.

        Raises:
            SumsRefused: It has lost the groups, or refuses.
        """

        async def once() -> GroupsClosed | None:
            with _translated():
                response = await self._stub.Close(
                    CloseRequest(round=request.round, discard=discard), timeout=CLOSE_SECONDS
                )
            return _closed_of(list(response.groups))

        async def until_ended() -> GroupsClosed:
            closed = await once()
            while closed is None:
                async for progress in self._watch(request):
                    if (closed := _closed_of(progress)) is not None:
                        return closed
                closed = await once()
            return closed

        return await self._persist(until_ended, request, groups)

    async def merge(self, request: MergeRequest, opened: OpenRequest, groups: tuple[bytes, ...]) -> MergeResponse:
        """Makes the checkpoint, however long an aggregator that is away takes to come back.

        Args:
            request: What to merge.
            opened: What opened the groups.
            groups: All groups that it gave.

        Raises:
            SumsRefused: It has lost the groups, or no checkpoint can be made of them.
        """

        async def once() -> MergeResponse:
            with _translated():
                response: MergeResponse = await self._stub.Merge(request, timeout=MERGE_SECONDS)
            return response

        return await self._persist(once, opened, groups)

    async def _persist(
        self, call: Callable[[], Awaitable[Response]], request: OpenRequest, groups: tuple[bytes, ...]
    ) -> Response:
        pauses = _pauses()
        while True:
            try:
                return await call()
            except SumsAway as away:
                _log.warning("aggregator away", why=str(away))
            except SumsRefused as refused:
                if not refused.is_unknown:
                    raise
                with contextlib.suppress(SumsAway):
                    await self._reopen(request, groups)
            await asyncio.sleep(next(pauses))

    async def _reopen(self, request: OpenRequest, groups: tuple[bytes, ...]) -> None:
        response = await self.open(request)
        if set(response.groups) != set(groups):
            raise SumsRefused("GROUPS_LOST", "the aggregator has lost the groups of this attempt")

    async def _watch(self, request: OpenRequest) -> AsyncIterator[list[GroupProgress]]:
        try:
            with _translated():
                async for response in self._stub.Watch(WatchRequest(round=request.round), timeout=WATCH_SECONDS):
                    yield list(response.groups)
        except SumsRefused as refused:
            if not refused.is_unknown:
                raise
            raise SumsAway("the aggregator does not know the attempt yet") from refused
        except _LateAnswer:
            return  # a watch is cut off now and then, and taken up again


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Tells an answer from a broken connection."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        explained = refusal_of(error)
        if explained is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise _LateAnswer(f"no answer in time: {error.details()}") from error
        passing = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED}
        if explained is None or error.code() in passing:
            raise SumsAway(f"{error.code().name}: {error.details()}") from error
        raise SumsRefused(
            explained.reason, explained.message, is_unknown=error.code() is grpc.StatusCode.NOT_FOUND
        ) from error


def _progress_of(groups: list[GroupProgress]) -> Progress:
    living = [group for group in groups if group.phase != aggregator_pb2.GROUP_PHASE_ABORTED]
    return Progress(sum(group.reports for group in living), sum(group.voided for group in groups))


def _closed_of(groups: list[GroupProgress]) -> GroupsClosed | None:
    if not all(group.phase in _ENDED_PHASES for group in groups):
        return None
    closed = [group for group in groups if group.phase == aggregator_pb2.GROUP_PHASE_CLOSED]
    return GroupsClosed(
        groups=tuple(group.group for group in closed),
        reports=sum(group.reports for group in closed),
        voided=sum(group.voided for group in groups),
    )


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
