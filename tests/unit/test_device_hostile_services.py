"""Whatever services send, taking part has an outcome, the session is ended, and neither time nor memory is taken."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.participation import Outcome, Participation
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.aggregator_pb2 import UploadRequest
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInResponse, Ticket
from fedrecon.v1.plan_pb2 import Manifest
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import write_manifest
from support import device_bundle as bundle
from support.device_services import PUBLISHER, Examples, Services, play

LARGEST_UINT32 = (1 << 32) - 1


@pytest.fixture(scope="module")
def plan() -> Any:
    return bundle.make_plan()


def _layout_width(assignment: Assignment, width: int) -> None:
    assignment.layout.segments[0].width = width


def _schedule(assignment: Assignment, **numbers: int) -> None:
    schedule = assignment.work.update_schedule
    schedule.Clear()
    for name, number in numbers.items():
        setattr(schedule, name, number)


@pytest.mark.parametrize(
    "change",
    [
        lambda assignment: _layout_width(assignment, 3),
        lambda assignment: _layout_width(assignment, 0),
        lambda assignment: _layout_width(assignment, 1 << 40),
        lambda assignment: assignment.layout.segments.append(assignment.layout.segments[0]),
        lambda assignment: setattr(assignment.layout.segments[0], "parameter", "user"),
        lambda assignment: _schedule(assignment, batch_size=LARGEST_UINT32, epochs=1),
        lambda assignment: _schedule(assignment, batch_size=1, epochs=LARGEST_UINT32),
        lambda assignment: _schedule(assignment, batch_size=0, epochs=1),
    ],
    ids=["wide", "empty", "huge", "twice", "local", "batch", "epochs", "no batch"],
)
def test_an_assignment_that_makes_no_sense_reports_nothing(plan: Any, change: Callable[[Assignment], None]) -> None:
    assignment = bundle.make_assignment(plan)
    change(assignment)
    services = Services(plan, assignment)
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "UNUSABLE_PLAN")
    assert "Join" not in services.names()
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED


@pytest.mark.parametrize("kind", [coordinator_pb2.SESSION_KIND_TRAIN, coordinator_pb2.SESSION_KIND_EVALUATE])
def test_a_group_that_cannot_hold_as_many_as_the_app_wants_is_refused(plan: Any, kind: int) -> None:
    assignment = bundle.make_assignment(plan, kind=kind)
    assignment.secure_sum.maximum_reports = 4
    services = Services(plan, assignment)
    participation = play(services, floors=read_floors([PUBLISHER], "allowed", 5)).participation
    assert (participation.outcome, participation.reason) == (Outcome.REFUSED, "GROUP_TOO_SMALL")
    assert services.names() == ["CheckIn", "FinishSession"]


@pytest.mark.parametrize("digest", [b"", b"x", b"x" * 1000])
def test_a_blob_without_a_digest_is_not_asked_for(plan: Any, tmp_path: Path, digest: bytes) -> None:
    assignment = bundle.make_assignment(plan)
    assignment.checkpoint.digest = digest
    participation = play(Services(plan, assignment), cache=BlobCache(tmp_path)).participation
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "DAMAGED_BLOB")


def _play_changed(plan: Any, change: Callable[[Manifest], None]) -> tuple[Services, Participation]:
    """Plays a plan that nobody signed, with something wrong in its manifest."""
    manifest = Manifest()
    manifest.CopyFrom(plan.manifest)
    change(manifest)
    content = write_manifest(manifest)
    changed = bundle.HandMadePlan(manifest, content, {**plan.blobs, digest_of(content): content})
    assignment = bundle.make_assignment(changed)
    assignment.ClearField("signature")
    services = Services(changed, assignment)
    return services, play(services, floors=read_floors([], "allowed", 5)).participation


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.metrics.add(name="nobody gives this", bound=1),
        lambda manifest: setattr(manifest.metrics[0], "bound", float("nan")),
        lambda manifest: setattr(manifest.parameters[0], "dtype", 77),
        lambda manifest: setattr(manifest.graphs[0].inputs[0], "reference", "nothing"),
        lambda manifest: setattr(manifest.graphs[2].outputs[0], "name", "nothing"),
        lambda manifest: setattr(manifest.graphs[1].outputs[0], "reference", "nothing"),
        lambda manifest: setattr(manifest.parameters[2].initial, "global_parameter", "items"),
        lambda manifest: manifest.parameters[2].shape.append(1 << 30),
    ],
    ids=["metric", "metric bound", "type", "input", "output", "reconstructed", "default", "huge local"],
)
def test_a_plan_that_contradicts_itself_is_an_outcome(plan: Any, change: Callable[[Manifest], None]) -> None:
    services, participation = _play_changed(plan, change)
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "UNUSABLE_PLAN")
    assert "Join" not in services.names()
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED


def test_what_the_apps_own_examples_raise_is_raised_to_the_app(plan: Any) -> None:
    class Broken(Examples):
        def columns(self) -> Mapping[str, NDArray[Any]]:
            raise ValueError("the app's own mistake")

    with pytest.raises(ValueError, match="the app's own mistake"):
        play(Services(plan, bundle.make_assignment(plan)), examples=Broken())


def test_a_ticket_for_the_end_of_time_is_not_slept_through(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan))
    endless = Ticket(ticket=b"place", wait_milliseconds=(1 << 64) - 1)
    services.check_ins.insert(0, CheckInResponse(ticket=endless))
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.sleeps == [3600.0]


def test_a_wait_of_hours_is_left_to_the_app(plan: Any) -> None:
    busy = CallFailedError("busy", code="RESOURCE_EXHAUSTED", retry_milliseconds=(7_200_000, 7_200_000))
    services = Services(plan, bundle.make_assignment(plan), refuse={"CheckIn": busy})
    participation = play(services).participation
    assert services.sleeps == []
    assert participation.retry_after_seconds == 7200


def test_a_device_that_was_started_again_sends_its_new_vector_from_the_start(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan))
    services.received.extend(np.arange(10, dtype=np.uint8).tobytes())  # of the vector that it made before
    honest = services.upload

    def upload(request: Any) -> Any:
        first = next(request.parts())
        if UploadRequest.FromString(first).header.offset == 0:
            services.received.clear()
        return honest(request)

    services.upload = upload  # type: ignore[method-assign]
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.names().count("Upload") == 1
