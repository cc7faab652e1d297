"""Stopping what a device does, at once: a user takes the phone in hand, and nothing may be in the way.

A `Stop` is asked once, from any thread, and heard everywhere: between two steps of the core, in a call or a wait, and
inside a graph that runs (`RunOptions.terminate` of ONNX Runtime). After it a session has one short call left, by which
the coordinator learns that it need not wait.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import Message

from fedrecon.device_sdk.errors import CallFailedError, StoppedError
from fedrecon.device_sdk.requests import FINISH_SESSION, Call, Fetch, Upload
from fedrecon.device_sdk.transport import BlockingTransport, Transport

Result = TypeVar("Result")

PARTING_SECONDS = 3.0
"""What a stopped session has to say that it ends."""


class Stop:
    """Asked once, heard everywhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._listeners: set[Callable[[], None]] = set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._reason is not None

    def ask(self, reason: str) -> None:
        """Stops whoever listens, now and later.

        Args:
            reason: for people, after "stopped: ".
        """
        with self._lock:
            if self._reason is None:
                self._reason = reason
            listeners, self._listeners = self._listeners, set()
        for listener in listeners:
            listener()

    def check(self) -> None:
        """Raises if somebody asked.

        Raises:
            StoppedError: somebody did.
        """
        if self._reason is not None:
            raise StoppedError(f"stopped: {self._reason}")

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Calls a function, from whatever thread, as soon as somebody asks.

        Raises:
            StoppedError: somebody did already.
        """
        with self._lock:
            self.check()
            self._listeners.add(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.discard(listener)


running: ContextVar[Stop | None] = ContextVar("running", default=None)
"""What stops the graphs that this thread runs."""


class StoppableTransport:
    """A transport whose requests end when they are stopped; see `Transport`.

    Args:
        transport: does the work.
        stop: ends it.
    """

    def __init__(self, transport: Transport, stop: Stop) -> None:
        self._transport = transport
        self._stop = stop

    async def call(self, request: Call) -> Message:
        """Returns the answer of a unary call; the last one of a session is made even then."""
        if request.method is FINISH_SESSION and self._stop.is_asked:
            return await self._transport.call(replace(request, seconds=min(request.seconds, PARTING_SECONDS)))
        return await self._unless_stopped(lambda: self._transport.call(request))

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk of a stream to `request.take`."""
        await self._unless_stopped(lambda: self._transport.fetch(request))

    async def upload(self, request: Upload) -> Message:
        """Streams the parts and returns the answer."""
        return await self._unless_stopped(lambda: self._transport.upload(request))

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Returns what a function returns; graphs that it runs are stopped inside, also where a task is cancelled."""
        self._stop.check()
        token = running.set(self._stop)
        try:
            return await self._transport.compute(function)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._stop.ask("cancelled")
            raise
        finally:
            running.reset(token)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await self._unless_stopped(lambda: self._transport.sleep(seconds))

    async def _unless_stopped(self, act: Callable[[], Awaitable[Result]]) -> Result:
        interrupt = self._transport.interrupt if isinstance(self._transport, BlockingTransport) else _nothing
        with self._stop.heard_by(interrupt):
            try:
                return await act()
            except CallFailedError:
                self._stop.check()
                raise


def _nothing() -> None:
    """With asyncio a request that waits is ended by cancelling its task."""
