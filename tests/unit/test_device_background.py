"""Taking part in the background: at the right moments, within limits, one at a time, stopped within a step."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from fedrecon.device_sdk import BackgroundJob, Conditions, Device, ExampleStore, Outcome
from fedrecon.device_sdk.background import resident_bytes_of_process, stand_back
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.conditions import has_charge, is_charging
from fedrecon.device_sdk.errors import StoppedError
from fedrecon.device_sdk.graphs import RunnableGraph
from fedrecon.device_sdk.memory import Rest
from fedrecon.device_sdk.requests import Call
from fedrecon.device_sdk.stopping import Stop, running
from fedrecon.device_sdk.testing import FakeTransport
from fedrecon.v1 import coordinator_pb2
from support.toy_devices import toy_device, toy_services, toy_store, toy_transport

FREE = Conditions(idle=lambda: True, charging=lambda: True, battery=lambda: True)
FOR_EVER = """forever (float[64, 64] start, int64 steps) => (float[64, 64] end) {
  go = Constant <value = bool {1}> ()
  end = Loop (steps, go, start) <body = step (int64 i, bool on, float[64, 64] before) => (bool still, float[64, 64] after) {
    still = Identity(on)
    after = MatMul(before, before)
  }>
}"""  # noqa: E501


@pytest.fixture(scope="module")
def endless() -> RunnableGraph:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]>' + FOR_EVER)
    return RunnableGraph(model.SerializeToString(), "forever")


def test_a_graph_is_stopped_while_it_runs(endless: RunnableGraph) -> None:
    stop = Stop()
    token = running.set(stop)
    began = threading.Event()
    feeds = {"start": np.eye(64, dtype=np.float32), "steps": np.array(1 << 40)}

    def ask() -> None:
        began.wait()
        time.sleep(0.05)
        stop.ask("the user is back")

    asking = threading.Thread(target=ask)
    asking.start()
    began.set()
    try:
        with pytest.raises(StoppedError, match="the user is back"):
            endless.run(feeds)
        with pytest.raises(StoppedError):
            endless.run(feeds)
    finally:
        running.reset(token)
        asking.join()
    feeds["steps"] = np.array(3)
    assert endless.run(feeds)["end"].shape == (64, 64)


def stopping_at(device: list[Device], call: str) -> FakeTransport:
    """Returns a transport in whose calls the user takes the phone in hand."""

    class Stopped(FakeTransport):
        async def call(self, request: Call) -> Any:
            if request.method.name == call:
                device[0].stop("the user is back")
            return await super().call(request)

    return Stopped(toy_services())


@pytest.mark.parametrize("call", ["CheckIn", "Join", "UploadStatus"])
def test_a_stopped_participation_ends_its_session_and_the_next_one_works(call: str, tmp_path: Path) -> None:
    devices: list[Device] = []
    transport = stopping_at(devices, call)
    devices.append(toy_device(transport, tmp_path))
    ended = devices[0].participate()
    assert (ended.outcome, ended.reason) == (Outcome.STOPPED, "STOPPED")
    outcomes = [each.outcome for each in transport.services.finished]
    assert outcomes == [coordinator_pb2.SESSION_OUTCOME_CANCELLED]
    again = FakeTransport(transport.services)
    assert toy_device(again, tmp_path).participate().outcome is Outcome.UPLOADED


async def test_a_task_that_is_cancelled_leaves_its_session_to_the_next_participation(tmp_path: Path) -> None:
    class Threaded(FakeTransport):
        async def compute(self, function: Callable[[], Any]) -> Any:
            return await asyncio.to_thread(function)

    slow, transport = Slow(), Threaded(toy_services())
    device = toy_device(transport, tmp_path, examples=slow)
    task = asyncio.create_task(device.participate_async())
    await asyncio.to_thread(slow.asked.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert device._participant.stop.is_asked
    slow.go_on.set()
    assert (tmp_path / "session.json").exists()
    ended = await device.participate_async()
    assert (ended.outcome, ended.round) == (Outcome.UPLOADED, 1)


def test_a_wait_is_stopped(tmp_path: Path) -> None:
    silent = Patience(attempts=2, first_seconds=600.0)
    device = Device("127.0.0.1:1", "films", toy_store(), home=tmp_path, patience=silent)
    before = device._participant.stop

    def stop() -> None:
        wait_until(lambda: device._participant.stop is not before)
        time.sleep(0.1)
        device.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    ended = device.participate()
    stopping.join()
    assert ended.outcome is Outcome.STOPPED


def test_a_job_begins_only_where_all_conditions_hold() -> None:
    transport = toy_transport()
    busy = Conditions(idle=lambda: False, charging=lambda: True, battery=lambda: True, unmetered=lambda: False)
    turn = BackgroundJob(toy_device(transport), busy).take_turn()
    assert (turn.outcome, turn.reason) == (Outcome.NOT_NOW, "CONDITIONS")
    assert turn.message == "not now: idle and unmetered do not hold"
    assert transport.services.calls == []
    assert BackgroundJob(toy_device(transport), FREE).take_turn().outcome is Outcome.UPLOADED


def test_a_job_rests_as_it_was_told_also_in_another_process(tmp_path: Path) -> None:
    transport = toy_transport()
    transport.services.rest_milliseconds = (600_000, 600_000)
    assert BackgroundJob(toy_device(transport, tmp_path), FREE).take_turn().outcome is Outcome.UPLOADED
    calls = len(transport.services.calls)
    turn = BackgroundJob(toy_device(transport, tmp_path), FREE).take_turn()
    assert (turn.outcome, turn.reason) == (Outcome.NOT_NOW, "TOO_EARLY")
    assert turn.retry_after_seconds is not None
    assert 500 < turn.retry_after_seconds <= 600
    assert len(transport.services.calls) == calls


def test_a_clock_that_is_wrong_by_a_year_delays_nobody_for_long() -> None:
    year, now = 365 * 86_400.0, 1_700_000_000.0
    rest = Rest(now, now + 600)
    assert rest.seconds_left(now + 60) == 540
    assert rest.seconds_left(now - year) == 0
    assert rest.seconds_left(now + year) == 0
    assert Rest(now + year, now + year + 600).seconds_left(now) == 0


@pytest.mark.parametrize(("reachable", "least"), [(False, 600), (True, 10_000)])
def test_a_device_that_was_told_nothing_rests_by_how_it_ended(reachable: bool, least: float) -> None:
    transport = toy_transport()
    transport.is_reachable = reachable
    transport.services.rest_milliseconds = (0, 0)
    device = toy_device(transport, secure_sum="required", min_group=50)  # of a group of 20 it is none
    ended = device.participate()
    assert ended.outcome is (Outcome.REFUSED if reachable else Outcome.UNREACHABLE)
    assert device.rest_seconds() > least


class Slow:
    """Examples that take as long as the test wants."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def count(self) -> int:
        return 5

    def columns(self) -> Mapping[str, Any]:
        self.asked.set()
        self.go_on.wait()
        return toy_store().columns()


