"""How often somebody may call: one instant for each caller, in bounded memory.

A caller may make `burst` calls at once and `per_second` in the long run. Of callers that have been quiet long enough to
have their whole burst again nothing needs to be known, so that the table holds only those that are busy; where even
these are too many, those that were quiet for longest are forgotten first.

Source: the generic cell rate algorithm (ITU-T I.371), a leaky bucket that keeps one number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

MOST_CALLERS = 100_000


class Limits:
    """Counts the calls of many callers.

    Args:
        per_second: Calls that one caller may make in the long run; 0: any number.
        burst: Calls that it may make at once.
        now: Seconds; only differences matter.

    Example:
        >>> limits = Limits(per_second=2, burst=1, now=lambda: 0.0)
        >>> limits.note("somebody"), limits.note("somebody")
        (0.0, 0.5)
    """

    def __init__(self, per_second: float, burst: int, now: Callable[[], float]) -> None:
        self._seconds = 0.0 if per_second == 0 else 1 / per_second
        self._tolerance = (burst - 1) * self._seconds
        self._now = now
        self._due: dict[Hashable, float] = {}

    def note(self, caller: Hashable) -> float:
        """Count a call, and return for how many seconds it comes too early; 0: it may be made.

        A call that is refused does not count: who goes on calling is let in as often as anybody.
        """
        if not self._seconds:
            return 0.0
        now = self._now()
        due = self._due.pop(caller, now)
        early = max(due - now - self._tolerance, 0.0)
        self._due[caller] = due if early else max(due, now) + self._seconds
        if len(self._due) > MOST_CALLERS:
            self._forget(now)
        return early

    def _forget(self, now: float) -> None:
        """Forget who is quiet, or else half of all: a dictionary keeps the order of the last calls."""
        busy = {caller: due for caller, due in self._due.items() if due > now}
        self._due = busy if len(busy) <= MOST_CALLERS // 2 else dict(list(busy.items())[-MOST_CALLERS // 2 :])
