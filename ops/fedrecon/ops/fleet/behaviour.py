"""What phones do that programs do not: they vanish, and some are slow.

A device that drops out tells nobody. It vanishes after its assignment, after its work, or in the middle of its upload,
each as often; the rest of the stack sees exactly what it would see of a lost phone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from google.protobuf.message import Message

from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.requests import CHECK_IN, JOIN, Call, Fetch, Upload
from fedrecon.device_sdk.transport import Transport


class Vanished(BaseException):
    """The device is gone."""


class Moment(Enum):
    """When a device vanishes."""

    ASSIGNED = "assigned"
    TRAINED = "trained"
    UPLOADING = "uploading"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the devices of a fleet behave.

    Attributes:
        dropout: share of assigned devices that vanish, 0 to 1.
        median_seconds: time that training takes besides the computation itself, half of all devices less.
        spread: standard deviation of the logarithm of that time: 0.5 makes one in a hundred three times slower.
    """

    dropout: float = 0.1
    median_seconds: float = 0.05
    spread: float = 0.5

    def draw(self, source: random.Random) -> Session:
        """Return what one session of one device will be like."""
        moment = source.choice(list(Moment)) if source.random() < self.dropout else None
        return Session(moment, self.median_seconds * math.exp(source.gauss(0.0, self.spread)))


@dataclass(frozen=True, slots=True)
class Session:
    """What one session is like.

    Attributes:
        vanishes: when the device vanishes, or None.
        seconds: time that its training takes besides the computation.
    """

    vanishes: Moment | None
    seconds: float


class Phone:
    """A transport that behaves as a phone does; see `fedrecon.device_sdk.transport.Transport`.

    Args:
        line: the transport that all phones share.
    """

    def __init__(self, line: Transport) -> None:
        self._line = line
        self._session = Session(vanishes=None, seconds=0.0)

    def begin(self, session: Session) -> None:
        """Behave like this from now on."""
        self._session = session

    async def call(self, request: Call) -> Message:
        """Return the answer of a unary call, or vanish."""
        if request.method is not CHECK_IN:
            self._vanish_at(Moment.ASSIGNED)
        if request.method is JOIN:
            await asyncio.sleep(self._session.seconds)
            self._vanish_at(Moment.TRAINED)
        return await self._line.call(request)

    async def fetch(self, request: Fetch) -> None:
        """Give every chunk of a stream to `request.take`."""
        self._vanish_at(Moment.ASSIGNED)
        await self._line.fetch(request)

    async def upload(self, request: Upload) -> Message:
        """Stream the parts, or half of them and vanish."""
        if self._session.vanishes is Moment.UPLOADING:
            half = max(1, sum(1 for _ in request.parts()) // 2)
            with contextlib.suppress(CallFailedError):
                await self._line.upload(replace(request, parts=lambda: itertools.islice(request.parts(), half)))
            raise Vanished
        return await self._line.upload(request)

    async def compute(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns that may take long."""
        return await self._line.compute(function)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._line.sleep(seconds)

    def _vanish_at(self, moment: Moment) -> None:
        if self._session.vanishes is moment:
            raise Vanished
