"""Scenes of answers that keep a device waiting, connections that break, and calls that are refused."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedrecon.ops.conformance.hearing import Heard
from fedrecon.ops.conformance.judging import OF_A_SESSION
from fedrecon.ops.conformance.playing import (
    CHALLENGE,
    CHUNK_BYTES,
    REJECTED,
    TOKEN,
    WINDOWS,
    Answers,
    Play,
    lost,
    refusal,
)
from fedrecon.ops.conformance.report_scenes import report_complaints
from fedrecon.ops.conformance.scenes import (
    AGAIN,
    LOCAL_FAILED,
    LOCAL_TIMEOUT,
    OF_WORK,
    STOPPED_BEFORE_UPLOAD,
    STOPPED_LATE,
    STOPPED_SOMEWHERE,
    TOO_LATE,
    UPLOAD_TIMEOUT,
    Complaints,
    Scene,
    either,
    every,
    first,
    lose_answer,
    never,
    once,
    refuse,
    say,
)
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import UploadStatusResponse
from fedrecon.v1.blobs_pb2 import FetchResponse
from fedrecon.v1.common_pb2 import RetryWindow
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInResponse,
    FinishSessionResponse,
    LocateResponse,
    Rejection,
    Ticket,
)
from fedrecon.wire.proofs import enrolment_transcript

TICKET, TICKET_SECONDS = b"a place in the selection", 1
WINDOW = RetryWindow(min_milliseconds=600, max_milliseconds=900)
SHORT_SECONDS = 4
SLACK_SECONDS = 5
"""So late a call may arrive that was tried in time, on a machine that has much to do."""
KEPT_BYTES = 10


def _after_ticket(play: Play) -> Complaints:
    calls = play.transcript.of("CheckIn")
    if [call.request.ticket for call in calls] != [b"", TICKET]:
        yield "it did not check in once more, with its ticket"
    elif calls[1].moment - calls[0].moment < TICKET_SECONDS:
        yield f"it came back {calls[1].moment - calls[0].moment:.2f} s after a ticket of {TICKET_SECONDS} s"


def _after_rejection(play: Play) -> Complaints:
    for call in play.transcript.calls[1:]:
        yield f"it called {call.method}, and {REJECTED.min_milliseconds} ms had not passed"


def _same_bytes(play: Play) -> Complaints:
    for method in ("Join", "FinishSession"):
        calls = play.transcript.of(method)
        if len(calls) < AGAIN:
            yield f"{method} was not tried again after its connection broke"
        elif any(call.parts != calls[0].parts for call in calls):
            yield f"{method} was tried again with other bytes"


def _within_window(play: Play) -> Complaints:
    calls = play.transcript.of("Join")
    if len(calls) < AGAIN:
        yield "Join was not tried again"
    elif calls[1].moment - calls[0].moment < WINDOW.min_milliseconds / 1000:
        waited = calls[1].moment - calls[0].moment
        yield f"Join came again after {waited:.2f} s; its window began after {WINDOW.min_milliseconds} ms"


def _break_after_a_chunk(play: Play, call: Heard) -> Answers:
    yield next(play.usual(call))
    raise lost()


def _damage_a_chunk(play: Play, call: Heard) -> Answers:
    whole, damaged = list(play.usual(call))[:2]
    yield whole
    assert isinstance(damaged, FetchResponse)  # noqa: S101 - tells mypy what Fetch answers
    damaged.chunk.data = bytes([damaged.chunk.data[0] ^ 1]) + damaged.chunk.data[1:]
    yield damaged
    raise lost()


def _resumed(play: Play) -> Complaints:
    calls = play.transcript.of("Fetch")
    again = [call.request.offset for call in calls[1:] if call.request.digest == calls[0].request.digest]
    if not again:
        yield "the fetch was not tried again"
    elif again[0] != CHUNK_BYTES:
        yield f"it went on from byte {again[0]}; {CHUNK_BYTES} had arrived whole"
    yield from report_complaints(play)


def _another_checkpoint(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    """Other bytes under the checkpoint's name: the digest of each chunk is right, that of the whole is not."""
    content = blobs[assignment.checkpoint.digest]
    blobs[assignment.checkpoint.digest] = content[:-1] + bytes([content[-1] ^ 1])


