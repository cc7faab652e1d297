"""Where the model runs: a few threads, one core each, and a queue that never grows beyond what they do in a moment.

Rules: who comes when the queue is full is told so at once, with a moment to come back: a queue that grows answers
everybody too late. How long a call waited and how long it ran are measured apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

import grpc

from fedrecon.inference.measures import Measures
from fedrecon.ops.boundary import Refusal

_SOON_MILLISECONDS = (200, 1_000)

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class ModelThreads:
    """Runs models.

    Args:
        threads: a few.
        most: calls that wait or run at once.
        measures: what is counted.
    """

    def __init__(self, threads: Executor, most: int, measures: Measures) -> None:
        self._threads = threads
        self._most = most
        self._measures = measures
        self._under_way = 0

    def refuse_if_full(self, waiting: int = 0) -> None:
        """Refuses one more call where too many wait or run already.

        Args:
            waiting: calls that wait elsewhere to be run here.

        Raises:
            Refusal: too many calls wait.
        """
        under_way = self._under_way + waiting
        if under_way >= self._most:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BUSY",
                f"{under_way} calls are under way here already.",
                "Come back when the retry window says, or run more replicas.",
                retry_milliseconds=_SOON_MILLISECONDS,
            )

    async def run(self, work: Callable[Given, Answer], *arguments: Given.args, **named: Given.kwargs) -> Answer:
        """Returns what a piece of work gives, in a thread.

        Raises:
            Refusal: too many calls wait.
        """
        self.refuse_if_full()
        return await self.run_for([time.monotonic()], lambda: work(*arguments, **named))

    async def run_for(self, asked: Sequence[float], work: Callable[[], Answer]) -> Answer:
        """Returns what a piece of work for some calls gives, in a thread.

        Args:
            asked: moments at which these calls came, of the monotonic clock.
            work: what is done for all of them.
        """

        def timed() -> Answer:
            began = time.monotonic()
            for moment in asked:
                self._measures.recommend_seconds.labels(stage="waiting").observe(began - moment)
            answer = work()
            self._measures.recommend_seconds.labels(stage="model").observe(time.monotonic() - began)
            return answer

        self._under_way += len(asked)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        finally:
            self._under_way -= len(asked)
