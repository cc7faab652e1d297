"""Reports that become durable together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fedrecon.wire.fixed_point import Vector, add


@dataclass(slots=True)
class Batch:
    """Reports that become durable together.

    Attributes:
        total: their sum; None before the first.
        durable: done when they are acknowledged; holds the refusal if they are not.
        reports: digest by session.
        additions: those still running in threads.
        adding: one at a time.
        journalled: whether the group's state has them, though they may not be answered yet.
    """

    durable: asyncio.Future[None]
    total: Vector | None = None
    reports: dict[bytes, bytes] = field(default_factory=dict)
    additions: list[asyncio.Task[None]] = field(default_factory=list)
    adding: asyncio.Lock = field(default_factory=asyncio.Lock)
    journalled: bool = False

    def add(self, report: Vector) -> None:
        """Adds a report to the sum; the report may be freed or changed after that."""
        if self.total is None:
            self.total = Vector(report.body.copy(), report.tail.copy())
        else:
            add(self.total, report)

    async def add_in_thread(self, report: Vector) -> None:
        """Adds a large report without holding up the event loop; one at a time."""
        async with self.adding:
            await asyncio.to_thread(self.add, report)
