"""Drives a core with a transport: one loop, for blocking and asyncio alike.

A blocking transport's coroutines never suspend, so the same loop runs without an event loop: nothing is written
twice.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from fedrecon.device_sdk.calling import Steps
from fedrecon.device_sdk.requests import Call, Compute, Fetch, Request, Sleep, Upload
from fedrecon.device_sdk.transport import Transport

Result = TypeVar("Result")


async def drive(core: Steps[Result], transport: Transport) -> Result:
    """Does what a core asks until it returns.

    Args:
        core: a generator of requests, not yet begun.
        transport: does them.

    Returns:
        What the core returns.
    """
    try:
        request = next(core)
        while True:
            try:
                answer = await _do(request, transport)
            except Exception as error:  # noqa: BLE001 - the core decides about every failure
                request = core.throw(error)
            else:
                request = core.send(answer)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        core.close()


async def _do(request: Request, transport: Transport) -> Any:
    match request:
        case Call():
            return await transport.call(request)
        case Fetch():
            return await transport.fetch(request)
        case Upload():
            return await transport.upload(request)
        case Compute():
            return await transport.compute(request.function)
        case Sleep():
            return await transport.sleep(request.seconds)


def run_blocking(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine that never suspends, without an event loop.

    Raises:
        RuntimeError: it suspended: its transport is not a blocking one.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    coroutine.close()
    raise RuntimeError("this transport waits for an event loop: use participate_async")
