"""The gRPC shell of a play: coordinator, blobs, aggregator and enrolment at one address, and at a second one.

Every call is taken as a stream of bytes, whatever its kind: on the wire a unary call is a stream of one message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from fedrecon.ops.boundary import ERROR_METADATA
from fedrecon.ops.conformance.hearing import REQUESTS, Heard
from fedrecon.ops.conformance.playing import Play, RefusedError

LARGEST_MESSAGE_BYTES = 4 << 20


class Stage:
    """Where plays are played, one after the other.

    Args:
        clock: seconds; only differences matter.

    Attributes:
        play: the one that answers; None between two scenes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.play: Play | None = None
        self._doors = [_Door(self, elsewhere=False), _Door(self, elsewhere=True)]

    async def open(self, target: str) -> tuple[str, str]:
        """Listens, and returns where: at the target, whose port 0 takes a free one, and at a free port beside it.

        Raises:
            RuntimeError: the address cannot be listened at.
        """
        first, second = self._doors
        return await first.open(target), await second.open(f"{target.rpartition(':')[0]}:0")

    async def close(self) -> None:
        """Listens no longer."""
        for door in self._doors:
            await door.server.stop(None)


class _Door(grpc.GenericRpcHandler):
    """One address of a stage."""

    def __init__(self, stage: Stage, *, elsewhere: bool) -> None:
        self._stage = stage
        self._elsewhere = elsewhere
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES)])
        self.server.add_generic_rpc_handlers((self,))

    async def open(self, target: str) -> str:
        port = self.server.add_insecure_port(target)
        await self.server.start()
        return f"{target.rpartition(':')[0]}:{port}"

    def service(self, handler_call_details: Any) -> Any:
        """Returns what serves a call; None for calls that no device makes."""
        path = handler_call_details.method
        if path not in REQUESTS:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, path))

    async def _serve(self, path: str, parts: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        seconds, moment = context.time_remaining(), self._stage.clock()
        call = Heard(path, moment, seconds, [part async for part in parts], self._elsewhere)
        play = self._stage.play
        if play is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "between two scenes")
            return
        try:
            for message in play.answer(call):
                yield message.SerializeToString()
        except RefusedError as refused:
            info = refused.info
            trailer = () if info is None else ((ERROR_METADATA, info.SerializeToString()),)
            text = "the connection broke" if info is None else info.message
            await context.abort(grpc.StatusCode[refused.code], text, trailer)
