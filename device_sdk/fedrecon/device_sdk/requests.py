"""What the core of a participation asks its driver to do.

The core (`session`) is a generator: it yields one of these and is resumed with the answer, or with a
`CallFailedError` thrown into it. Messages are serialised once, here in the core, so a retry sends the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from fedrecon.v1.aggregator_pb2 import JoinResponse, ShareResponse, UnmaskResponse, UploadResponse, UploadStatusResponse
from fedrecon.v1.blobs_pb2 import FetchResponse
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.v1.coordinator_pb2 import CheckInResponse, FinishSessionResponse, LocateResponse
from fedrecon.v1.enrolment_pb2 import ChallengeResponse, EnrolResponse, ForgetResponse, RenewResponse
from fedrecon.v1.inference_pb2 import GetRecommenderResponse

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Answer]):
    """A call of the contract.

    Attributes:
        path: what gRPC calls it, `/package.Service/Name`.
        answer: type of its answer.
    """

    path: str
    answer: type[Answer]

    @property
    def name(self) -> str:
        """The method's own name."""
        return self.path.rpartition("/")[2]


CHALLENGE = Method("/fedrecon.v1.Enrolment/Challenge", ChallengeResponse)
ENROL = Method("/fedrecon.v1.Enrolment/Enrol", EnrolResponse)
RENEW = Method("/fedrecon.v1.Enrolment/Renew", RenewResponse)
FORGET = Method("/fedrecon.v1.Enrolment/Forget", ForgetResponse)
CHECK_IN = Method("/fedrecon.v1.Coordinator/CheckIn", CheckInResponse)
FINISH_SESSION = Method("/fedrecon.v1.Coordinator/FinishSession", FinishSessionResponse)
LOCATE = Method("/fedrecon.v1.Coordinator/Locate", LocateResponse)
JOIN = Method("/fedrecon.v1.Aggregator/Join", JoinResponse)
SHARE = Method("/fedrecon.v1.Aggregator/Share", ShareResponse)
UNMASK = Method("/fedrecon.v1.Aggregator/Unmask", UnmaskResponse)
UPLOAD_STATUS = Method("/fedrecon.v1.Aggregator/UploadStatus", UploadStatusResponse)
UPLOAD = Method("/fedrecon.v1.Aggregator/Upload", UploadResponse)
FETCH = Method("/fedrecon.v1.Blobs/Fetch", FetchResponse)
GET_RECOMMENDER = Method("/fedrecon.v1.Inference/GetRecommender", GetRecommenderResponse)


@dataclass(frozen=True, slots=True)
class Call:
    """Ask a service; the answer is its parsed message.

    Attributes:
        target: `host:port` or `unix:path`.
        method: which call.
        body: the serialised request.
        seconds: deadline of the call.
    """

    target: str
    method: Method[Any]
    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """Stream a blob from an offset; the answer is None when the stream has ended.

    Attributes:
        target: a Blobs service.
        body: the serialised `FetchRequest`.
        take: called with every chunk as it arrives; what it raises ends the stream and is thrown into the core.
        seconds: deadline of the call.
    """

    target: str
    body: bytes
    take: Callable[[Chunk], None]
    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """Stream a vector to an aggregator; the answer is its `UploadResponse`.

    Attributes:
        target: the aggregator.
        parts: gives the serialised `UploadRequest`s, header first; called once for each attempt.
        seconds: deadline of the call.
    """

    target: str
    parts: Callable[[], Iterator[bytes]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a function that may take long; the answer is what it returns.

    Attributes:
        function: takes nothing; what it raises is thrown into the core.
    """

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait; the answer is None.

    Attributes:
        seconds: how long.
    """

    seconds: float


Request = Call | Fetch | Upload | Compute | Sleep
