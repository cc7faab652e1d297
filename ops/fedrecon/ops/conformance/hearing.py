"""What a device said, written down: the only thing that rules are judged over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedrecon.v1.aggregator_pb2 import JoinRequest, ShareRequest, UnmaskRequest, UploadRequest, UploadStatusRequest
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.coordinator_pb2 import CheckInRequest, FinishSessionRequest, LocateRequest
from fedrecon.v1.enrolment_pb2 import ChallengeRequest, EnrolRequest, ForgetRequest, RenewRequest

REQUESTS: dict[str, type[Any]] = {
    "/fedrecon.v1.Enrolment/Challenge": ChallengeRequest,
    "/fedrecon.v1.Enrolment/Enrol": EnrolRequest,
    "/fedrecon.v1.Enrolment/Renew": RenewRequest,
    "/fedrecon.v1.Enrolment/Forget": ForgetRequest,
    "/fedrecon.v1.Coordinator/CheckIn": CheckInRequest,
    "/fedrecon.v1.Coordinator/FinishSession": FinishSessionRequest,
    "/fedrecon.v1.Coordinator/Locate": LocateRequest,
    "/fedrecon.v1.Blobs/Fetch": FetchRequest,
    "/fedrecon.v1.Aggregator/Join": JoinRequest,
    "/fedrecon.v1.Aggregator/Share": ShareRequest,
    "/fedrecon.v1.Aggregator/UploadStatus": UploadStatusRequest,
    "/fedrecon.v1.Aggregator/Upload": UploadRequest,
    "/fedrecon.v1.Aggregator/Unmask": UnmaskRequest,
}
"""Calls that a device makes, and the message that each brings."""


@dataclass(slots=True)
class Heard:
    """One call.

    Attributes:
        path: what gRPC calls it, `/package.Service/Method`.
        moment: seconds of the listener's clock when it began.
        seconds: its deadline from then on; None if it had none.
        parts: its messages as they came; more than one only for `Upload`.
        elsewhere: whether it came to the second address, where an aggregator may have moved.
        answered: whether it got an answer, and not a refusal or a broken line.
    """

    path: str
    moment: float
    seconds: float | None
    parts: list[bytes]
    elsewhere: bool = False
    answered: bool = False
    _request: Any = None

    @property
    def method(self) -> str:
        """The method's own name."""
        return self.path.rpartition("/")[2]

    @property
    def request(self) -> Any:
        """Its first message, parsed: the request, or what an upload begins with."""
        if self._request is None:  # one message, so that its credentials are found inside it
            self._request = REQUESTS[self.path].FromString(self.parts[0] if self.parts else b"")
        return self._request

    @property
    def proven(self) -> Any:
        """What its credentials are about: the request; for an upload its header."""
        return self.request.header if self.method == "Upload" else self.request

    @property
    def credentials(self) -> Any:
        """Its credentials; None for calls that have none."""
        holder = getattr(self.proven, "proof", self.proven)
        return holder.credentials if "credentials" in holder.DESCRIPTOR.fields_by_name else None


@dataclass(slots=True)
class Transcript:
    """What one device said in one scene, in order."""

    calls: list[Heard]

    def of(self, *methods: str) -> list[Heard]:
        """Returns the calls of some methods, in order."""
        return [call for call in self.calls if call.method in methods]

    def requests(self, method: str) -> Iterator[Any]:
        """Yields the requests of a method, parsed."""
        for call in self.of(method):
            yield call.request

    def after(self, call: Heard) -> list[Heard]:
        """Returns what was said after a call."""
        return self.calls[next(place for place, each in enumerate(self.calls) if each is call) + 1 :]