def _keep_some(play: Play, call: Heard) -> Answers:
    play.upload(call, keep=KEPT_BYTES)
    raise lost()


def _upload_resumed(play: Play) -> Complaints:
    uploads = play.transcript.of("Upload")
    if len(uploads) < AGAIN:
        yield "the upload was not tried again"
        return
    if play.transcript.after(uploads[0])[0].method != "UploadStatus":
        yield "after an upload that broke, it did not ask for the status"
    if uploads[1].request.header.offset != KEPT_BYTES:
        yield f"it went on from byte {uploads[1].request.header.offset}; {KEPT_BYTES} were kept"
    yield from report_complaints(play)


def _uploaded_once(play: Play) -> Complaints:
    uploads, asked = play.transcript.of("Upload"), play.transcript.of("UploadStatus")
    if not uploads or not asked or uploads[0] in play.transcript.calls[: play.transcript.calls.index(asked[0])]:
        yield "it did not ask for the status before it uploaded"
    if len(uploads) != 1:
        yield f"it uploaded {len(uploads)} times; the first was acknowledged, as the status says"


def _where_it_went(play: Play, call: Heard) -> Answers:
    del call
    return [LocateResponse(aggregator=play.elsewhere)]


def _went_there(play: Play) -> Complaints:
    located = play.transcript.of("Locate")
    if not located:
        yield "told that its group has moved, it did not ask where"
        return
    after = [call for call in play.transcript.after(located[0]) if call.method in {"Join", "UploadStatus", "Upload"}]
    if not all(call.elsewhere for call in after):
        yield "it did not go on at the address that Locate named"
    yield from report_complaints(play)


def _in_time(play: Play) -> Complaints:
    assigned = play.transcript.of("CheckIn")[-1].moment
    for call in play.transcript.of(*OF_WORK):
        if call.moment > assigned + SHORT_SECONDS + SLACK_SECONDS:
            yield f"{call.method} was tried {call.moment - assigned:.1f} s after an assignment of {SHORT_SECONDS} s"
            return


