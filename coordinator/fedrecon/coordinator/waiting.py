"""Devices that wait to be drawn: in memory only, since whoever waited when a coordinator died simply asks again.

Rules: a device has one place, and its newest call has it. A call that ends gives its place up. Only as many as could
possibly be drawn are kept: whoever has too large a priority is answered at once instead of waiting in vain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedrecon.coordinator.selection import Candidate, merge

Answer = TypeVar("Answer")

SPARE = 2
"""Devices kept for each place: calls end before they are drawn, and their places go to others."""


@dataclass(slots=True, eq=False)
class Place(Generic[Answer]):
    """One waiting call.

    Attributes:
        candidate: The device and its priority.
        answer: Set when the wait is over.
    """

    candidate: Candidate
    answer: asyncio.Future[Answer]


class WaitingRoom(Generic[Answer]):
    """Who waits for the next draw of one task.

    Args:
        superseded: Answer to a call whose device has called again.
        full: Answer to a call that cannot be drawn any more.
    """

    def __init__(self, superseded: Answer, full: Answer) -> None:
        self._superseded = superseded
        self._full = full
        self._places: dict[bytes, Place[Answer]] = {}

    def __len__(self) -> int:
        return len(self._places)

    @contextlib.contextmanager
    def place(self, device: bytes, priority: int, capacity: int) -> Iterator[tuple[asyncio.Future[Answer], int]]:
        """Keeps a place for as long as the block runs, or until somebody else needs it.

        Args:
            device: The device's key.
            priority: Random; a device that waits already keeps its own.
            capacity: Devices that can be drawn at most.

        Yields:
            Where the answer will appear, and the device's priority.
        """
        before = self._places.get(device)
        if before is not None:
            self._answer(before, self._superseded)
            priority = before.candidate.priority
        place = Place(Candidate(priority, device), asyncio.get_running_loop().create_future())
        self._places[device] = place
        if len(self._places) > SPARE * capacity:
            last = max(self._places.values(), key=lambda each: each.candidate)
            del self._places[last.candidate.device]
            self._answer(last, self._full)
        try:
            yield place.answer, priority
        finally:
            if self._places.get(device) is place:
                del self._places[device]

    def smallest(self, size: int) -> tuple[Candidate, ...]:
        """Returns the devices that a draw of this size takes, in order."""
        return merge([[place.candidate for place in self._places.values()]], size)

    def answer(self, device: bytes, answer: Answer) -> None:
        """Ends a device's wait; nothing happens if it has gone."""
        place = self._places.pop(device, None)
        if place is not None:
            self._answer(place, answer)

    def answer_all(self, answer: Answer) -> int:
        """Ends everybody's wait.

        Returns:
            How many waited.
        """
        places, self._places = self._places, {}
        for place in places.values():
            self._answer(place, answer)
        return len(places)

    @staticmethod
    def _answer(place: Place[Answer], answer: Answer) -> None:
        if not place.answer.done():
            place.answer.set_result(answer)
