"""Where the model runs: a few threads, one core each, and a queue that never grows beyond what they do in a moment.

Rules: who comes when the queue is full is told so at once, with a moment to come back: a queue that grows answers
everybody too late. How long a call waited and how long it ran are measured apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
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

    async def run(self, work: Callable[Given, Answer], *arguments: Given.args, **named: Given.kwargs) -> Answer:
        """Returns what a piece of work gives, in a thread.

        Raises:
            Refusal: too many calls wait.
        """
        if self._under_way >= self._most:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BUSY",
                f"{self._under_way} calls are under way here already.",
                "Come back when the retry window says, or run more replicas.",
                retry_milliseconds=_SOON_MILLISECONDS,
            )
        asked = time.monotonic()

        def timed() -> Answer:
            began = time.monotonic()
            self._measures.recommend_seconds.labels(stage="waiting").observe(began - asked)
            answer = work(*arguments, **named)
            self._measures.recommend_seconds.labels(stage="model").observe(time.monotonic() - began)
            return answer

        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        finally:
            self._under_way -= 1
