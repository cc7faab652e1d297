"""Drawing a cohort from those who wait, without devices that took part too recently, or that are not sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fedrecon.coordinator.answers import Answer, Ineligible
from fedrecon.coordinator.assignments import is_sampled, participation_of
from fedrecon.coordinator.handing_over import HandedOver
from fedrecon.coordinator.selection import merge
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.waiting import WaitingRoom


class Drawing:
    """Draws the cohorts of one task.

    Args:
        task: Its name.
        around: What its runner works with.
        waiting: Devices that wait to be drawn.
        handed_over: Those that wait at other coordinators.
        now: The time, as the task's journal goes by it, Unix milliseconds.
    """

    def __init__(
        self,
        task: str,
        around: Surroundings,
        waiting: WaitingRoom[Answer],
        handed_over: HandedOver,
        now: Callable[[], int],
    ) -> None:
        self._task = task
        self._around = around
        self._waiting = waiting
        self._handed_over = handed_over
        self._now = now
        self._attempt = (0, 0)
        self._cleared: set[bytes] = set()

    def begin(self, number: int, attempt: int) -> bool:
        """Begins an attempt: whoever is drawn for it takes part anew.

        An attempt that is taken up again, after the journal was away, keeps whom it has noted: nobody took part yet.

        Args:
            number: The round.
            attempt: Its attempt.

        Returns:
            Whether it is another attempt than before.
        """
        if (number, attempt) == self._attempt:
            return False
        self._attempt, self._cleared = (number, attempt), set()
        self._handed_over.begin()
        return True

    async def draw(self, size: int, separation_milliseconds: int, sampling_rate: float) -> list[bytes]:
        """Draws devices, and notes that they take part now; those that may not are answered.

        Args:
            size: Devices wanted.
            separation_milliseconds: Least time between two participations of a device; 0: any.
            sampling_rate: Share of devices that may be drawn for this attempt; 0: all. Asked here and not when they
                came: they may have waited since the round before.

        Returns:
            At most that many devices, in the order of their priority; they go on waiting.

        Raises:
            JournalUnavailable: It cannot be asked who took part.
        """
        while True:
            parts = [self._waiting.smallest(size), *self._handed_over.parts(self._now())]
            drawn = [candidate.device for candidate in merge(parts, size)]
            if others := [device for device in drawn if not self._is_sampled(device, sampling_rate)]:
                for device in others:
                    self._refuse(device, "this attempt samples other devices")
                continue
            unclear = [device for device in drawn if device not in self._cleared]
            if separation_milliseconds == 0 or not unclear:
                return drawn
            until = self._now() + separation_milliseconds
            names = [participation_of(self._around.key, self._task, device) for device in unclear]
            fresh = await asyncio.gather(*(self._around.journal.remember(self._task, name, until) for name in names))
            for device, is_fresh in zip(unclear, fresh, strict=True):
                if is_fresh:
                    self._cleared.add(device)
                else:
                    self._refuse(device, "this device took part too recently")

    def _is_sampled(self, device: bytes, rate: float) -> bool:
        return is_sampled(self._around.key, *self._attempt, self._task, device, rate)

    def _refuse(self, device: bytes, why: str) -> None:
        self._waiting.answer(device, Ineligible(why))
        self._handed_over.refuse(device)
