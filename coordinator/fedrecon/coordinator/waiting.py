"""Devices that wait to be drawn: in memory only, since whoever waited when a coordinator died simply asks again.

Rules: a device has one place, and its newest call has it. A call that ends gives its place up. Only as many as could
possibly be drawn are kept: whoever has too large a priority is answered at once instead of waiting in vain.

A heap tells who has the largest priority. It may hold devices that have gone; they are skipped when they come up, and
dropped when they are most of it, so that an arrival costs little however many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedrecon.coordinator.selection import Candidate, merge

Answer = TypeVar("Answer")

SPARE = 2
"""Devices kept for each place: calls end before they are drawn, and their places go to others."""


_LEAST_TIDIED = 64
"""Entries of the heap below which none is looked for that has gone."""


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
        self._largest: list[tuple[int, bytes]] = []  # negated priority and negated device: the first is the last drawn

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
        if before is None:
            self._push(place.candidate)
        if len(self._places) > SPARE * capacity:
            last = self._pop_last()
            self._answer(last, self._full)
        try:
            yield place.answer, priority
        finally:
            if self._places.get(device) is place:
                del self._places[device]

    def smallest(self, size: int) -> tuple[Candidate, ...]:
        """Returns the devices that a draw of this size takes, in order."""
        return merge([[place.candidate for place in self._places.values()]], size)

    def _push(self, candidate: Candidate) -> None:
        if len(self._largest) >= max(2 * len(self._places), _LEAST_TIDIED):
            self._largest = [_entry(place.candidate) for place in self._places.values()]
            heapq.heapify(self._largest)
        else:
            heapq.heappush(self._largest, _entry(candidate))

    def _pop_last(self) -> Place[Answer]:
        """Takes the place of whoever would be drawn last."""
        while True:
            priority, inverted = heapq.heappop(self._largest)
            place = self._places.get(_inverted(inverted))
            if place is not None and place.candidate.priority == -priority:
                return self._places.pop(place.candidate.device)

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


def _entry(candidate: Candidate) -> tuple[int, bytes]:
    """Returns what sorts the other way round than a candidate; devices are as long as each other."""
    return -candidate.priority, _inverted(candidate.device)


def _inverted(device: bytes) -> bytes:
    return bytes(255 - byte for byte in device)
