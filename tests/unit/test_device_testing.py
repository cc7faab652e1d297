"""What apps test with: a plan that is the hand-made one, services that a device takes for real ones."""

from pathlib import Path

import numpy as np
import pytest

import fedrecon.device_sdk.testing
from fedrecon.device_sdk import Outcome
from fedrecon.device_sdk.requests import CHALLENGE, Call
from fedrecon.device_sdk.testing import FakeServices, FakeTransport, toy_plan
from fedrecon.device_sdk.testing.toy_plan import FILE, toy_plan_file
from fedrecon.v1 import coordinator_pb2
from fedrecon.wire import manifests
from support import device_bundle
from support.toy_devices import toy_device, toy_transport


def test_the_kept_toy_plan_is_the_hand_made_one() -> None:
    made = device_bundle.make_plan()
    blobs = [blob for digest, blob in made.blobs.items() if digest != made.digest]
    signature = manifests.sign_plan(made.digest, device_bundle.PUBLISHER)
    (folder,) = fedrecon.device_sdk.testing.__path__
    assert (Path(folder) / FILE).read_bytes() == toy_plan_file(made.content, blobs, signature)
    assert toy_plan().blobs == made.blobs


def test_a_device_with_its_strict_floors_reports_under_a_secure_sum() -> None:
    transport = FakeTransport()
    ended = toy_device(transport, min_group=20).participate()
    assert (ended.outcome, ended.shape) == (Outcome.UPLOADED, "-v[]+^"), ended
    (masked,) = transport.services.reports
    assert np.frombuffer(masked, np.uint8).std() > 60  # 255 / sqrt(12) = 74 where all bytes are alike
    assert transport.services.calls[-3:] == ["Unmask", "Unmask", "FinishSession"]


async def test_the_same_transport_serves_asyncio() -> None:
    transport = FakeTransport(FakeServices(secure_sum=False))
    ended = await toy_device(transport, secure_sum="allowed").participate_async()
    assert ended.outcome is Outcome.UPLOADED, ended


def test_a_strict_device_refuses_what_would_be_seen() -> None:
    ended = toy_device(FakeTransport(FakeServices(secure_sum=False))).participate()
    assert (ended.outcome, ended.reason) == (Outcome.REFUSED, "SECURE_SUM_REQUIRED")


@pytest.mark.parametrize(
    "name", ["CheckIn", "Fetch", "Join", "Share", "UploadStatus", "Upload", "Unmask", "FinishSession"]
)
def test_a_lost_answer_changes_nothing(name: str) -> None:
    transport = toy_transport()
    transport.losing = [name]
    ended = toy_device(transport).participate()
    assert ended.outcome is Outcome.UPLOADED, ended
    assert transport.losing == []
    assert len(transport.services.reports) == 1
    assert transport.waited_seconds > 0


def test_an_app_can_see_how_it_is_told_to_come_back() -> None:
    transport = FakeTransport()
    transport.services.rejects = coordinator_pb2.REJECTION_REASON_FULL
    transport.services.rest_milliseconds = (5_000, 6_000)
    ended = toy_device(transport).participate()
    assert (ended.outcome, ended.reason) == (Outcome.REJECTED, "FULL")
    assert ended.retry_after_seconds is not None
    assert 5 <= ended.retry_after_seconds <= 6


def test_nobody_is_there() -> None:
    transport = FakeTransport()
    transport.is_reachable = False
    assert toy_device(transport).participate().outcome is Outcome.UNREACHABLE


async def test_a_call_that_is_not_played_says_so() -> None:
    transport = FakeTransport()
    with pytest.raises(Exception, match="Challenge is not played here"):
        await transport.call(Call("anywhere:1", CHALLENGE, b"", 1.0))
