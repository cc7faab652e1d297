"""What left the device: a line for every message, with what it could reveal.

The receipt is written where messages are made, so nothing leaves without a line; a message that is sent again because
its answer was lost has a line for each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.coordinator_pb2 import Assignment

REVEALS = {
    "Challenge": "that the owner of this device's public key is about to enrol",
    "Enrol": "that this device holds its key; and what the app's platform says of the device, where that is asked for",
    "Renew": "that this device is still there",
    "Forget": "that this device's key shall be forgotten",
    "CheckIn": "this device's public key, its population and SDK version, what the app insists on; no example",
    "Fetch": "that this device runs this plan, checkpoint or recommender: the same for every device of the round, or "
    "for all those that a version is served to",
    "Join": "that this session has a report ready",
    "Share": "nothing by itself: parts of two one-time secrets, sealed so that only other devices can open them",
    "Unmask": "nothing by itself: for each neighbour in the group, what lets the sum of the group be read",
    "UploadStatus": "that this session is about to upload, or goes on with it",
    "Locate": "that this session could not reach the aggregator that it reports to",
    "FinishSession": "how the session ended and which steps it went through",
    "GetRecommender": "that this device wants what is served: the same for every device",
}
_TRUSTED_UPDATE = (
    "the update in clear, readable by the aggregator: which rows it changes tells which items the examples name, and "
    "the update of a matrix factorisation reveals the user vector, up to its scale; besides, the clipped number of "
    "query examples and the metric sums over them"
)
_TRUSTED_METRICS = "the clipped number of query examples and the metric sums over them, readable by the aggregator"
_MASKED = "nothing by itself: the vector is masked; the sum of its group is revealed to the aggregator"


def reveals_of_upload(assignment: Assignment) -> str:
    """Returns what the report of an assignment could reveal."""
    if assignment.secure_sum.protocol != task_pb2.SUM_PROTOCOL_TRUSTED:
        revealed = _MASKED
    else:
        is_evaluation = assignment.kind == coordinator_pb2.SESSION_KIND_EVALUATE
        revealed = _TRUSTED_METRICS if is_evaluation else _TRUSTED_UPDATE
    if assignment.kind == coordinator_pb2.SESSION_KIND_EVALUATE and assignment.outcome_versions:
        versions = ", ".join(map(str, assignment.outcome_versions))
        revealed += f"; besides, how many recommendations of version {versions} were shown and how many of them chosen"
    if not assignment.row_sets:
        return revealed
    return f"{revealed}; of {', '.join(sorted(assignment.row_sets))} it holds the rows of a public set only"


@dataclass(frozen=True, slots=True)
class Departure:
    """One message that left the device, or was tried to be sent.

    Attributes:
        message: the call's name.
        bytes: its length, without the transport's own.
        digest: SHA-256 of the message, hexadecimal; of an upload, of the whole vector.
        recipient: target it was sent to.
        unix_milliseconds: when.
        reveals: what it could reveal about the user.
    """

    message: str
    bytes: int
    digest: str
    recipient: str
    unix_milliseconds: int
    reveals: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that left the device in one participation.

    Attributes:
        departures: in the order in which they left.
    """

    departures: tuple[Departure, ...] = ()

    @property
    def bytes(self) -> int:
        """Length of all messages together."""
        return sum(departure.bytes for departure in self.departures)

    def __iter__(self) -> Iterator[Departure]:
        return iter(self.departures)

    def __len__(self) -> int:
        return len(self.departures)

    def __str__(self) -> str:
        if not self.departures:
            return "nothing left the device"
        lines = []
        for departure in self.departures:
            moment = datetime.fromtimestamp(departure.unix_milliseconds / 1000, UTC).isoformat(timespec="seconds")
            lines.append(
                f"{moment} {departure.message} to {departure.recipient}: {departure.bytes} bytes, "
                f"SHA-256 {departure.digest[:16]}; reveals {departure.reveals}"
            )
        return "\n".join(lines)
