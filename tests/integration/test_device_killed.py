"""A device whose process is killed with -9 at random moments: never two sessions, never a damaged store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.message import Message

from fedrecon.device_sdk import ExampleStore, Outcome
from fedrecon.device_sdk.testing import FakeServices, FakeTransport
from fedrecon.device_sdk.testing.server import serve
from fedrecon.v1.aggregator_pb2 import JoinRequest
from fedrecon.v1.coordinator_pb2 import Assignment, FinishSessionRequest
from support.toy_devices import toy_device

TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Watched:
    """What came from sessions, in order, and what may not be."""

    live: bytes = b""
    joined: dict[bytes, bytes] = field(default_factory=dict)
    finished: set[bytes] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def note(self, request: Message) -> None:
        match request:
            case JoinRequest():
                session = request.proof.session
                if self.live not in {b"", session} and self.live not in self.finished:
                    self.faults.append("a session joined while another was open")
                if self.joined.setdefault(session, request.mask_key) != request.mask_key:
                    self.faults.append("a session brought other keys than before")
                self.live = session
            case FinishSessionRequest():
                self.finished.add(request.session)


class WatchedServices(FakeServices):
    """Services that watch what sessions do."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched()
        self.target = ""
        self.change = self._here

    def _here(self, assignment: Assignment) -> None:
        assignment.blobs = assignment.aggregator = self.target

    def _join(self, request: JoinRequest):  # type: ignore[no-untyped-def]  # noqa: ANN202
        self.watched.note(request)
        return super()._join(request)

    def _finish(self, request: FinishSessionRequest):  # type: ignore[no-untyped-def]  # noqa: ANN202
        self.watched.note(request)
        return super()._finish(request)


@contextmanager
def process(services: WatchedServices, home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "support.mortal_device", services.target, services.publisher, str(home)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def kill_often(times: int, seed: int, home: Path) -> WatchedServices:
    """Kills processes of one device so often, each at a random moment of its work; now and then two run at once."""
    source, services = random.Random(seed), WatchedServices()
    with serve(services) as services.target:
        for number in range(times):
            with process(services, home) as child:
                assert child.stdout is not None
                assert child.stdout.readline().startswith("added"), "the store opens and takes an example"
                if number % 5 == 0:
                    with process(services, home) as other:
                        assert other.stdout is not None
                        other.stdout.readline()
                        time.sleep(source.random() * 0.3)
                else:
                    time.sleep(source.random() * 0.6)
    return services


def judge(services: WatchedServices, home: Path, kills: int) -> None:
    assert services.watched.faults == []
    with ExampleStore(home / "examples.db") as examples:  # opening checks the whole file
        count = examples.count()
        assert count >= kills
        last = toy_device(FakeTransport(services), home, examples=examples)
        services.target = "here:1"
        for _ in range(2):  # the first may have a session to end
            ended = last.participate()
        assert ended.outcome is Outcome.UPLOADED, ended
    assert len(services.reports) <= len(services.watched.joined)
    open_sessions = set(services.watched.joined) - services.watched.finished
    assert not open_sessions, "every session that joined was ended, by its process or the next"
    outcomes = {each.outcome for each in last.history()}
    assert outcomes <= {Outcome.UPLOADED, Outcome.STOPPED}, last.history()


def test_a_device_that_is_killed_goes_on(tmp_path: Path) -> None:
    judge(kill_often(1, 3, tmp_path), tmp_path, 1)


@pytest.mark.slow
def test_a_device_that_is_killed_fifty_times_never_has_two_sessions(tmp_path: Path) -> None:
    judge(kill_often(50, 7, tmp_path), tmp_path, 50)
