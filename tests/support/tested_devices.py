"""Devices for the conformance suite: the Python SDK's own core, honest, or bent in one place.

Time is a clock that moves when a device waits, so that no window is slept through.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.driving import drive, run_blocking
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.requests import Call, Fetch, Upload
from fedrecon.device_sdk.session import Circumstances, take_part
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.device_sdk.transport import BlockingTransport
from fedrecon.ops.conformance.running import Order


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Line(BlockingTransport):
    """gRPC over the loopback; waiting moves the clock. Its methods are what wrong devices bend."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.calls = 0

    async def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    async def call(self, request: Call) -> Message:
        self.clock.now += 0.001
        return await super().call(request)

    async def fetch(self, request: Fetch) -> None:
        self.clock.now += 0.001
        await super().fetch(request)

    async def upload(self, request: Upload) -> Message:
        self.clock.now += 0.001
        return await super().upload(request)


@dataclass
class Columns:
    values: dict[str, list[Any]]

    def count(self) -> int:
        return len(next(iter(self.values.values())))

    def columns(self) -> dict[str, Any]:
        return {name: np.array(column) for name, column in self.values.items()}


@dataclass
class TestedDevice:
    """Starts the SDK's core once for each scene, as a process of its own would."""

    __test__ = False

    clock: Clock = field(default_factory=Clock)
    line: Callable[[Clock], Line] = Line
    change: Callable[[dict[str, Any]], None] = lambda _settings: None

    def __call__(self, order: Order) -> None:
        key = Ed25519PrivateKey.generate()
        settings: dict[str, Any] = {
            "population": order.population,
            "floors": read_floors(order.trusted_plans, order.secure_sum, order.min_group, order.min_contributors),
            "speaker": Speaker(order.target, public_bytes(key), key.sign),
            "examples": Columns(order.examples),
            "minimum_examples": 0,
            "cache": BlobCache(),
            "entropy": os.urandom,
            "clock": self.clock,
            "wall_clock": self.clock,
            "patience": Patience(attempts=3),
        }
        self.change(settings)
        transport = self.line(self.clock)
        try:
            run_blocking(drive(take_part(Circumstances(**settings)), transport))
        finally:
            transport.close()
