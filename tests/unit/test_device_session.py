"""The core of a participation, driven by hand: every answer is scripted, nothing waits and nothing is sent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrecon.device_sdk import delivery
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.floors import Floors, read_floors
from fedrecon.device_sdk.participation import Fate, Outcome
from fedrecon.device_sdk.session import take_part
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    JoinResponse,
    UploadRequest,
    UploadResponse,
    UploadStatusRequest,
    UploadStatusResponse,
)
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.v1.coordinator_pb2 import (
    CheckInRequest,
    CheckInResponse,
    Rejection,
    Ticket,
)
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import METRIC_SCALE
from support import device_bundle as bundle
from support.device_services import LOST, PUBLISHER, WINDOWS, Examples, Services, circumstances, play


@pytest.fixture(scope="module")
def plan() -> Any:
    return bundle.make_plan()


@pytest.fixture
def services(plan: Any) -> Services:
    return Services(plan, bundle.make_assignment(plan))


def test_a_device_takes_part(services: Services) -> None:
    ending = play(services)
    participation = ending.participation
    assert participation.outcome is Outcome.UPLOADED
    assert participation.shape == services.finished.shape == "-v[]+^"
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_UPLOADED
    assert participation.fate is Fate.PENDING
    assert (participation.task, participation.round, participation.attempt) == ("films", 3, 1)
    assert participation.unknown_keys == ("film-9",)
    assert participation.examples == 2
    assert participation.retry_after_seconds is not None
    assert 1 <= participation.retry_after_seconds <= 3
    assert ending.minimum_examples == 2
    assert len(services.received) == (12 + 1) * 4 + 3 * 8


def test_the_uploaded_bytes_follow_from_the_seeds(plan: Any) -> None:
    uploads = []
    for lose in ([], ["CheckIn", "Join", "UploadStatus", "Upload"]):
        services = Services(plan, bundle.make_assignment(plan), lose)
        play(services)
        uploads.append(bytes(services.received))
    assert uploads[0] == uploads[1]


@pytest.mark.parametrize("name", ["CheckIn", "Join", "UploadStatus", "FinishSession"])
def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(plan: Any, name: str) -> None:
    services = Services(plan, bundle.make_assignment(plan), [name])
    assert play(services).participation.outcome is Outcome.UPLOADED
    bodies = services.bodies(name)
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]


def test_a_lost_acknowledgement_is_found_by_asking_for_the_status(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan), ["Upload"])
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.names().count("Upload") == 1
    assert services.names().count("UploadStatus") == 2


def test_a_broken_upload_goes_on_where_it_stopped(services: Services) -> None:
    services.upload_breaks_at = 10
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.names().count("Upload") == 2


def test_a_broken_download_goes_on_where_it_stopped(services: Services, plan: Any) -> None:
    services.fetch_breaks_at = 300
    assert play(services).participation.outcome is Outcome.UPLOADED
    questions = [FetchRequest.FromString(body) for body in services.bodies("Fetch")]
    assert [each.offset for each in questions if each.digest == plan.digest] == [0, 300]


def test_a_download_goes_on_in_a_later_participation(services: Services, tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    services.fetch_breaks_at = 300
    assert (
        play(services, cache=cache, patience=Patience(attempts=1, session_attempts=1)).participation.outcome
        is Outcome.UNREACHABLE
    )
    assert play(services, cache=BlobCache(tmp_path)).participation.outcome is Outcome.UPLOADED
    offsets = [FetchRequest.FromString(body).offset for body in services.bodies("Fetch")]
    assert offsets[:2] == [0, 300]


def test_blobs_in_the_cache_are_not_fetched_again(services: Services) -> None:
    cache = BlobCache()
    play(services, cache=cache)
    again = Services(services.plan, services.assignment)
    assert play(again, cache=cache).participation.outcome is Outcome.UPLOADED
    assert "Fetch" not in again.names()


def test_a_damaged_cache_file_is_fetched_again(services: Services, plan: Any, tmp_path: Path) -> None:
    play(services, cache=BlobCache(tmp_path))
    (tmp_path / plan.digest.hex()).write_bytes(b"damaged")
    again = Services(plan, services.assignment)
    assert play(again, cache=BlobCache(tmp_path)).participation.outcome is Outcome.UPLOADED
    assert [FetchRequest.FromString(body).digest for body in again.bodies("Fetch")] == [plan.digest]


def test_a_blob_with_another_digest_is_refused(services: Services, plan: Any) -> None:
    right = plan.blobs[plan.manifest.initial_checkpoint.digest]
    services.damaged = {plan.manifest.initial_checkpoint.digest: right[:-1] + b"\x01"}
    participation = play(services).participation
    assert participation.outcome is Outcome.FAILED
    assert participation.reason == "DAMAGED_BLOB"
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED
    assert participation.shape == "-!"


def test_a_damaged_chunk_is_fetched_again(services: Services) -> None:
    damaged = iter([Chunk(offset=0, data=b"x", digest=bytes(32))])
    honest = services.fetch

    def fetch(request: Any) -> None:
        for chunk in damaged:
            request.take(chunk)
        honest(request)

    services.fetch = fetch  # type: ignore[method-assign]
    assert play(services).participation.outcome is Outcome.UPLOADED


def test_a_rejection_tells_when_to_come_back(services: Services) -> None:
    rejection = Rejection(reason=coordinator_pb2.REJECTION_REASON_FULL, message="the cohort is complete")
    services.check_ins = [CheckInResponse(rejection=rejection, retry_windows=WINDOWS, minimum_examples=9)]
    ending = play(services)
    assert ending.participation.outcome is Outcome.REJECTED
    assert ending.participation.reason == "FULL"
    assert ending.participation.retry_after_seconds is not None
    assert 10 <= ending.participation.retry_after_seconds <= 20
    assert ending.minimum_examples == 9
    assert services.names() == ["CheckIn"]


def test_a_ticket_keeps_the_devices_place(services: Services) -> None:
    services.check_ins.insert(0, CheckInResponse(ticket=Ticket(ticket=b"place", wait_milliseconds=4000)))
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.sleeps == [4.0]
    assert [CheckInRequest.FromString(body).ticket for body in services.bodies("CheckIn")] == [b"", b"place"]


def test_a_device_with_too_few_examples_does_not_check_in(services: Services) -> None:
    participation = play(services, minimum_examples=8).participation
    assert participation.outcome is Outcome.TOO_FEW_EXAMPLES
    assert len(participation.receipt) == 0
    assert services.calls == []


def test_a_server_that_gives_tickets_without_end_is_not_called_without_end(services: Services) -> None:
    services.check_ins[:0] = [CheckInResponse(ticket=Ticket(ticket=b"place"))] * 20
    before = services.now
    play(services)
    assert services.now - before >= 20, "a second between two calls at least"


def test_a_device_whose_examples_are_unknown_says_it_is_not_eligible(plan: Any) -> None:
    work = task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES, minimum_examples=7)
    services = Services(plan, bundle.make_assignment(plan, work=work))
    assert play(services).participation.outcome is Outcome.TOO_FEW_EXAMPLES
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_NOT_ELIGIBLE


@pytest.mark.parametrize(
    ("floors", "change", "reason"),
    [
        (read_floors([PUBLISHER], "required", 5), {}, "SECURE_SUM_REQUIRED"),
        (read_floors([PUBLISHER], "allowed", 6), {}, "GROUP_TOO_SMALL"),
        (read_floors(["ab" * 32], "allowed", 5), {}, "UNTRUSTED_PLAN"),
        (read_floors([PUBLISHER], "allowed", 5), {"session": b"short"}, "MALFORMED_ASSIGNMENT"),
        (read_floors([PUBLISHER], "allowed", 5), {"kind": 0}, "MALFORMED_ASSIGNMENT"),
        (read_floors([PUBLISHER], "allowed", 5), {"clip_norm": -1.0}, "MALFORMED_ASSIGNMENT"),
        (read_floors([PUBLISHER], "allowed", 5), {"clip_norm": float("nan")}, "MALFORMED_ASSIGNMENT"),
        (
            read_floors([PUBLISHER], "required", 5),
            {"secure_sum": task_pb2.SecureSum(protocol=task_pb2.SumProtocol.ValueType(7), minimum_group=5)},
            "UNKNOWN_PROTOCOL",
        ),
    ],
)
def test_an_assignment_below_the_floors_is_refused_before_anything_is_fetched(
    plan: Any, floors: Floors, change: dict[str, Any], reason: str
) -> None:
    services = Services(plan, bundle.make_assignment(plan, **change))
    participation = play(services, floors=floors).participation
    assert participation.outcome is Outcome.REFUSED
    assert participation.reason == reason
    assert services.names() == ["CheckIn", "FinishSession"]
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_REFUSED


@pytest.mark.parametrize("floors", [read_floors([PUBLISHER], "allowed", 5), read_floors([], "allowed", 5)])
def test_a_plan_with_a_forged_signature_is_refused(plan: Any, floors: Floors) -> None:
    assignment = bundle.make_assignment(plan)
    assignment.signature.signature = bytes(64)
    participation = play(Services(plan, assignment), floors=floors).participation
    assert (participation.outcome, participation.reason) == (Outcome.REFUSED, "UNTRUSTED_PLAN")


def test_an_unsigned_plan_runs_only_where_the_app_trusts_any(plan: Any) -> None:
    assignment = bundle.make_assignment(plan)
    assignment.ClearField("signature")
    refused = play(Services(plan, assignment)).participation
    assert (refused.outcome, refused.reason) == (Outcome.REFUSED, "UNTRUSTED_PLAN")
    anyone = play(Services(plan, assignment), floors=read_floors([], "allowed", 5)).participation
    assert anyone.outcome is Outcome.UPLOADED


@pytest.mark.parametrize("name", ["Join", "UploadStatus", "Upload"])
def test_a_closed_round_is_too_late(plan: Any, name: str) -> None:
    closed = CallFailedError("the round is closed", code="FAILED_PRECONDITION", reason="ROUND_CLOSED")
    services = Services(plan, bundle.make_assignment(plan), refuse={name: closed})
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.TOO_LATE, "ROUND_CLOSED")
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_TOO_LATE
    assert participation.shape.endswith("#")
    assert participation.retry_after_seconds is not None
    assert 1 <= participation.retry_after_seconds <= 3


def test_a_group_that_went_on_is_too_late(services: Services) -> None:
    def aborted(body: bytes) -> UploadStatusResponse:
        assert UploadStatusRequest.FromString(body).group == b"g" * 16
        return UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_ABORTED)

    services.UploadStatus = aborted  # type: ignore[method-assign]
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.TOO_LATE, "GROUP_ABORTED")


def test_a_refusal_that_is_not_about_time_fails(plan: Any) -> None:
    refused = CallFailedError("the token is forged", code="INVALID_ARGUMENT", reason="BAD_TOKEN")
    services = Services(plan, bundle.make_assignment(plan), refuse={"Join": refused})
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "BAD_TOKEN")
    assert services.names().count("Join") == 1


def test_work_that_takes_longer_than_the_report_is_waited_for_is_too_late(services: Services) -> None:
    join = services.Join

    def slow(body: bytes) -> JoinResponse:
        services.now += 100
        return join(body)

    services.Join = slow  # type: ignore[method-assign]
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.TOO_LATE, "TOO_LATE")
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_UPLOAD_TIMEOUT


def test_an_unreachable_coordinator_is_an_outcome(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan), refuse={"CheckIn": LOST})
    participation = play(services).participation
    assert participation.outcome is Outcome.UNREACHABLE
    assert services.names() == ["CheckIn"] * 4
    assert services.sleeps == sorted(services.sleeps)


def test_a_report_stays_a_report_when_the_session_cannot_be_ended(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan), refuse={"FinishSession": LOST})
    participation = play(services).participation
    assert (participation.outcome, participation.fate) == (Outcome.UPLOADED, Fate.PENDING)


def test_an_update_that_is_not_finite_reports_nothing() -> None:
    class Huge(Examples):
        def columns(self) -> Mapping[str, NDArray[Any]]:
            return {**super().columns(), "rating": np.full(7, 5.0)}

    diverging = bundle.make_plan(initial=3e38)
    services = Services(diverging, bundle.make_assignment(diverging))
    participation = play(services, examples=Huge()).participation
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "DIVERGED")
    assert services.received == b""
    assert "Join" not in services.names()
    assert services.finished.shape == "-v[!"


def test_an_evaluation_reports_only_metric_sums(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan, kind=coordinator_pb2.SESSION_KIND_EVALUATE))
    participation = play(services).participation
    assert participation.outcome is Outcome.UPLOADED
    assert len(services.received) == 3 * 8
    (upload,) = [each for each in participation.receipt if each.message == "Upload"]
    assert "user vector" not in upload.reveals


def test_an_evaluation_tells_its_spread_where_that_is_asked_for(plan: Any) -> None:
    received = []
    for asked in (False, True):
        kind = coordinator_pb2.SESSION_KIND_EVALUATE
        services = Services(plan, bundle.make_assignment(plan, kind=kind, tells_spread=asked))
        assert play(services).participation.outcome is Outcome.UPLOADED
        received.append(np.frombuffer(services.received, dtype="<i8"))
    plain, told = received
    assert told[: len(plain)].tolist() == plain.tolist()
    examples, error = int(plain[0]), plain[2] / METRIC_SCALE
    n, n_squared, squared, product = (each / METRIC_SCALE for each in told[len(plain) :])
    assert (n, n_squared) == (examples, examples**2)
    assert squared == pytest.approx(error**2, rel=1e-4)
    assert product == pytest.approx(error * examples, rel=1e-4)


class Shown(Examples):
    """Examples of an app that keeps outcomes."""

    def add_outcome(self, version: int, shown: int, chosen: int) -> None:
        raise AssertionError("a session adds none", version, shown, chosen)

    def outcomes(self) -> dict[int, tuple[int, int]]:
        return {5: (40, 3), 9: (7, 7)}


@pytest.mark.parametrize(("kept", "told"), [(True, [0] * 5 + [40, 3, 1600, 9, 120]), (False, [0] * 10)])
def test_an_evaluation_tells_outcomes_of_the_versions_that_are_asked_for(
    plan: Any, kept: bool, told: list[int]
) -> None:
    examples = Shown() if kept else Examples()
    assignment = bundle.make_assignment(plan, kind=coordinator_pb2.SESSION_KIND_EVALUATE)
    assignment.outcome_versions.extend((4, 5))
    services = Services(plan, assignment)
    participation = play(services, examples=examples).participation
    assert participation.outcome is Outcome.UPLOADED
    received = np.frombuffer(services.received, dtype="<i8")
    assert (received[-10:] / METRIC_SCALE).tolist() == told
    (upload,) = [each for each in participation.receipt if each.message == "Upload"]
    assert "how many recommendations of version 4, 5 were shown" in upload.reveals
    training = bundle.make_assignment(plan)
    training.outcome_versions.extend((4, 5))
    again = play(Services(plan, training), examples=examples).participation
    assert again.outcome is Outcome.UPLOADED
    assert all("recommendations of version" not in each.reveals for each in again.receipt)


def test_a_training_session_tells_no_spread(plan: Any) -> None:
    both = [Services(plan, bundle.make_assignment(plan, tells_spread=asked)) for asked in (False, True)]
    assert [play(services).participation.outcome for services in both] == [Outcome.UPLOADED] * 2
    assert both[0].received == both[1].received


def test_the_receipt_has_a_line_for_all_that_left(services: Services) -> None:
    receipt = play(services).participation.receipt
    assert [departure.message for departure in receipt] == services.names()
    assert receipt.bytes == sum(map(len, services.sent))
    (upload,) = [departure for departure in receipt if departure.message == "Upload"]
    assert upload.digest == digest_of(services.received).hex()
    assert "reveals the user vector" in upload.reveals
    assert upload.recipient == "aggregator:1"
    assert "Upload to aggregator:1" in str(receipt)


def test_one_device_of_a_process_fetches_while_the_others_wait(services: Services, plan: Any) -> None:
    cache = BlobCache()
    both = [services, Services(plan, services.assignment)]
    both[1].calls = services.calls
    cores = [take_part(circumstances(each, cache=cache)) for each in both]
    outcomes: list[Outcome] = []
    waiting = {number: next(core) for number, core in enumerate(cores)}
    while waiting:
        for number, request in list(waiting.items()):
            try:
                waiting[number] = cores[number].send(both[number].answer(request))
            except StopIteration as end:
                del waiting[number]
                outcomes.append(end.value.participation.outcome)
    digests = [FetchRequest.FromString(body).digest for body in services.bodies("Fetch")]
    assert len(digests) == len(set(digests))
    assert outcomes == [Outcome.UPLOADED, Outcome.UPLOADED]
    assert services.received == both[1].received


@pytest.mark.parametrize("reason", ["WRONG_OFFSET", "UPLOAD_INCOMPLETE", "DIGEST_MISMATCH"])
def test_an_upload_that_can_go_on_asks_for_the_status_first(services: Services, reason: str) -> None:
    honest, refusals = services.upload, [CallFailedError("go on", code="FAILED_PRECONDITION", reason=reason)]

    def upload(request: Any) -> UploadResponse:
        if refusals:
            raise refusals.pop()
        return honest(request)

    services.upload = upload  # type: ignore[method-assign]
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert services.names().count("UploadStatus") == 2


def test_a_service_that_says_when_to_come_back_is_heard(services: Services) -> None:
    honest, busy = services.Join, [CallFailedError("full", code="RESOURCE_EXHAUSTED", retry_milliseconds=(2000, 4000))]

    def join(body: bytes) -> JoinResponse:
        if busy:
            raise busy.pop()
        return honest(body)

    services.Join = join  # type: ignore[method-assign]
    assert play(services).participation.outcome is Outcome.UPLOADED
    (waited,) = services.sleeps
    assert 2 <= waited <= 4


def test_a_session_that_reported_another_vector_is_not_counted_as_this_one(services: Services) -> None:
    def other(body: bytes) -> UploadStatusResponse:
        assert UploadStatusRequest.FromString(body).group == b"g" * 16
        return UploadStatusResponse(
            phase=aggregator_pb2.GROUP_PHASE_UPLOADING, acknowledged=True, digest=b"x" * 32, received_bytes=76
        )

    def refused(request: Any) -> UploadResponse:
        assert UploadRequest.FromString(next(request.parts())).header.offset == 0
        raise CallFailedError("another vector", code="ALREADY_EXISTS", reason="ALREADY_REPORTED")

    services.UploadStatus = other  # type: ignore[method-assign]
    services.upload = refused  # type: ignore[method-assign]
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "ALREADY_REPORTED")


def test_reasons_and_phases_of_newer_services_end_as_outcomes(plan: Any) -> None:
    """Found by `make test-fuzz`: enums are open, and a name for a number that has none is no way to answer."""
    newer = Services(plan, bundle.make_assignment(plan))
    newer.check_ins[0].rejection.reason = 10_000  # type: ignore[assignment]  # as a newer contract may have it
    ended = play(newer).participation
    assert (ended.outcome, ended.reason) == (Outcome.REJECTED, "REJECTED")
    assert delivery._went_on(99).reason == "GROUP_UNKNOWN"  # type: ignore[arg-type]  # the same


AWAY = CallFailedError("connection refused", code="UNAVAILABLE")
MOVED = CallFailedError("another one holds it", code="ABORTED", reason="GROUP_MOVED")
UNKNOWN = CallFailedError("no such attempt", code="NOT_FOUND", reason="UNKNOWN_ROUND")


@pytest.mark.parametrize("failure", [AWAY, MOVED, UNKNOWN], ids=["away", "moved", "unknown"])
def test_a_device_goes_on_at_the_aggregator_that_took_over(services: Services, failure: CallFailedError) -> None:
    services.gone, services.found = {"aggregator:1": failure}, "aggregator:2"
    participation = play(services).participation
    assert participation.outcome is Outcome.UPLOADED
    assert [target for name, target in services.reached if name in {"UploadStatus", "Upload"}] == ["aggregator:2"] * 2
    assert any(each.message == "Locate" for each in participation.receipt)
    told = [each.recipient for each in participation.receipt if each.message == "Upload"]
    assert told == ["aggregator:2"]


def test_a_device_fetches_from_the_aggregator_that_took_over(plan: Any) -> None:
    services = Services(plan, bundle.make_assignment(plan, blobs="aggregator:1"))
    services.gone, services.found = {"aggregator:1": AWAY}, "aggregator:2"
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert ("Fetch", "aggregator:2") in services.reached


def test_an_aggregator_that_does_not_know_the_round_any_more_and_no_other_is_too_late(services: Services) -> None:
    services.gone = {"aggregator:1": UNKNOWN}
    participation = play(services).participation
    assert (participation.outcome, participation.reason) == (Outcome.TOO_LATE, "UNKNOWN_ROUND")
    assert services.names().count("Locate") == 1


def test_a_device_waits_for_the_coordinator_to_learn_that_a_group_has_moved(services: Services) -> None:
    services.gone, asked = {"aggregator:1": MOVED}, 0
    really = services.Locate

    def later(body: bytes) -> Any:
        nonlocal asked
        asked += 1
        services.found = "aggregator:2" if asked == 3 else "aggregator:1"
        return really(body)

    services.Locate = later  # type: ignore[method-assign]
    assert play(services).participation.outcome is Outcome.UPLOADED
    assert asked == 3


def test_a_coordinator_that_cannot_say_where_an_aggregator_is_changes_nothing(services: Services) -> None:
    services.gone = {"aggregator:1": AWAY}
    services.refuse = {"Locate": CallFailedError("no such method", code="UNIMPLEMENTED")}
    participation = play(services).participation
    assert participation.outcome is Outcome.UNREACHABLE
    assert ("Join", "aggregator:1") in services.reached
