"""One aggregator's service `Sums`: its calls, and what their failures mean.

Rules: an aggregator that is away may be asked again; what it refuses is final. Who asks whom, and for how long, is
`aggregators`' to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio

from fedrecon.ops.boundary import refusal_of
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    GroupProgress,
    GrowRequest,
    GrowResponse,
    MergeRequest,
    MergeResponse,
    OpenRequest,
    OpenResponse,
    StatusRequest,
    StatusResponse,
    WatchRequest,
)
from fedrecon.v1.aggregator_pb2_grpc import SumsStub
from fedrecon.v1.common_pb2 import RoundKey

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 60.0
WATCH_SECONDS = 300.0
MERGE_SECONDS = 600.0
STATUS_SECONDS = 2.0
_GROUP_MOVED = "GROUP_MOVED"


class SumsAway(Exception):  # noqa: N818 - named for what it says
    """The aggregator did not answer; it may later."""


class _LateAnswer(SumsAway):
    """The call's own deadline passed."""


class SumsRefused(Exception):  # noqa: N818 - the same
    """The aggregator answered with no.

    Attributes:
        reason: Its stable word.
        is_unknown: Whether it does not know the attempt, or not any more: another one may.
    """

    def __init__(self, reason: str, message: str, *, is_unknown: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_unknown = is_unknown


class Sums:
    """One aggregator. Every call raises `SumsAway` without an answer, and `SumsRefused` if the answer is no.

    Args:
        channel: To it; closed by its owner.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = SumsStub(channel)

    async def open(self, request: OpenRequest) -> OpenResponse:
        """Opens the groups of a part, finds them open, or takes them over."""
        with _translated():
            response: OpenResponse = await self._stub.Open(request, timeout=OPEN_SECONDS)
        return response

    async def close(self, part: RoundKey, *, discard: bool) -> list[GroupProgress]:
        """Ends the uploads of a part, or gives it up; returns its groups, of which some may be unmasked yet."""
        with _translated():
            response = await self._stub.Close(CloseRequest(round=part, discard=discard), timeout=CLOSE_SECONDS)
        return list(response.groups)

    async def watch(self, part: RoundKey) -> AsyncIterator[list[GroupProgress]]:
        """Yields the groups of a part on every change, until they have ended, or for some minutes."""
        try:
            with _translated():
                async for response in self._stub.Watch(WatchRequest(round=part), timeout=WATCH_SECONDS):
                    yield list(response.groups)
        except _LateAnswer:
            return  # a watch is cut off now and then, and taken up again

    async def merge(self, request: MergeRequest) -> MergeResponse:
        """Makes a checkpoint of closed groups."""
        with _translated():
            response: MergeResponse = await self._stub.Merge(request, timeout=MERGE_SECONDS)
        return response

    async def grow(self, request: GrowRequest) -> GrowResponse:
        """Appends rows for new items to a checkpoint and its optimizer state."""
        with _translated():
            response: GrowResponse = await self._stub.Grow(request, timeout=MERGE_SECONDS)
        return response

    async def status(self) -> StatusResponse:
        """Tells how much is at work there."""
        with _translated():
            response: StatusResponse = await self._stub.Status(StatusRequest(), timeout=STATUS_SECONDS)
        return response


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
        is_unknown = error.code() is grpc.StatusCode.NOT_FOUND or explained.reason == _GROUP_MOVED
        raise SumsRefused(explained.reason, explained.message, is_unknown=is_unknown) from error
