"""Time as services see it: a wall clock in Unix milliseconds, and waiting for one of its instants.

Cores never read a clock: `now` is passed in. Shells hold a `Clock`, so that tests and simulations put a `ManualClock`
in its place and time passes only when they say so.

Rules: instants are Unix milliseconds as `int`; a sleeper never wakes before its instant; equal instants wake in the
order in which they were asked for.
"""

import asyncio
import heapq
import itertools
import time
from typing import Protocol

_LONGEST_SLEEP_SECONDS = 60.0
"""Long waits are cut into parts, so that a corrected wall clock is noticed within a minute."""

_NANOSECONDS = 1_000_000
"""Of a millisecond."""

_SETTLING_TURNS = 20
"""Turns of the event loop given to woken tasks before a `ManualClock` moves on to the next instant."""


class Clock(Protocol):
    """What a service asks of time."""

    def now_milliseconds(self) -> int:
        """Return the wall clock in Unix milliseconds."""
        ...

    def steady_milliseconds(self) -> int:
        """Return milliseconds that pass whatever the wall clock is set to, since some moment."""
        ...

    async def sleep_until(self, instant_milliseconds: int) -> None:
        """Return once the wall clock has reached an instant, at once if it has passed.

        Args:
            instant_milliseconds: Unix milliseconds.
        """
        ...

    async def sleep(self, milliseconds: int) -> None:
        """Return once so much time has passed, whatever the wall clock is set to.

        Args:
            milliseconds: How long.
        """
        ...


class SystemClock:
    """The clock of this machine."""

    def now_milliseconds(self) -> int:
        """Return the wall clock in Unix milliseconds, rounded down."""
        return time.time_ns() // _NANOSECONDS

    def steady_milliseconds(self) -> int:
        """Return milliseconds that pass whatever the wall clock is set to, since some moment."""
        return time.monotonic_ns() // _NANOSECONDS

    async def sleep_until(self, instant_milliseconds: int) -> None:
        """Return once the wall clock has reached an instant, at once if it has passed.

        Args:
            instant_milliseconds: Unix milliseconds.
        """
        while (remaining := instant_milliseconds - self.now_milliseconds()) > 0:  # noqa: ASYNC110 - time sets no event
            await asyncio.sleep(min(remaining / 1000, _LONGEST_SLEEP_SECONDS))

    async def sleep(self, milliseconds: int) -> None:
        """Return once so much time has passed, whatever the wall clock is set to.

        Args:
            milliseconds: How long.
        """
        await asyncio.sleep(milliseconds / 1000)


class ManualClock:
    """A clock that stands still until it is advanced.

    Example:
        >>> clock = ManualClock(1_000)
        >>> asyncio.run(clock.advance(500))
        >>> clock.now_milliseconds()
        1500
    """

    def __init__(self, now_milliseconds: int = 0) -> None:
        self._now = now_milliseconds
        self._order = itertools.count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_milliseconds(self) -> int:
        """Return the instant at which the clock stands."""
        return self._now

    def steady_milliseconds(self) -> int:
        """Return the instant at which the clock stands: nobody sets it back."""
        return self._now

    async def sleep_until(self, instant_milliseconds: int) -> None:
        """Return once the clock was advanced to an instant, at once if it has passed.

        Args:
            instant_milliseconds: Unix milliseconds.
        """
        if instant_milliseconds <= self._now:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (instant_milliseconds, next(self._order), woken))
        await woken

    async def sleep(self, milliseconds: int) -> None:
        """Return once the clock was advanced by so much.

        Args:
            milliseconds: How long.
        """
        await self.sleep_until(self._now + milliseconds)

    async def advance(self, milliseconds: int) -> None:
        """Let time pass, stopping at each sleeper's instant so that what it wakes sees that instant as now.

        Args:
            milliseconds: How much time passes; not negative.

        Raises:
            ValueError: If time would run backwards.
        """
        if milliseconds < 0:
            raise ValueError(f"time cannot pass backwards: advance({milliseconds})")
        until = self._now + milliseconds
        while self._sleepers and self._sleepers[0][0] <= until:
            instant, _, woken = heapq.heappop(self._sleepers)
            if woken.done():  # its task was cancelled
                continue
            self._now = instant
            woken.set_result(None)
            await _settle()
        self._now = until
        await _settle()

    @property
    def next_instant_milliseconds(self) -> int | None:
        """The earliest instant somebody sleeps for; None when nobody does."""
        return min((instant for instant, _, woken in self._sleepers if not woken.done()), default=None)


async def _settle() -> None:
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)
