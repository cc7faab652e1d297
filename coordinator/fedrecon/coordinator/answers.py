"""What a check-in leads to, before it is put into the contract's words."""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.coordinator.round_events import Slot
from fedrecon.coordinator.round_state import Round


@dataclass(frozen=True, slots=True)
class Drawn:
    """The device takes part.

    Attributes:
        attempt: In which attempt.
        slot: Its place.
    """

    attempt: Round
    slot: Slot


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """The round has its cohort, or this device was not drawn.

    Attributes:
        why: For people.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Ineligible:
    """The device may not take part now.

    Attributes:
        why: For people.
    """

    why: str


@dataclass(frozen=True, slots=True)
class NoTask:
    """The task does not run rounds now.

    Attributes:
        why: For people.
    """

    why: str


@dataclass(frozen=True, slots=True)
class KeepWaiting:
    """The selection is still open.

    Attributes:
        ticket: Keeps the device's priority.
        milliseconds: When to ask again, from now.
    """

    ticket: bytes
    milliseconds: int


NOT_DRAWN = "other devices were drawn for this round"
"""Told to those who waited for a cohort in vain."""

Answer = Drawn | NotDrawn | Ineligible | NoTask | KeepWaiting
