"""Devices that break one rule of the protocol each: the Python SDK, bent where the rule lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from fedrecon.device_sdk import calling, masking, neighbourhood, session
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.errors import CallFailedError, SumRefusedError
from fedrecon.device_sdk.requests import Call, Fetch, Upload
from fedrecon.ops.conformance.running import Order
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import (
    JoinRequest,
    ShareRequest,
    UnmaskRequest,
    UploadRequest,
    UploadStatusResponse,
)
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInRequest, FinishSessionRequest
from fedrecon.wire import chunks, key_agreement
from fedrecon.wire.digests import digest_of
from support.tested_devices import Columns, Line, TestedDevice

Make = Callable[[pytest.MonkeyPatch], TestedDevice]


def speaking(method: str, bend: Callable[[Any, int], None], request: type[Any]) -> Make:
    """A device that says something else in one method, given how often it was said before."""

    class Bent(Line):
        async def call(self, request_: Call) -> Message:
            if request_.method.name != method:
                return await super().call(request_)
            said = request.FromString(request_.body)
            bend(said, self.calls)
            self.calls += 1
            return await super().call(replace(request_, body=said.SerializeToString(deterministic=True)))

    return lambda _monkeypatch: TestedDevice(line=Bent)


def hearing(bend: Callable[[Assignment], None]) -> Make:
    """A device that understands something else of its assignment."""

    class Bent(Line):
        async def call(self, request: Call) -> Message:
            answer: Any = await super().call(request)
            if request.method.name == "CheckIn" and answer.HasField("assignment"):
                bend(answer.assignment)
            return answer  # type: ignore[no-any-return]  # a message

    return lambda _monkeypatch: TestedDevice(line=Bent)


def with_line(line: type[Line]) -> Make:
    return lambda _monkeypatch: TestedDevice(line=line)


def with_settings(change: Callable[[dict[str, Any]], None]) -> Make:
    return lambda _monkeypatch: TestedDevice(change=change)


def without(owner: Any, name: str, instead: Any = lambda *_arguments, **_more: None) -> Make:
    """A device without one of its checks."""

    def make(monkeypatch: pytest.MonkeyPatch) -> TestedDevice:
        monkeypatch.setattr(owner, name, instead)
        return TestedDevice()

    return make


class Garbling(Line):
    async def call(self, request: Call) -> Message:
        body = b"\xff\xff\xff" if request.method.name == "Join" else request.body
        return await super().call(replace(request, body=body))


class Endless(Line):
    async def call(self, request: Call) -> Message:
        endless: Any = None
        return await super().call(replace(request, seconds=endless if request.method.name == "Join" else 9.0))


class Impatient(Line):
    async def sleep(self, seconds: float) -> None:
        self.clock.now += min(seconds, 0.1)


class Vanishing(Line):
    async def call(self, request: Call) -> Message:
        if request.method.name == "FinishSession":
            raise CallFailedError("gone", code="FAILED_PRECONDITION")
        return await super().call(request)


class Repeating(Line):
    """Signs once and sends that again."""

    signed: Call | None = None

    async def call(self, request: Call) -> Message:
        if request.method.name == "CheckIn" and CheckInRequest.FromString(request.body).credentials.token:
            self.signed = request = self.signed or request
        return await super().call(request)


class Beginning(Line):
    """Begins every transfer anew."""

    async def fetch(self, request: Fetch) -> None:
        asked = FetchRequest.FromString(request.body)
        asked.offset = 0
        await super().fetch(replace(request, body=asked.SerializeToString()))

    async def upload(self, request: Upload) -> Message:
        def parts() -> Iterator[bytes]:
            header, *rest = (UploadRequest.FromString(part) for part in request.parts())
            header.header.offset = 0
            yield header.SerializeToString()
            yield from (part.SerializeToString() for part in rest)

        return await super().upload(replace(request, parts=parts))


class Unasking(Line):
    """Believes that nothing of an upload is there."""

    async def call(self, request: Call) -> Message:
        if request.method.name == "UploadStatus":
            return UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING)
        return await super().call(request)


class Insisting(Line):
    """Uploads once more when its session is over."""

    last: Upload | None = None

    async def upload(self, request: Upload) -> Message:
        self.last = request
        return await super().upload(request)

    async def call(self, request: Call) -> Message:
        if request.method.name == "FinishSession" and self.last is not None:
            await super().upload(self.last)
        return await super().call(request)


class Stubborn(Line):
    """Takes every refusal for a broken line."""

    async def call(self, request: Call) -> Message:
        try:
            return await super().call(request)
        except CallFailedError as error:
            raise CallFailedError(str(error), code="UNAVAILABLE") from error


class Strict(Line):
    """Reads only what it knows."""

    async def call(self, request: Call) -> Message:
        answer = await super().call(request)
        if len(UnknownFieldSet(answer)):
            raise CallFailedError("a field that is not known", code="DATA_LOSS")
        return answer


class Completing(Line):
    """Adds to the lists of survivors whom they leave out."""

    async def call(self, request: Call) -> Message:
        answer: Any = await super().call(request)
        if request.method.name == "Unmask" and answer.survivors:
            missing = {0, 1, 3, 4} - {*answer.survivors, *answer.dropouts}
            answer.survivors.extend(missing)
        return answer  # type: ignore[no-any-return]  # a message


class Twice(TestedDevice):
    """Takes part again at once."""

    def __call__(self, order: Order) -> None:
        super().__call__(order)
        super().__call__(order)


class Settled(Line):
    """Stays with the aggregator that it was assigned."""

    assigned = ""

    async def call(self, request: Call) -> Message:
        answer: Any = await super().call(request)
        if request.method.name == "CheckIn" and answer.HasField("assignment"):
            self.assigned = answer.assignment.aggregator
        if request.method.name == "Locate":
            answer.aggregator = self.assigned
        return answer  # type: ignore[no-any-return]  # a message


def _other_answer(request: UnmaskRequest, before: int) -> None:
    if before > 1 and request.shares:
        request.shares[1].kind = aggregator_pb2.SHARE_KIND_KEY


def _new_nonce(request: Any, before: int) -> None:
    if before:
        request.proof.credentials.nonce = os.urandom(16)


def _unproven(request: JoinRequest, _before: int) -> None:
    request.proof.credentials.ClearField("mac")


def _proven(request: FinishSessionRequest, _before: int) -> None:
    request.credentials.nonce = bytes(16)


def _other_token(request: JoinRequest, _before: int) -> None:
    request.proof.round_token += b"!"


def _other_shape(request: FinishSessionRequest, _before: int) -> None:
    request.shape = "-^"


def _train(assignment: Assignment) -> None:
    assignment.kind = coordinator_pb2.SESSION_KIND_TRAIN


def _no_spread(assignment: Assignment) -> None:
    assignment.tells_spread = False


def _no_outcomes(assignment: Assignment) -> None:
    assignment.ClearField("outcome_versions")


def _own_schedule(assignment: Assignment) -> None:
    assignment.work.ClearField("reconstruct_schedule")


def _never_clip(assignment: Assignment) -> None:
    assignment.clip_norm = 1e9


def _all_rows(assignment: Assignment) -> None:
    assignment.layout.segments[0].all_rows = True


def _own_vocabulary(assignment: Assignment) -> None:
    assignment.vocabularies.clear()


def _any_number(assignment: Assignment) -> None:
    assignment.work.minimum_examples = 0


def _others(settings: dict[str, Any]) -> None:
    settings["population"] = "others"


def _stopped_clock(settings: dict[str, Any]) -> None:
    settings["clock"] = lambda: 0.0
    settings["patience"] = Patience(longest_seconds=1.0)


def _without_chance(settings: dict[str, Any]) -> None:
    settings["entropy"] = bytes


def _newest_first(settings: dict[str, Any]) -> None:
    values = settings["examples"].values
    settings["examples"] = Columns({name: column[::-1] for name, column in values.items()})


def _unsigned(settings: dict[str, Any]) -> None:
    settings["speaker"].sign = lambda _message: bytes(64)


def _unsigned_calls(settings: dict[str, Any]) -> None:
    sign = settings["speaker"].sign
    settings["speaker"].sign = lambda said: bytes(64) if said.startswith(b"fedrecon call") else sign(said)


class _Everything(bytes):
    """Bytes that are equal to all others."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = bytes.__hash__


