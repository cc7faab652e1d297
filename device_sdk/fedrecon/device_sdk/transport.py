"""How requests of the core reach services: gRPC, blocking or with asyncio.

A transport carries bytes and knows nothing of sessions. Many devices of one process share one, and with it a channel
for each target. Errors become `CallFailedError` with the reason and advice that services send as
`fedrecon-error-bin`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.requests import FETCH, UPLOAD, Call, Fetch, Upload
from fedrecon.v1.blobs_pb2 import FetchResponse
from fedrecon.v1.common_pb2 import ErrorInfo

ERROR_KEY = "fedrecon-error-bin"
_OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.enable_retries", 0),  # the core repeats calls itself, and counts them
    ("grpc.keepalive_time_ms", 60_000),
    # The core waits between tries, longer each time: a connection must be tried when it does, not minutes later.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Transport(Protocol):
    """Does what the core asks; raises `CallFailedError` where a service fails."""

    async def call(self, request: Call) -> Message:
        """Returns the answer of a unary call."""
        ...

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk of a stream to `request.take`."""
        ...

    async def upload(self, request: Upload) -> Message:
        """Streams the parts and returns the answer."""
        ...

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Returns what a function returns that may take long."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


def _failure(error: Any, target: str, method: str) -> CallFailedError:
    """Returns what a gRPC error says, in the words of the contract."""
    code = error.code().name if error.code() is not None else "UNKNOWN"
    told = ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            try:
                told = ErrorInfo.FromString(value)
            except DecodeError:  # another service's trailer of that name
                continue
    retry = (told.retry.min_milliseconds, told.retry.max_milliseconds) if told.HasField("retry") else None
    text = told.message or error.details() or "no details"
    return CallFailedError(
        f"{method} at {target}: {text}", told.advice, code=code, reason=told.reason or code, retry_milliseconds=retry
    )


def _parse(method: Any, target: str, content: bytes) -> Message:
    """Returns an answer, or says that it is none."""
    try:
        answer: Message = method.answer.FromString(content)
    except DecodeError as error:
        raise CallFailedError(
            f"{method.name} at {target}: the answer cannot be read: {error}",
            "check that the target is a fedrecon service",
            code="DATA_LOSS",
            reason="MALFORMED_ANSWER",
        ) from error
    return answer


class BlockingTransport:
    """gRPC without an event loop; its coroutines never suspend (see `driving.run_blocking`).

    Args:
        authority: certificate authority of the services in PEM; None for plain connections.
    """

    def __init__(self, authority: bytes | None = None) -> None:
        self._authority = authority
        self._channels: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._interrupted = threading.Event()

    def _channel(self, target: str) -> Any:
        import grpc

        with self._lock:
            if target not in self._channels:
                self._channels[target] = (
                    grpc.insecure_channel(target, _OPTIONS)
                    if self._authority is None
                    else grpc.secure_channel(target, grpc.ssl_channel_credentials(self._authority), _OPTIONS)
                )
            return self._channels[target]

    async def call(self, request: Call) -> Message:
        """Returns the answer of a unary call."""
        import grpc

        try:
            content = self._channel(request.target).unary_unary(request.method.path)(
                request.body, timeout=request.seconds
            )
        except grpc.RpcError as error:
            raise _failure(error, request.target, request.method.name) from error
        return _parse(request.method, request.target, content)

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk of a stream to `request.take`."""
        import grpc

        stream = self._channel(request.target).unary_stream(FETCH.path)(request.body, timeout=request.seconds)
        try:
            for content in stream:
                answer = _parse(FETCH, request.target, content)
                assert isinstance(answer, FetchResponse)  # noqa: S101 - tells mypy what FETCH answers
                request.take(answer.chunk)
        except grpc.RpcError as error:
            raise _failure(error, request.target, FETCH.name) from error
        finally:
            stream.cancel()

    async def upload(self, request: Upload) -> Message:
        """Streams the parts and returns the answer."""
        import grpc

        try:
            content = self._channel(request.target).stream_unary(UPLOAD.path)(request.parts(), timeout=request.seconds)
        except grpc.RpcError as error:
            raise _failure(error, request.target, UPLOAD.name) from error
        return _parse(UPLOAD, request.target, content)

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Returns what the function returns, computed here."""
        return function()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        self._interrupted.wait(seconds)

    def interrupt(self) -> None:
        """Ends the call or wait of another thread, and every further wait; a further call connects anew."""
        self._interrupted.set()
        self.close()

    def close(self) -> None:
        """Closes the channels."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()


class AsyncTransport:
    """gRPC with asyncio, for one event loop; many devices may share it.

    Args:
        authority: certificate authority of the services in PEM; None for plain connections.
    """

    def __init__(self, authority: bytes | None = None) -> None:
        self._authority = authority
        self._channels: dict[str, Any] = {}

    def _channel(self, target: str) -> Any:
        import grpc

        if target not in self._channels:
            self._channels[target] = (
                grpc.aio.insecure_channel(target, _OPTIONS)
                if self._authority is None
                else grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(self._authority), _OPTIONS)
            )
        return self._channels[target]

    async def call(self, request: Call) -> Message:
        """Returns the answer of a unary call."""
        import grpc

        try:
            content = await self._channel(request.target).unary_unary(request.method.path)(
                request.body, timeout=request.seconds
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error, request.target, request.method.name) from error
        return _parse(request.method, request.target, content)

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk of a stream to `request.take`."""
        import grpc

        stream = self._channel(request.target).unary_stream(FETCH.path)(request.body, timeout=request.seconds)
        try:
            async for content in stream:
                answer = _parse(FETCH, request.target, content)
                assert isinstance(answer, FetchResponse)  # noqa: S101 - tells mypy what FETCH answers
                request.take(answer.chunk)
        except grpc.aio.AioRpcError as error:
            raise _failure(error, request.target, FETCH.name) from error
        finally:
            stream.cancel()

    async def upload(self, request: Upload) -> Message:
        """Streams the parts and returns the answer."""
        import grpc

        parts: Iterable[bytes] = request.parts()
        try:
            content = await self._channel(request.target).stream_unary(UPLOAD.path)(parts, timeout=request.seconds)
        except grpc.aio.AioRpcError as error:
            raise _failure(error, request.target, UPLOAD.name) from error
        return _parse(UPLOAD, request.target, content)

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Returns what the function returns, computed in a thread."""
        import asyncio

        return await asyncio.to_thread(function)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        import asyncio

        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Closes the channels."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
