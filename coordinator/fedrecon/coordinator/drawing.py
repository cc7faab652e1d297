"""Drawing a cohort from those who wait, without devices that took part too recently, or that are not sampled.

Rules: what a device was drawn for is noted before it is told; a device that may not be drawn by one rule is not noted
by the rules after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fedrecon.coordinator.answers import Answer, Ineligible
from fedrecon.coordinator.assignments import is_sampled, membership_of, participation_of
from fedrecon.coordinator.handing_over import HandedOver
from fedrecon.coordinator.privacy import PARTICIPATION_DAYS
from fedrecon.coordinator.selection import merge
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.waiting import WaitingRoom

_DAY_MILLISECONDS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may be drawn for an attempt.

    Attributes:
        separation_milliseconds: Least time between two participations of a device; 0: any.
        sampling_rate: Share of devices that may be drawn; 0: all. Asked when it is drawn and not when they came: they
            may have waited since the round before.
        tree: The tree of noise that the attempt's sum belongs to, of which a device is in one sum; None: there is none.
    """

    separation_milliseconds: int = 0
    sampling_rate: float = 0.0
    tree: int | None = None

    @property
    def are_noted(self) -> bool:
        """Whether it has to be kept who was drawn."""
        return self.separation_milliseconds > 0 or self.tree is not None


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

    async def draw(self, size: int, rules: Rules) -> list[bytes]:
        """Draws devices, and notes that they take part now; those that may not are answered.

        Args:
            size: Devices wanted.
            rules: Who may be drawn.

        Returns:
            At most that many devices, in the order of their priority; they go on waiting.

        Raises:
            JournalUnavailable: It cannot be asked who took part.
        """
        while True:
            parts = [self._waiting.smallest(size), *self._handed_over.parts(self._now())]
            drawn = [candidate.device for candidate in merge(parts, size)]
            if others := [device for device in drawn if not self._is_sampled(device, rules.sampling_rate)]:
                for device in others:
                    self._refuse(device, "this attempt samples other devices")
                continue
            unclear = [device for device in drawn if device not in self._cleared]
            if not unclear or not rules.are_noted:
                return drawn
            whys = await asyncio.gather(*(self._note(device, rules) for device in unclear))
            for device, why in zip(unclear, whys, strict=True):
                if why:
                    self._refuse(device, why)
                else:
                    self._cleared.add(device)
            if not any(whys):
                return drawn

    async def _note(self, device: bytes, rules: Rules) -> str:
        """Notes that a device takes part; returns why it may not, empty if it may."""
        key, task, now = self._around.key, self._task, self._now()
        remember = self._around.journal.remember
        if rules.separation_milliseconds:
            until = now + rules.separation_milliseconds
            if not await remember(task, participation_of(key, task, device), until):
                return "this device took part too recently"
        if rules.tree is not None:
            until = now + PARTICIPATION_DAYS * _DAY_MILLISECONDS
            if not await remember(task, membership_of(key, task, device, rules.tree), until):
                return "this device took part in a round that shares its noise with this one"
        return ""

    def _is_sampled(self, device: bytes, rate: float) -> bool:
        return is_sampled(self._around.key, *self._attempt, self._task, device, rate)

    def _refuse(self, device: bytes, why: str) -> None:
        self._waiting.answer(device, Ineligible(why))
        self._handed_over.refuse(device)
