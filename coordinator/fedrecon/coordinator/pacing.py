"""When devices should come back: the first, simple version of pace steering.

Rules:
- A window is a minimum and a maximum; the device itself draws a moment between the two, so that a crowd that was sent
  away at once does not come back at once.
- A device that took part comes back for a later round, one that was sent away for the next selection.
- The more devices are sent away for each place, the wider the window: the next selection needs its cohort, not a crowd
  (Bonawitz et al. 2019, section 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_WAIT_MILLISECONDS = 500
LONGEST_WAIT_MILLISECONDS = 24 * 60 * 60 * 1000
_LARGEST_CROWD = 50


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


def pace(
    *, until_selection: int, selection: int, reporting: int, separation: int, waiting: int, cohort_size: int
) -> Windows:
    """Returns when devices of a task should come back.

    Args:
        until_selection: Expected milliseconds until the next selection begins; 0: it is open.
        selection: Length of a selection window, in milliseconds.
        reporting: Expected length of a round after its selection, in milliseconds.
        separation: Least milliseconds between two participations of a device.
        waiting: Devices that wait, or were sent away since the last draw.
        cohort_size: Devices that a round takes.

    Example:
        >>> pace(until_selection=4000, selection=2000, reporting=9000, separation=0, waiting=10, cohort_size=10)
        Windows(accepted=Window(minimum=4000, maximum=6000), rejected=Window(minimum=4000, maximum=6000))
    """
    crowd = min(max(waiting / cohort_size, 1.0), _LARGEST_CROWD)
    rejected = _window(until_selection, selection + round((crowd - 1.0) * (selection + reporting)))
    after = max(until_selection, separation)
    return Windows(accepted=_window(after, selection), rejected=rejected)


def idle(milliseconds: int) -> Windows:
    """Returns when devices of a population without a running task should come back: within twice this time."""
    window = _window(milliseconds, milliseconds)
    return Windows(accepted=window, rejected=window)


def _window(start: int, spread: int) -> Window:
    minimum = min(max(start, LEAST_WAIT_MILLISECONDS), LONGEST_WAIT_MILLISECONDS)
    return Window(minimum, min(minimum + max(spread, LEAST_WAIT_MILLISECONDS), 2 * LONGEST_WAIT_MILLISECONDS))
