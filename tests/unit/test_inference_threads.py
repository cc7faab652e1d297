"""Where models run: what is too much is refused at once, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedrecon.inference.measures import Measures
from fedrecon.inference.model_threads import ModelThreads
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics


async def test_who_comes_when_all_are_busy_is_told_so_and_served_later() -> None:
    with ThreadPoolExecutor(1) as executor:
        threads, go_on = ModelThreads(executor, 2, Measures(Metrics.create("inference"))), threading.Event()
        waiting = [asyncio.create_task(threads.run(go_on.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await threads.run(len, "abc")
        assert refused.value.reason == "BUSY"
        assert refused.value.retry_milliseconds is not None
        go_on.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await threads.run(len, "abc") == 3


async def test_work_that_fails_makes_room_again() -> None:
    with ThreadPoolExecutor(1) as executor:
        threads = ModelThreads(executor, 1, Measures(Metrics.create("inference")))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await threads.run(divmod, 1, 0)
