"""When devices should come back: pace steering.

A round needs a cohort at one moment, then nobody for a while. So a small population is gathered: everybody is told the
next selection, and all come then. A large one is spread: each device is told so long a wait that about as many come in
a selection as it can use, evenly over time, whatever crowd they were in when they were told
(Bonawitz et al. 2019, "Towards Federated Learning at Scale", section 2.3).

Rules:
- A window is a minimum and a maximum; the device itself draws a moment between the two, so that a crowd that was sent
  away at once does not come back at once.
- A device that took part comes back for a later round, one that was sent away for the next selection.
- In hours with more calls than others waits are longer, in quiet ones shorter: returns move to where there is room.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_WAIT_MILLISECONDS = 500
LONGEST_WAIT_MILLISECONDS = 24 * 60 * 60 * 1000
CALLS_FOR_EACH_PLACE = 16.0
"""Devices that should call in a selection for each that it takes: calls cost little, and the more there are, the more
evenly everybody is drawn; a population that is no larger than this is gathered whole."""
BUSYNESS = (0.5, 2.0)
"""Busiest and quietest hours count no more than this."""


@dataclass(frozen=True, slots=True)
class Window:
    """A moment between two, in milliseconds from now."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Both windows of an answer.

    Attributes:
        accepted: After a session.
        rejected: After a rejection.
    """

    accepted: Window
    rejected: Window


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How a task's rounds go.

    Attributes:
        until_selection: Expected milliseconds until the next selection begins; 0: it is open.
        selection: Length of a selection window, in milliseconds.
        reporting: Expected length of a round after its selection, in milliseconds.
        separation: Least milliseconds between two participations of a device.
        cohort_size: Devices that a round takes.
    """

    until_selection: int
    selection: int
    reporting: int
    separation: int
    cohort_size: int


def pace(rhythm: Rhythm, devices: int, busyness: float = 1.0) -> Windows:
    """Returns when devices of a task should come back.

    Args:
        rhythm: How its rounds go.
        devices: About how many devices may come.
        busyness: Calls of this hour of the day, as a multiple of the mean hour.

    Example:
        >>> rhythm = Rhythm(until_selection=4_000, selection=2_000, reporting=8_000, separation=0, cohort_size=10)
        >>> pace(rhythm, 100).rejected
        Window(minimum=4000, maximum=6000)
        >>> pace(rhythm, 16_000).rejected
        Window(minimum=4000, maximum=2000000)
    """
    a_round = rhythm.selection + rhythm.reporting
    rounds_between = devices / (CALLS_FOR_EACH_PLACE * rhythm.cohort_size)
    if rounds_between <= 1.0:
        start, spread = rhythm.until_selection, rhythm.selection
    else:
        # From the next selection on, not later: else nobody would come for a while after a crowd was sent away.
        wait = rounds_between * a_round * min(max(busyness, BUSYNESS[0]), BUSYNESS[1])
        start, spread = rhythm.until_selection, max(round(2 * wait) - rhythm.until_selection, rhythm.selection)
    return Windows(accepted=_window(max(start, rhythm.separation), spread), rejected=_window(start, spread))


def idle(milliseconds: int) -> Windows:
    """Returns when devices of a population without a running task should come back: within twice this time."""
    window = _window(milliseconds, milliseconds)
    return Windows(accepted=window, rejected=window)


def _window(start: int, spread: int) -> Window:
    minimum = min(max(start, LEAST_WAIT_MILLISECONDS), LONGEST_WAIT_MILLISECONDS)
    return Window(minimum, min(minimum + max(spread, LEAST_WAIT_MILLISECONDS), 2 * LONGEST_WAIT_MILLISECONDS))
