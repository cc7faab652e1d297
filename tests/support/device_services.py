"""Services played by hand: every answer is scripted, nothing waits and nothing is sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from numpy.typing import NDArray

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.requests import Call, Compute, Fetch, Sleep, Upload
from fedrecon.device_sdk.session import Circumstances, Ending, take_part
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import (
    JoinRequest,
    JoinResponse,
    UploadRequest,
    UploadResponse,
    UploadStatusRequest,
    UploadStatusResponse,
)
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.common_pb2 import RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    CheckInResponse,
    FinishSessionRequest,
    FinishSessionResponse,
    LocateRequest,
    LocateResponse,
)
from fedrecon.wire import chunks
from fedrecon.wire.digests import digest_of
from support import device_bundle as bundle

PUBLISHER = bundle.PUBLISHER.public_key().public_bytes_raw().hex()
WINDOWS = RetryWindows(
    accepted=RetryWindow(min_milliseconds=1000, max_milliseconds=3000),
    rejected=RetryWindow(min_milliseconds=10_000, max_milliseconds=20_000),
)
LOST = CallFailedError("connection reset", code="UNAVAILABLE")


class Examples:
    """Seven ratings, one of them of an unknown film."""

    def count(self) -> int:
        return 7

    def columns(self) -> Mapping[str, NDArray[Any]]:
        keys = ["film-4", "film-1", "film-9", "film-0", "film-1", "film-2", "film-4"]
        return {"item": np.array(keys), "rating": np.array([5, 1, 2, 3, 4, 0.5, 1])}


class Services:
    """Plays coordinator, blob store and aggregator; `lose` names calls whose answers are lost, in order."""

    def __init__(
        self,
        plan: Any,
        assignment: Assignment,
        lose: Sequence[str] = (),
        refuse: Mapping[str, CallFailedError] | None = None,
    ) -> None:
        self.plan = plan
        self.assignment = assignment
        self.lose = list(lose)
        self.refuse = refuse or {}
        self.now = 0.0
        self.calls: list[tuple[str, bytes]] = []
        self.received = bytearray()
        self.acknowledged = False
        self.upload_breaks_at: int | None = None
        self.fetch_breaks_at: int | None = None
        self.damaged: dict[bytes, bytes] = {}
        self.check_ins = [CheckInResponse(assignment=assignment, retry_windows=WINDOWS, minimum_examples=2)]
        self.finish = FinishSessionResponse(fate=coordinator_pb2.REPORT_FATE_PENDING, retry_windows=WINDOWS)
        self.finished = FinishSessionRequest()
        self.found = assignment.aggregator
        self.gone: dict[str, CallFailedError] = {}
        self.reached: list[tuple[str, str]] = []
        self.sleeps: list[float] = []
        self.sent: list[bytes] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def bodies(self, wanted: str) -> list[bytes]:
        return [body for name, body in self.calls if name == wanted]

    def answer(self, request: Any) -> Any:
        match request:
            case Compute():
                return request.function()
            case Sleep():
                self.sleeps.append(request.seconds)
                self.now += request.seconds
                return None
            case Fetch():
                return self.fetch(request)
            case Upload():
                return self.upload(request)
            case Call():
                return self.call(request)
        raise AssertionError(request)

    def call(self, request: Any) -> Message:
        name = request.method.name
        self.reached.append((name, request.target))
        if request.target in self.gone:
            raise self.gone[request.target]
        self.calls.append((name, request.body))
        self.sent.append(request.body)
        self.now += 0.01
        if name in self.refuse:
            raise self.refuse[name]
        answer: Message = getattr(self, name)(request.body)
        if name in self.lose:  # the service acted, the device never hears of it
            self.lose.remove(name)
            raise LOST
        return answer

    def CheckIn(self, body: bytes) -> CheckInResponse:  # noqa: N802
        CheckInRequest.FromString(body)
        return self.check_ins.pop(0) if len(self.check_ins) > 1 else self.check_ins[0]

    def FinishSession(self, body: bytes) -> FinishSessionResponse:  # noqa: N802
        self.finished = FinishSessionRequest.FromString(body)
        return self.finish

    def Locate(self, body: bytes) -> LocateResponse:  # noqa: N802
        assert LocateRequest.FromString(body).round_token == b"a round token"
        return LocateResponse(aggregator=self.found)

    def Join(self, body: bytes) -> JoinResponse:  # noqa: N802
        assert JoinRequest.FromString(body).proof.round_token == b"a round token"
        return JoinResponse(group=b"g" * 16, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def UploadStatus(self, body: bytes) -> UploadStatusResponse:  # noqa: N802
        assert UploadStatusRequest.FromString(body).group == b"g" * 16
        return UploadStatusResponse(
            phase=aggregator_pb2.GROUP_PHASE_UPLOADING,
            received_bytes=len(self.received),
            acknowledged=self.acknowledged,
        )

    def fetch(self, request: Any) -> None:
        self.reached.append(("Fetch", request.target))
        if request.target in self.gone:
            raise self.gone[request.target]
        question = FetchRequest.FromString(request.body)
        self.calls.append(("Fetch", request.body))
        self.sent.append(request.body)
        if "Fetch" in self.refuse:
            raise self.refuse["Fetch"]
        content = self.damaged.get(question.digest, self.plan.blobs[question.digest])
        for chunk in chunks.cut(content, question.offset, size=100):
            if self.fetch_breaks_at is not None and chunk.offset >= self.fetch_breaks_at:
                self.fetch_breaks_at = None
                raise LOST
            request.take(chunk)

    def upload(self, request: Any) -> UploadResponse:
        self.reached.append(("Upload", request.target))
        if request.target in self.gone:
            raise self.gone[request.target]
        self.calls.append(("Upload", b""))
        parts = [UploadRequest.FromString(part) for part in request.parts()]
        self.sent.extend(request.parts())
        assert parts[0].header.offset == len(self.received)
        if "Upload" in self.refuse:
            raise self.refuse["Upload"]
        for part in parts[1:]:
            data = chunks.take(part.chunk, len(self.received), parts[0].header.size)
            if self.upload_breaks_at is not None:
                self.received.extend(data[: self.upload_breaks_at])
                self.upload_breaks_at = None
                raise LOST
            self.received.extend(data)
        assert digest_of(self.received) == parts[0].header.digest
        self.acknowledged = True
        if "Upload" in self.lose:
            self.lose.remove("Upload")
            raise LOST
        return UploadResponse(digest=parts[0].header.digest, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)


DEVICE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def circumstances(services: Services, **changes: Any) -> Circumstances:
    settings: dict[str, Any] = {
        "population": "films",
        "floors": read_floors([PUBLISHER], "allowed", 5),
        "speaker": Speaker("coordinator:1", public_bytes(DEVICE_KEY), DEVICE_KEY.sign),
        "examples": Examples(),
        "minimum_examples": 0,
        "cache": BlobCache(),
        "entropy": lambda count: bytes([7]) * count,
        "clock": lambda: services.now,
        "wall_clock": lambda: 1_700_000_000 + services.now,
        "patience": Patience(attempts=4, session_attempts=8),
    }
    return Circumstances(**(settings | changes))


def play(services: Services, **changes: Any) -> Ending:
    core = take_part(circumstances(services, **changes))
    try:
        request = next(core)
        while True:
            try:
                answer = services.answer(request)
            except Exception as error:  # noqa: BLE001
                request = core.throw(error)
            else:
                request = core.send(answer)
    except StopIteration as end:
        ending: Ending = end.value
        return ending
