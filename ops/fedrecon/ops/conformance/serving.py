"""The gRPC shell of a play: one server that is coordinator, blobs, aggregator and enrolment at one address.

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


class Stage(grpc.GenericRpcHandler):
    """Where plays are played, one after the other.

    Args:
        clock: seconds; only differences matter.

    Attributes:
        play: the one that answers; None between two scenes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES)])
        self._server.add_generic_rpc_handlers((self,))
        self.play: Play | None = None

    async def open(self, target: str) -> str:
        """Listens, and returns where: port 0 takes a free one.

        Raises:
            RuntimeError: the address cannot be listened at.
        """
        port = self._server.add_insecure_port(target)
        await self._server.start()
        return f"{target.rpartition(':')[0]}:{port}"

    async def close(self) -> None:
        """Listens no longer."""
        await self._server.stop(None)

    def service(self, handler_call_details: Any) -> Any:
        """Returns what serves a call; None for calls that no device makes."""
        path = handler_call_details.method
        if path not in REQUESTS:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, path))

    async def _serve(self, path: str, parts: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        seconds, moment = context.time_remaining(), self._clock()
        call = Heard(path, moment, seconds, [part async for part in parts])
        play = self.play
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