def turn_in_thread(job: BackgroundJob) -> tuple[threading.Thread, list[Any]]:
    turns: list[Any] = []
    thread = threading.Thread(target=lambda: turns.append(job.take_turn()))
    thread.start()
    return thread, turns


class Jobs:
    """A job in the middle of its work."""

    def __init__(self, **changes: Any) -> None:
        self.slow, self.transport = Slow(), toy_transport()
        self.charging = True
        self.device = toy_device(self.transport, examples=self.slow)
        conditions = Conditions(idle=lambda: True, charging=lambda: self.charging, battery=lambda: True)
        self.job = BackgroundJob(self.device, conditions, look_seconds=0.005, **changes)
        self.thread, self.turns = turn_in_thread(self.job)
        wait_until(lambda: self.slow.asked.is_set() or self.device._participant.stop.is_asked)

    def ended(self) -> Any:
        wait_until(lambda: self.device._participant.stop.is_asked)
        self.slow.go_on.set()
        self.thread.join()
        return self.turns[0]


def test_a_condition_that_fails_stops_the_work() -> None:
    jobs = Jobs()
    jobs.charging = False
    ended = jobs.ended()
    assert ended.outcome is Outcome.STOPPED
    assert "charging does not hold" in ended.message
    (told,) = jobs.transport.services.finished
    assert told.outcome == coordinator_pb2.SESSION_OUTCOME_CANCELLED


def test_work_that_takes_too_long_is_stopped() -> None:
    assert "longer than 0.01 s" in Jobs(longest_seconds=0.01).ended().message