def _soon(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.report_within_milliseconds = SHORT_SECONDS * 1000


def _no_session_key(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.session_key = b""


def _without_proofs(play: Play) -> Complaints:
    for call in play.transcript.of(*OF_A_SESSION):
        if call.credentials.nonce or call.credentials.mac:
            yield f"{call.method} has a nonce or a MAC, and the assignment brought no session key"
    yield from report_complaints(play)


def _unless_enrolled(play: Play, call: Heard) -> Answers:
    if call.credentials.token != TOKEN:
        raise refusal("NOT_ENROLLED", "UNAUTHENTICATED")
    return play.usual(call)


def _lose_the_first_signed(play: Play, call: Heard) -> Answers:
    answers = _unless_enrolled(play, call)
    if sum(bool(each.credentials.token) for each in play.transcript.of("CheckIn")) == 1:
        raise lost()
    return answers


def _enrolled(play: Play) -> Complaints:
    enrolments = play.transcript.of("Enrol")
    if not play.transcript.of("Challenge") or not enrolments:
        yield "refused with NOT_ENROLLED, it did not enrol"
        return
    request = enrolments[0].request
    if request.challenge != CHALLENGE:
        yield "the challenge did not come back as it was sent"
    signed = enrolment_transcript(request.device_key, request.challenge, request.attestation)
    try:
        Ed25519PublicKey.from_public_bytes(request.device_key).verify(request.signature, signed)
    except (InvalidSignature, ValueError):
        yield "the enrolment is not signed by the device key"


def _signed_anew(play: Play) -> Complaints:
    nonces = [call.credentials.nonce for call in play.transcript.of("CheckIn") if call.credentials.token]
    if len(nonces) < AGAIN:
        yield "the signed check-in was not tried again"
    elif nonces[0] == nonces[1]:
        yield "it was tried again with the same nonce, which is heard once"


_ABORTED = UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_ABORTED)
_VOID = FinishSessionResponse(fate=coordinator_pb2.REPORT_FATE_VOID, retry_windows=WINDOWS)
_REJECTED = CheckInResponse(
    rejection=Rejection(reason=coordinator_pb2.REJECTION_REASON_FULL, message="A scene of conformance."),
    retry_windows=WINDOWS,
    minimum_examples=2,
)
_TICKET = CheckInResponse(ticket=Ticket(ticket=TICKET, wait_milliseconds=TICKET_SECONDS * 1000), retry_windows=WINDOWS)

LINE_SCENES = (
    Scene("a ticket", "ticket", _after_ticket, intercept=first("CheckIn", say(_TICKET))),
    Scene(
        "a rejection", "rejection", _after_rejection, intercept=every("CheckIn", say(_REJECTED)), outcomes=frozenset()
    ),
    Scene("a device that must enrol", "enrolment", _enrolled, intercept=every("CheckIn", _unless_enrolled)),
    Scene("a signed check-in is lost", "signed-anew", _signed_anew, intercept=every("CheckIn", _lose_the_first_signed)),
    Scene("no session key", "no-session-key", _without_proofs, _no_session_key),
    Scene("a fetch breaks", "fetch-resumes", _resumed, intercept=first("Fetch", _break_after_a_chunk)),
    Scene("a chunk is damaged", "chunk-digests", _resumed, intercept=first("Fetch", _damage_a_chunk)),
    Scene(
        "a checkpoint is not its digest's",
        "blob-digests",
        never("Join", "Upload"),
        _another_checkpoint,
        outcomes=frozenset({LOCAL_FAILED}),
        shape=STOPPED_BEFORE_UPLOAD,
    ),
    Scene(
        "answers are lost",
        "same-bytes",
        _same_bytes,
        intercept=either(first("Join", lose_answer), first("FinishSession", lose_answer)),
    ),
    Scene(
        "a refusal with a window",
        "retry-window",
        _within_window,
        intercept=first("Join", refuse(lambda: refusal("JOURNAL_UNAVAILABLE", "UNAVAILABLE", WINDOW))),
    ),
    Scene("an upload breaks", "upload-resumes", _upload_resumed, intercept=first("Upload", _keep_some)),
    Scene("an acknowledgement is lost", "upload-status", _uploaded_once, intercept=first("Upload", lose_answer)),
    Scene(
        "the group has moved",
        "locate",
        _went_there,
        intercept=either(
            first("Join", refuse(lambda: refusal("GROUP_MOVED", "ABORTED"))), every("Locate", _where_it_went)
        ),
    ),
    Scene(
        "the round has closed",
        "too-late",
        once("Join"),
        intercept=every("Join", refuse(lambda: refusal("ROUND_CLOSED", "FAILED_PRECONDITION"))),
        outcomes=frozenset({TOO_LATE}),
        shape=STOPPED_LATE,
    ),
    Scene(
        "the group was given up",
        "too-late",
        never("Upload"),
        intercept=every("UploadStatus", say(_ABORTED)),
        outcomes=frozenset({TOO_LATE}),
        shape=STOPPED_LATE,
    ),
    Scene(
        "a refusal with a new reason",
        "refusal",
        once("Join"),
        intercept=every("Join", refuse(lambda: refusal("SOMETHING_NEW", "FAILED_PRECONDITION"))),
        outcomes=frozenset({LOCAL_FAILED, TOO_LATE}),
        shape=STOPPED_LATE,
    ),
    Scene(
        "the aggregator is away",
        "report-within",
        _in_time,
        _soon,
        every("Join", refuse(lost)),
        outcomes=frozenset({LOCAL_TIMEOUT, UPLOAD_TIMEOUT}),  # a slow device is still at work
        shape=STOPPED_SOMEWHERE,
    ),
    Scene("a report becomes void", "void", once("Upload"), intercept=every("FinishSession", say(_VOID))),
)
