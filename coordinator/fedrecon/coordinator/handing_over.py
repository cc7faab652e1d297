"""Devices that wait at other coordinators, as those told the one that leads the task.

Rules: what a coordinator hands over takes the place of what it handed over before, and is forgotten if it is not heard
of again within a moment: its devices may have gone. Whoever is drawn learns it from the journal, at the coordinator
where it waits; so it costs nothing if a device is handed over twice, late, or by two coordinators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedrecon.coordinator.selection import Candidate

REMEMBERED_MILLISECONDS = 2_000
LARGEST_HAND_OVER = 50_000
"""Devices that one call may hand over: about 2 MB."""


@dataclass(frozen=True, slots=True)
class _Part:
    until: int
    candidates: tuple[Candidate, ...]


@dataclass(slots=True, eq=False)
class HandedOver:
    """Who waits elsewhere for the next draw of one task."""

    _parts: dict[bytes, _Part] = field(default_factory=dict)
    _refused: set[bytes] = field(default_factory=set)

    def put(self, replica: bytes, candidates: Sequence[Candidate], now: int) -> None:
        """Takes over who waits at another coordinator.

        Args:
            replica: Which.
            candidates: The devices with the smallest priorities there.
            now: Unix milliseconds.
        """
        self._parts[replica] = _Part(now + REMEMBERED_MILLISECONDS, tuple(candidates))

    def parts(self, now: int) -> list[tuple[Candidate, ...]]:
        """Returns the devices of every coordinator that was heard of lately, without those that were refused."""
        self._parts = {replica: part for replica, part in self._parts.items() if now < part.until}
        return [
            tuple(each for each in part.candidates if each.device not in self._refused) for part in self._parts.values()
        ]

    def count(self, now: int) -> int:
        """Returns how many wait elsewhere."""
        return sum(len(part) for part in self.parts(now))

    def refuse(self, device: bytes) -> None:
        """Leaves a device out until the next attempt."""
        self._refused.add(device)

    def begin(self) -> None:
        """Begins an attempt: nobody is refused yet, and whoever waits will be handed over again."""
        self._parts.clear()
        self._refused.clear()