def test_work_that_takes_too_much_memory_is_stopped() -> None:
    held = itertools.chain([0], itertools.repeat(600 << 20))
    assert "grew by 600 MiB" in Jobs(resident_bytes=lambda: next(held)).ended().message


def test_an_assignment_that_is_too_large_is_refused_before_anything_is_fetched() -> None:
    transport = toy_transport()
    ended = toy_device(transport, memory_limit_bytes=1000).participate()
    assert (ended.outcome, ended.reason) == (Outcome.REFUSED, "TOO_LARGE")
    assert "Fetch" not in transport.services.calls


def test_two_participations_of_one_device_never_overlap() -> None:
    jobs = Jobs()
    other = jobs.device.participate()
    assert (other.outcome, other.reason) == (Outcome.NOT_NOW, "BUSY")
    jobs.slow.go_on.set()
    jobs.thread.join()
    assert jobs.turns[0].outcome is Outcome.UPLOADED
    assert jobs.transport.services.calls.count("CheckIn") == 1


def test_another_process_keeps_a_home_busy_until_it_is_killed(tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys, time; from fedrecon.device_sdk.home_lock import sole_use\n"
        "with sole_use(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        device = toy_device(toy_transport(), tmp_path)
        assert device.participate().reason == "BUSY"
    finally:
        holder.kill()
        holder.communicate()
    assert device.participate().outcome is Outcome.UPLOADED


def test_a_job_takes_turns_by_itself_until_it_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    transport = toy_transport()
    transport.services.rest_milliseconds = (1, 1)
    with caplog.at_level(logging.INFO, "fedrecon.device_sdk"), BackgroundJob(toy_device(transport), FREE):
        wait_until(lambda: len(transport.services.reports) >= 2)
    lines = [each.getMessage() for each in caplog.records if "participation ended" in each.getMessage()]
    assert len(lines) >= 2
    assert lines[0].startswith(
        "participation ended: outcome='uploaded' reason= task=toy round=1 attempt=1 shape=-v[]+^"
    )
    calls = len(transport.services.calls)
    time.sleep(0.05)
    assert len(transport.services.calls) == calls


def test_a_job_outlives_examples_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fedrecon.device_sdk")

    class Broken(Slow):
        def count(self) -> int:
            raise KeyError("the app's own mistake")

    job = BackgroundJob(toy_device(toy_transport(), examples=Broken()), FREE)
    with pytest.raises(KeyError):
        job.take_turn()
    job.start()
    wait_until(lambda: "a turn of the background job failed" in caplog.text)
    job.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # pytest's own timeout ends a test that waits in vain
        time.sleep(0.002)


def test_the_work_has_a_lower_priority_than_the_app() -> None:
    import os

    found: list[int] = []

    def work() -> None:
        stand_back(10)
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] >= 10
    assert resident_bytes_of_process() > 1 << 20


def test_hours_go_over_midnight() -> None:
    def holds(hour: int, first: int, last: int) -> bool:
        return Conditions.between(first, last, lambda: datetime(2026, 3, 1, hour))()  # noqa: DTZ001 - local hours

    assert [hour for hour in range(24) if holds(hour, 22, 6)] == [0, 1, 2, 3, 4, 5, 22, 23]
    assert [hour for hour in range(24) if holds(hour, 9, 11)] == [9, 10]


@pytest.mark.parametrize(
    ("status", "percent", "charging", "charged"),
    [("Discharging", 90, False, True), ("Charging", 12, True, False), ("Full", 100, True, True)],
)
def test_batteries_are_read(
    status: str, percent: int, charging: bool, charged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrecon.device_sdk.conditions.POWER_SUPPLIES", tmp_path)
    assert (is_charging(), has_charge()) == (True, True)
    (tmp_path / "BAT0").mkdir()
    (tmp_path / "BAT0" / "status").write_text(f"{status}\n")
    (tmp_path / "BAT0" / "capacity").write_text(f"{percent}\n")
    assert (is_charging(), has_charge()) == (charging, charged)


def test_a_job_with_a_file_of_examples_works_in_its_own_thread(tmp_path: Path) -> None:
    store = toy_store(tmp_path / "examples.db")
    assert isinstance(store, ExampleStore)
    job = BackgroundJob(toy_device(toy_transport(), tmp_path, examples=store), FREE)
    assert job.take_turn().outcome is Outcome.UPLOADED
    store.close()