def _credulous(monkeypatch: pytest.MonkeyPatch) -> TestedDevice:
    monkeypatch.setattr(calling, "digest_of", lambda content: _Everything(digest_of(content)))
    return TestedDevice()


def _takes_any_key(monkeypatch: pytest.MonkeyPatch) -> TestedDevice:
    derive = key_agreement.Agreement._derive

    def instead(self: key_agreement.Agreement, *arguments: Any) -> bytes:
        try:
            return derive(self, *arguments)
        except key_agreement.BadKeyError:
            return bytes(32)

    monkeypatch.setattr(key_agreement.Agreement, "_derive", instead)
    return TestedDevice()


def _takes_any_share(monkeypatch: pytest.MonkeyPatch) -> TestedDevice:
    opened = masking.Masking._open

    def instead(self: masking.Masking, share: Any) -> tuple[bytes, bytes]:
        try:
            return opened(self, share)
        except SumRefusedError:
            return bytes(33), bytes(33)

    monkeypatch.setattr(masking.Masking, "_open", instead)
    return TestedDevice()


def _remembers_no_mask(monkeypatch: pytest.MonkeyPatch) -> TestedDevice:
    monkeypatch.setattr(masking, "add_masks", lambda *_arguments: None)
    return TestedDevice()


_no_floors = without(session, "verify_assignment")
_no_numbers = without(neighbourhood, "_check_numbers")

