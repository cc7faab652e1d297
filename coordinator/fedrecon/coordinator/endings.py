"""Ends of sessions on their way into the journal: while one batch is being kept, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fedrecon.coordinator.round_events import Finish


@dataclass(slots=True, eq=False)
class _Ending:
    """One end, and whoever waits until it is kept."""

    number: int
    attempt: int
    finish: Finish
    kept: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Endings:
    """A queue that outlives failures: what was not kept is in the next batch again."""

    def __init__(self) -> None:
        self._queue: list[_Ending] = []
        self._came = asyncio.Event()

    async def keep(self, number: int, attempt: int, finish: Finish) -> None:
        """Returns once the end of a session is kept.

        Args:
            number: Its round.
            attempt: Its attempt, which assigned it.
            finish: How it ended.
        """
        ending = _Ending(number, attempt, finish)
        self._queue.append(ending)
        self._came.set()
        try:
            await ending.kept
        finally:
            if ending in self._queue:
                self._queue.remove(ending)

    async def batches(self) -> AsyncIterator[tuple[int, int, tuple[Finish, ...]]]:
        """Yields round, attempt and ends, in order of arrival; asking for the next batch says that this one is kept."""
        while True:
            while self._queue:
                number, attempt = self._queue[0].number, self._queue[0].attempt
                batch = [each for each in self._queue if (each.number, each.attempt) == (number, attempt)]
                yield number, attempt, tuple(each.finish for each in batch)
                for ending in batch:
                    if ending in self._queue:
                        self._queue.remove(ending)
                    if not ending.kept.done():
                        ending.kept.set_result(None)
            self._came.clear()
            await self._came.wait()
