"""A process that dies at any moment leaves a device that goes on, or gives up in an orderly way: never two sessions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from fedrecon.device_sdk import Device, Outcome
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.requests import Call, Fetch, Upload
from fedrecon.device_sdk.testing import FakeServices, FakeTransport
from fedrecon.v1 import coordinator_pb2
from support.toy_devices import toy_device, toy_services, toy_transport

NEVER = 1 << 30


class Killed(BaseException):
    """The process is gone: nobody catches it."""


class Mortal(FakeTransport):
    """Dies right after one of its requests, that is, before the next."""

    def __init__(self, services: FakeServices, dies_after: int) -> None:
        super().__init__(services)
        self.steps = itertools.count()
        self.dies_after = dies_after

    async def dying(self, act: Callable[[], Any]) -> Any:
        answer = await act()
        if next(self.steps) == self.dies_after:
            raise Killed
        return answer

    async def call(self, request: Call) -> Message:
        answer: Message = await self.dying(lambda: super(Mortal, self).call(request))
        return answer

    async def fetch(self, request: Fetch) -> None:
        await self.dying(lambda: super(Mortal, self).fetch(request))

    async def upload(self, request: Upload) -> Message:
        answer: Message = await self.dying(lambda: super(Mortal, self).upload(request))
        return answer

    async def compute(self, function: Callable[[], Any]) -> Any:
        return await self.dying(lambda: super(Mortal, self).compute(function))


def live(services: FakeServices, home: Path, secure_sum: str, *, dies_after: int = NEVER) -> Device:
    """Returns a device of a new process, with what the one before left on disk."""
    return toy_device(Mortal(services, dies_after), home, secure_sum=secure_sum)


def home_with_blobs(folder: Path) -> Path:
    """Returns a home whose cache has the plan: its many transfers die in tests of their own."""
    cache = BlobCache(folder / "blobs")
    for digest, blob in toy_services().blobs.items():
        cache.write(digest, blob)
    return folder


def steps_of_a_participation(home: Path, secure_sum: str) -> int:
    transport = Mortal(toy_services(secure_sum=secure_sum == "required"), NEVER)
    assert toy_device(transport, home, secure_sum=secure_sum).participate().outcome is Outcome.UPLOADED
    return next(transport.steps)


@pytest.mark.parametrize("secure_sum", ["allowed", "required"])
def test_a_participation_that_dies_anywhere_is_resumed_or_given_up(secure_sum: str, tmp_path: Path) -> None:
    home = home_with_blobs(tmp_path)
    given_up = 0
    for dies_after in range(steps_of_a_participation(home, secure_sum)):
        services = toy_services(secure_sum=secure_sum == "required")
        with pytest.raises(Killed):
            live(services, home, secure_sum, dies_after=dies_after).participate()
        device = live(services, home, secure_sum)
        ended = device.participate()
        if ended.reason == "PROCESS_DIED":
            given_up += 1
            assert not services.reports
            ended = device.participate()
        assert ended.outcome is Outcome.UPLOADED, (dies_after, ended)
        assert not (home / "session.json").exists()
        assert not (home / "leaving.jsonl").exists()
        # Every session that the device knew of was ended, and the report of each came once.
        died_unheard = services.calls.count("CheckIn") - len({each.session for each in services.finished})
        assert died_unheard == (services.calls[:2] == ["CheckIn", "CheckIn"])
        assert len(services.reports) == 1
    assert (given_up > 0) == (secure_sum == "required")


def died_at(call: str, home: Path, services: FakeServices, secure_sum: str = "required") -> None:
    """Lets a process die right after a call."""

    class Dying(FakeTransport):
        async def call(self, request: Call) -> Message:
            answer = await super().call(request)
            if request.method.name == call:
                raise Killed
            return answer

    device = toy_device(Dying(services), home, secure_sum=secure_sum)
    with pytest.raises(Killed):
        device.participate()


def test_a_session_that_joined_a_masked_group_is_given_up_and_told(tmp_path: Path) -> None:
    services = toy_services()
    died_at("Share", tmp_path, services)
    ended = toy_device(FakeTransport(services), tmp_path).participate()
    assert (ended.outcome, ended.reason, ended.round) == (Outcome.STOPPED, "PROCESS_DIED", 1)
    (told,) = services.finished
    assert told.outcome == coordinator_pb2.SESSION_OUTCOME_CANCELLED
    assert services.calls.count("Join") == 1, "a second vector under the same masks would reveal both"
    assert ended.retry_after_seconds is not None


def test_an_acknowledged_report_is_an_upload_also_where_the_process_died(tmp_path: Path) -> None:
    services = toy_services()
    died_at("Unmask", tmp_path, services)
    ended = toy_device(FakeTransport(services), tmp_path).participate()
    assert ended.outcome is Outcome.UPLOADED
    assert len(services.reports) == 1


def test_secrets_of_masks_are_never_on_disk(tmp_path: Path) -> None:
    drawn: list[bytes] = []

    def entropy(count: int) -> bytes:
        import os

        drawn.append(os.urandom(count))
        return drawn[-1]

    services = toy_services()

    class Dying(FakeTransport):
        async def upload(self, request: Upload) -> Message:
            del request
            raise Killed

    with pytest.raises(Killed):
        toy_device(Dying(services), tmp_path, entropy=entropy).participate()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "session.json" in files
    secrets = [each for each in drawn if len(each) == 32]
    assert len(secrets) >= 6  # three seeds, two keys, the self-mask
    found = [
        path for path, content in files.items() for each in secrets if each in content or each.hex() in str(content)
    ]
    assert found == []


def test_a_session_whose_time_has_passed_is_given_up(tmp_path: Path) -> None:
    services = toy_services(secure_sum=False)
    died_at("CheckIn", tmp_path, services, "allowed")
    died_at("Join", tmp_path, services, "allowed")
    path = tmp_path / "session.json"
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps(told | {"began": told["began"] - 3600}))
    ended = toy_device(FakeTransport(services), tmp_path, secure_sum="allowed").participate()
    assert (ended.outcome, ended.reason) == (Outcome.STOPPED, "PROCESS_DIED")


@pytest.mark.parametrize("began", [4e9, 0.0])
def test_a_clock_that_is_wrong_by_years_gives_up_and_goes_on(began: float, tmp_path: Path) -> None:
    services = toy_services(secure_sum=False)
    died_at("Join", tmp_path, services, "allowed")
    path = tmp_path / "session.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"began": began}))
    device = toy_device(FakeTransport(services), tmp_path, secure_sum="allowed")
    assert device.participate().reason == "PROCESS_DIED"
    assert device.participate().outcome is Outcome.UPLOADED


@pytest.mark.parametrize("content", [b"", b"{", b'{"assignment": 3}', b"\xff" * 40, b"[]"])
def test_a_damaged_record_of_a_session_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_bytes(content)
    assert toy_device(toy_transport(), tmp_path).participate().outcome is Outcome.UPLOADED


def test_what_a_process_sent_before_it_died_is_on_the_next_receipt(tmp_path: Path) -> None:
    services = toy_services()
    died_at("Share", tmp_path, services)
    device = toy_device(FakeTransport(services), tmp_path)
    ended = device.participate()
    names = [each.message for each in ended.receipt]
    assert names[0] == "CheckIn"
    assert names[-4:] == ["Join", "Share", "UploadStatus", "FinishSession"]
    assert [each.message for each in device.history()[-1].receipt] == names
