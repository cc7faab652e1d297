"""Participation as a background job: at the right moments, within limits, one at a time, whatever kills the process.

An app that has a scheduler (WorkManager, BGTaskScheduler, cron) calls `take_turn` from it. One that has none calls
`start`, and the job takes turns in a thread of its own until `stop`.

Rules: a turn begins only when the time that the coordinator told has come, also if another process was told, and all
conditions hold. While it runs they are looked at again: one that fails stops it within a step, and so do limits of time
and memory. The work runs in a thread of lower priority, graphs in one thread each. A turn that fails in an unexpected
way is logged, and the job rests.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from fedrecon.device_sdk.conditions import Conditions
from fedrecon.device_sdk.device import Device
from fedrecon.device_sdk.participant import LOGGER
from fedrecon.device_sdk.participation import PERMANENT_REST_SECONDS, Outcome, Participation

LONGEST_SECONDS = 1800.0
NICENESS = 10
LOOK_SECONDS = 1.0
CONDITIONS_SECONDS = 60.0


class BackgroundJob:
    """Lets a device take part by itself.

    Args:
        device: takes part; its `home` is where the job's memory lies.
        conditions: when it may.
        longest_seconds: a participation that takes longer is stopped.
        niceness: how far its work stands back for others, 0 to 19; where threads have no priority of their own it
            changes nothing.
        look_seconds: how often conditions and limits are looked at while it works.
        resident_bytes: tells how much memory the process holds.

    Example:
        >>> from fedrecon.device_sdk import BackgroundJob, Conditions, Device, ExampleStore
        >>> device = Device("localhost:8470", "films", ExampleStore(":memory:"))
        >>> BackgroundJob(device, Conditions(charging=lambda: False, idle=lambda: True)).take_turn().message
        'not now: charging does not hold'
    """

    def __init__(
        self,
        device: Device,
        conditions: Conditions | None = None,
        *,
        longest_seconds: float = LONGEST_SECONDS,
        niceness: int = NICENESS,
        look_seconds: float = LOOK_SECONDS,
        resident_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._device = device
        self._conditions = conditions or Conditions()
        self._longest_seconds = longest_seconds
        self._niceness = niceness
        self._look_seconds = look_seconds
        self._resident_bytes = resident_bytes or resident_bytes_of_process
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def take_turn(self) -> Participation:
        """Takes part once, if it is time and all conditions hold; waits until it is over.

        Returns:
            How it ended. `NOT_NOW` says in `reason` and `message` why nothing was begun: `TOO_EARLY`, `CONDITIONS`,
            `BUSY` or `OPTED_OUT`; and in `retry_after_seconds` when to try again.
        """
        rest = self._device.rest_seconds()
        if rest > 0:
            return Participation(Outcome.NOT_NOW, "TOO_EARLY", f"not now: it is to rest for {rest:.0f} s", rest)
        unmet = self._unmet()
        if unmet:
            return Participation(Outcome.NOT_NOW, "CONDITIONS", f"not now: {unmet}", CONDITIONS_SECONDS)
        return self._work()

    def start(self) -> None:
        """Takes turns in a thread of its own until `stop`."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._take_turns, name="fedrecon", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops what it does, within a step, and waits for the end of it."""
        self._stopping.set()
        self._device.stop("the job was stopped")
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _take_turns(self) -> None:
        while not self._stopping.is_set():
            try:
                turn = self.take_turn()
                after = CONDITIONS_SECONDS if turn.retry_after_seconds is None else turn.retry_after_seconds
            except Exception:  # the app's own examples may raise anything: the job outlives it
                import logging

                logging.getLogger(LOGGER).exception("a turn of the background job failed")
                after = PERMANENT_REST_SECONDS
            self._stopping.wait(max(after, self._device.rest_seconds()))

    def _work(self) -> Participation:
        """Lets the device take part in a thread of its own, and watches it."""
        ended: list[Participation | BaseException] = []

        def work() -> None:
            stand_back(self._niceness)
            try:
                ended.append(self._device.participate())
            except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
                ended.append(error)

        began, before = time.monotonic(), self._resident_bytes()
        thread = threading.Thread(target=work, name="fedrecon participation", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(self._look_seconds)
            why = self._why_stop(time.monotonic() - began, self._resident_bytes() - before)
            if why and thread.is_alive():
                self._device.stop(why)
        (outcome,) = ended
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _why_stop(self, seconds: float, grown_bytes: int) -> str:
        """Returns why a participation may not go on; empty if it may."""
        if self._stopping.is_set():
            return "the job was stopped"
        if seconds > self._longest_seconds:
            return f"it took longer than {self._longest_seconds:g} s"
        if grown_bytes > self._device.memory_limit_bytes:
            return f"the process grew by {grown_bytes >> 20} MiB"
        return self._unmet()

    def _unmet(self) -> str:
        """Returns which conditions do not hold, for people."""
        unmet = self._conditions.unmet()
        return f"{' and '.join(unmet)} {'does' if len(unmet) == 1 else 'do'} not hold" if unmet else ""


def stand_back(niceness: int) -> None:
    """Lowers the priority of the thread that calls, where threads have one of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def resident_bytes_of_process() -> int:
    """Returns how much memory this process holds; 0 where that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