WRONG: Mapping[str, Make] = {
    "readable": with_line(Garbling),
    "deadlines": with_line(Endless),
    "check-in": with_settings(_others),
    "ticket": with_line(Impatient),
    "rejection": lambda _monkeypatch: Twice(),
    "session-end": with_line(Vanishing),
    "shape": speaking("FinishSession", _other_shape, FinishSessionRequest),
    "report-within": with_settings(_stopped_clock),
    "locate": with_line(Settled),
    "enrolment": with_settings(_unsigned),
    "signatures": with_settings(_unsigned_calls),
    "signed-anew": with_line(Repeating),
    "session-proofs": speaking("Join", _unproven, JoinRequest),
    "no-session-key": speaking("FinishSession", _proven, FinishSessionRequest),
    "MALFORMED_ASSIGNMENT": _no_floors,
    "UNTRUSTED_PLAN": _no_floors,
    "SECURE_SUM_REQUIRED": _no_floors,
    "GROUP_TOO_SMALL": _no_floors,
    "UNKNOWN_PROTOCOL": _no_floors,
    "TOO_FEW_CONTRIBUTORS": without(session, "verify_contributors"),
    "round-token": speaking("Join", _other_token, JoinRequest),
    "report": with_settings(_newest_first),
    "rounding": with_settings(_without_chance),
    "evaluation": hearing(_train),
    "spread": hearing(_no_spread),
    "outcomes": hearing(_no_outcomes),
    "task-settings": hearing(_own_schedule),
    "clip-norm": hearing(_never_clip),
    "row-sets": hearing(_all_rows),
    "vocabularies": hearing(_own_vocabulary),
    "unknown-fields": with_line(Strict),
    "too-few-examples": hearing(_any_number),
    "fetch-resumes": with_line(Beginning),
    "chunk-digests": without(chunks, "verify_digest"),
    "blob-digests": _credulous,
    "same-bytes": speaking("Join", _new_nonce, JoinRequest),
    "retry-window": with_line(Impatient),
    "upload-status": with_line(Unasking),
    "upload-resumes": with_line(Beginning),
    "void": with_line(Insisting),
    "too-late": with_line(Stubborn),
    "refusal": with_line(Stubborn),
    "masked-report": _remembers_no_mask,
    "masked-same-bytes": speaking("Share", _new_nonce, ShareRequest),
    "BAD_ROSTER": without(neighbourhood, "_check_members"),
    "BAD_SIGNATURE": without(neighbourhood, "verify_keys"),
    "BAD_KEY": _takes_any_key,
    "SUM_TOO_SMALL": _no_numbers,
    "GROUP_TOO_LARGE": _no_numbers,
    "TOO_FEW_NEIGHBOURS": without(masking.Masking, "_check_count"),
    "THRESHOLD_TOO_LOW": _no_numbers,
    "BAD_SHARE": _takes_any_share,
    "BAD_LISTS": with_line(Completing),
    "ANSWERED_ALREADY": speaking("Unmask", _other_answer, UnmaskRequest),
}
"""A wrong device for every rule."""
