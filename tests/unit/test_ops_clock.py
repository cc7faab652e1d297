import asyncio
import time

import pytest

from fedrecon.ops.clock import Clock, ManualClock, SystemClock


def test_the_system_clock_tells_unix_milliseconds() -> None:
    before = time.time()
    now = SystemClock().now_milliseconds()
    assert int(before * 1000) - 1 <= now <= int(time.time() * 1000) + 1


async def test_the_system_clock_never_wakes_a_sleeper_early() -> None:
    clock: Clock = SystemClock()
    until = clock.now_milliseconds() + 20
    await clock.sleep_until(until)
    assert clock.now_milliseconds() >= until
    async with asyncio.timeout(1):
        await clock.sleep_until(0)


async def test_advancing_wakes_sleepers_in_order_each_at_its_instant() -> None:
    clock = ManualClock(1_000)
    woken: list[tuple[str, int]] = []

    async def sleep(name: str, until: int) -> None:
        await clock.sleep_until(until)
        woken.append((name, clock.now_milliseconds()))

    async with asyncio.TaskGroup() as tasks:
        for name, until in (("late", 1_300), ("early", 1_100), ("early too", 1_100), ("passed", 900)):
            tasks.create_task(sleep(name, until))
        await asyncio.sleep(0)
        assert woken == [("passed", 1_000)]
        assert clock.next_instant_milliseconds == 1_100
        await clock.advance(99)
        assert woken == [("passed", 1_000)]
        await clock.advance(500)
    assert woken[1:] == [("early", 1_100), ("early too", 1_100), ("late", 1_300)]
    assert clock.now_milliseconds() == 1_599
    assert clock.next_instant_milliseconds is None


async def test_a_woken_task_that_sleeps_again_wakes_within_the_same_advance() -> None:
    clock = ManualClock()
    ticks: list[int] = []

    async def tick() -> None:
        for number in range(1, 6):
            await clock.sleep_until(number * 100)
            ticks.append(clock.now_milliseconds())

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await clock.advance(350)
    assert ticks == [100, 200, 300]
    await clock.advance(150)
    await ticking
    assert ticks == [100, 200, 300, 400, 500]


async def test_a_cancelled_sleeper_holds_nobody_up() -> None:
    clock = ManualClock()
    sleeping = asyncio.create_task(clock.sleep_until(100))
    await asyncio.sleep(0)
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert clock.next_instant_milliseconds is None
    await clock.advance(200)
    assert clock.now_milliseconds() == 200


async def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        await ManualClock().advance(-1)
