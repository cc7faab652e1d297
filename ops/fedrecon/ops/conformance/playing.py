"""The services of one scene: good answers to a device's calls, and the place where a scene puts other ones.

Pure but for its own memory: calls go in as bytes, answers come out as messages or as `RefusedError`. What is written
down of a call, is written before it is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message

from fedrecon.ops.conformance.hearing import REQUESTS, Heard, Transcript
from fedrecon.ops.conformance.material import Material
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, UploadRequest, UploadResponse, UploadStatusResponse
from fedrecon.v1.blobs_pb2 import FetchRequest, FetchResponse
from fedrecon.v1.common_pb2 import ErrorInfo, RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInResponse, FinishSessionResponse, LocateResponse
from fedrecon.v1.enrolment_pb2 import ChallengeResponse, EnrolResponse
from fedrecon.wire import chunks
from fedrecon.wire.digests import digest_of

GROUP = b"conformance grp1"
CHALLENGE = b"a challenge for conformance"
TOKEN = b"a token of conformance"
CHUNK_BYTES = 300
"""Small, so that every blob takes more than one chunk."""
ACCEPTED = RetryWindow(min_milliseconds=20_000, max_milliseconds=40_000)
REJECTED = RetryWindow(min_milliseconds=10_000, max_milliseconds=20_000)
WINDOWS = RetryWindows(accepted=ACCEPTED, rejected=REJECTED)

PENDING, UNSPECIFIED = coordinator_pb2.REPORT_FATE_PENDING, coordinator_pb2.REPORT_FATE_UNSPECIFIED

Answers = Iterable[Message]
Intercept = Callable[["Play", Heard, int], Answers | None]
"""What a scene does with a call, given how often its method was called before; None: what is usual."""


class RefusedError(Exception):
    """A call is refused, or its connection breaks.

    Attributes:
        code: name of the gRPC status.
        info: what travels with a refusal; None for a broken connection.
    """

    def __init__(self, code: str, info: ErrorInfo | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.info = info


def lost() -> RefusedError:
    """Returns what a device sees of a connection that broke."""
    return RefusedError("UNAVAILABLE")


def refusal(reason: str, code: str, window: RetryWindow | None = None) -> RefusedError:
    """Returns a service's refusal."""
    return RefusedError(code, ErrorInfo(reason=reason, message="A scene of conformance.", advice="None.", retry=window))


@dataclass(slots=True)
class Play:
    """The services of one scene.

    Attributes:
        material: the plan.
        assignment: what the device is asked for.
        blobs: what services have, by digest.
        elsewhere: the second address, where an aggregator may have moved.
        intercept: what the scene does with a call.
        transcript: what the device said.
        received: bytes of its report that were kept.
        acknowledged: whether its report was acknowledged.
        group: the rest of its masked group, where the scene has one.
        unreadable: what is known of messages that could not be read.
    """

    material: Material
    assignment: Assignment
    blobs: dict[bytes, bytes]
    elsewhere: str
    intercept: Intercept
    transcript: Transcript = field(default_factory=lambda: Transcript([]))
    received: bytearray = field(default_factory=bytearray)
    acknowledged: bool = False
    group: object | None = None
    unreadable: list[str] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def answer(self, call: Heard) -> Iterator[Message]:
        """Yields the answers to a call whose messages have all come.

        Raises:
            RefusedError: it is refused, or its connection breaks.
        """
        try:
            for part in call.parts or [b""]:
                REQUESTS[call.path].FromString(part)
        except DecodeError as error:
            self.unreadable.append(f"{call.method} brought what is no {REQUESTS[call.path].__name__}")
            raise refusal("MALFORMED_REQUEST", "INVALID_ARGUMENT") from error
        self.transcript.calls.append(call)
        before = self._counts[call.method]
        self._counts[call.method] += 1
        answers = self.intercept(self, call, before)
        yield from self.usual(call) if answers is None else answers
        call.answered = True

    def usual(self, call: Heard) -> Iterator[Message]:
        """Yields what good services answer."""
        if call.method == "Fetch":
            yield from self._fetch(call.request)
        elif call.method == "Upload":
            yield self.upload(call)
        else:
            yield self._answer(call.method)

    def upload(self, call: Heard, keep: int | None = None) -> UploadResponse:
        """Takes an upload's chunks.

        Args:
            call: the upload.
            keep: bytes after which its connection breaks.

        Raises:
            RefusedError: a chunk does not fit, or the connection breaks.
        """
        header = call.request.header
        del self.received[header.offset :]
        for part in call.parts[1:]:
            try:
                chunk = UploadRequest.FromString(part).chunk
                self.received += chunks.take(chunk, len(self.received), header.size)
            except ValueError as error:
                raise refusal("CHUNK_ORDER", "INVALID_ARGUMENT") from error
            if keep is not None and len(self.received) >= keep:
                del self.received[keep:]
                raise lost()
        if len(self.received) != header.size or digest_of(self.received) != header.digest:
            raise refusal("DIGEST_MISMATCH", "DATA_LOSS")
        self.acknowledged = True
        return UploadResponse(digest=header.digest, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def _fetch(self, request: FetchRequest) -> Iterator[Message]:
        content = self.blobs.get(request.digest)
        if content is None:
            raise refusal("UNKNOWN_BLOB", "NOT_FOUND")
        for chunk in chunks.cut(content, request.offset, CHUNK_BYTES):
            yield FetchResponse(chunk=chunk)

    def _answer(self, method: str) -> Message:
        uploading = aggregator_pb2.GROUP_PHASE_UPLOADING
        answers: dict[str, Callable[[], Any]] = {
            "CheckIn": lambda: CheckInResponse(assignment=self.assignment, retry_windows=WINDOWS, minimum_examples=2),
            "Locate": lambda: LocateResponse(aggregator=self.assignment.aggregator),
            "Join": lambda: JoinResponse(group=GROUP, phase=uploading),
            "UploadStatus": lambda: UploadStatusResponse(
                phase=uploading,
                received_bytes=len(self.received),
                acknowledged=self.acknowledged,
                digest=digest_of(self.received) if self.acknowledged else b"",
            ),
            "FinishSession": lambda: FinishSessionResponse(
                fate=PENDING if self.acknowledged else UNSPECIFIED, retry_windows=WINDOWS
            ),
            "Challenge": lambda: ChallengeResponse(challenge=CHALLENGE, expires_within_milliseconds=120_000),
            "Enrol": lambda: EnrolResponse(token=TOKEN, expires_within_milliseconds=3_600_000),
        }
        if method not in answers:
            raise refusal("MALFORMED_REQUEST", "INVALID_ARGUMENT")
        message: Message = answers[method]()
        return message
