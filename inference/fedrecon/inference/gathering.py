"""Calls that come while the model runs wait together, and are answered by the next run.

Rules: nobody waits for a run to fill. While a thread is free a call runs at once, alone; whoever comes while all are
busy is gathered, and the next run takes as many as belong together, the longest waiting first. So a call waits for at
most the run under way, a millisecond or two, and the busier it is, the less each call costs. Who gives up waiting is
not computed.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedrecon.inference.model_threads import ModelThreads

Shared = TypeVar("Shared")
One = TypeVar("One")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Shared, One, Answer]):
    shared: Shared
    one: One
    asked: float
    answer: asyncio.Future[Answer]


class Gathering(Generic[Shared, One, Answer]):
    """Answers calls, those that come together in one run.

    Args:
        threads: where runs are done.
        work: answers a few calls that share something; an exception among its answers is raised to that caller.
        together: calls in one run at most.
        runs: at once: as many as there are threads.
    """

    def __init__(
        self,
        threads: ModelThreads,
        work: Callable[[Shared, Sequence[One]], Sequence[Answer | Exception]],
        *,
        together: int,
        runs: int,
    ) -> None:
        self._threads = threads
        self._work = work
        self._together = together
        self._runs = runs
        self._waiting: deque[_Waiting[Shared, One, Answer]] = deque()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds none of them

    async def run(self, shared: Shared, one: One) -> Answer:
        """Returns the answer to one call.

        Args:
            shared: calls with the same object may run together.
            one: what is this call's own.

        Raises:
            Refusal: too many calls wait.
            Exception: what the work answers this call with.
        """
        self._threads.refuse_if_full(len(self._waiting))
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(shared, one, time.monotonic(), answer)
        self._waiting.append(waiting)
        if self._under_way < self._runs:
            self._under_way += 1
            task = asyncio.create_task(self._run_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.answer

    async def _run_all(self) -> None:
        """Runs until nobody waits."""
        try:
            while taken := self._take():
                await self._run_once(taken)
        finally:
            # In the same breath as nobody was found: who comes next must start a run, not wait for this one.
            self._under_way -= 1

    async def _run_once(self, taken: Sequence[_Waiting[Shared, One, Answer]]) -> None:
        try:
            answers = await self._threads.run_for(
                [each.asked for each in taken],
                functools.partial(self._work, taken[0].shared, [each.one for each in taken]),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to all who waited for it
            answers = [error] * len(taken)
        for waiting, answer in zip(taken, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    def _take(self) -> list[_Waiting[Shared, One, Answer]]:
        """Returns those who run next; the others keep their order."""
        taken: list[_Waiting[Shared, One, Answer]] = []
        others: list[_Waiting[Shared, One, Answer]] = []
        while self._waiting and len(taken) < self._together:
            waiting = self._waiting.popleft()
            if waiting.answer.done():
                continue
            (taken if not taken or waiting.shared is taken[0].shared else others).append(waiting)
        self._waiting.extendleft(reversed(others))
        return taken
