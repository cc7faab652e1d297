"""Calls from one coordinator to the one that leads a task.

Rules: whoever leads may have changed, or be away: every call may fail, and is then either repeated a moment later (who
waits is handed over again) or told to the device as a passing trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grpc
import grpc.aio

from fedrecon.coordinator.selection import Candidate
from fedrecon.ops.boundary import Refusal, refusal_of
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import FinishSessionRequest, FinishSessionResponse, HandOverRequest
from fedrecon.v1.coordinator_pb2_grpc import CandidatesStub, CoordinatorStub

CALL_SECONDS = 5.0


class Peers:
    """The other coordinators of a deployment.

    Args:
        connect: Opens a channel to a target.
    """

    def __init__(self, connect: Callable[[str], grpc.aio.Channel]) -> None:
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def hand_over(self, target: str, task: str, replica: bytes, candidates: Iterable[Candidate]) -> bool:
        """Tells who waits here.

        Args:
            target: The coordinator that leads.
            task: The task.
            replica: Name of this coordinator.
            candidates: Devices with their priorities: all of them, in place of those told before.

        Returns:
            Whether it was heard by one that leads.
        """
        request = HandOverRequest(
            task=task,
            replica=replica,
            candidates=[
                coordinator_pb2.Candidate(priority=each.priority, device_key=each.device) for each in candidates
            ],
        )
        try:
            response = await CandidatesStub(self._channel(target)).HandOver(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.leads)

    async def finish(self, target: str, request: FinishSessionRequest) -> FinishSessionResponse:
        """Passes the end of a session on.

        Raises:
            Refusal: What the leading coordinator refused.
            ConnectionError: It does not answer.
        """
        try:
            response: FinishSessionResponse = await CoordinatorStub(self._channel(target)).FinishSession(
                request, timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            explained = refusal_of(error)
            if explained is None:
                raise ConnectionError(error.details()) from error
            raise Refusal(error.code(), explained.reason, explained.message, explained.advice) from error
        return response

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            self._channels[target] = self._connect(target)
        return self._channels[target]

    async def close(self) -> None:
        """Closes all connections."""
        for channel in self._channels.values():
            await channel.close()
