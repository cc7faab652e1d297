"""A session that has not ended, as it lies on disk: what a process that died leaves to the next one.

It is written before the session does anything, again before its keys go to a sum group, and when the report is
acknowledged; it goes when the session ends. Neither seeds nor the keys of masks are in it: a session that may have
joined a masked group is given up, not resumed, since masking two vectors with one mask would reveal both. Its round
token and session key are secrets: only the owner reads the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from google.protobuf.message import DecodeError

from fedrecon.v1 import task_pb2
from fedrecon.v1.coordinator_pb2 import Assignment

BEGUN, JOINING, ACKNOWLEDGED = "begun", "joining", "acknowledged"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A session that has not ended.

    Attributes:
        assignment: what is asked, serialised, with its secrets.
        began: Unix seconds at which the assignment came.
        progress: `BEGUN`, `JOINING` or `ACKNOWLEDGED`.
        group: the sum group, once it is known.
        aggregator: the group's aggregator.
        retry_milliseconds: the window told with the assignment.
    """

    assignment: bytes
    began: float
    progress: str = BEGUN
    group: bytes = b""
    aggregator: str = ""
    retry_milliseconds: tuple[int, int] = (0, 0)

    def read_assignment(self) -> Assignment:
        """Returns what is asked."""
        return Assignment.FromString(self.assignment)

    def seconds_left(self, now: float) -> float:
        """Returns how long the report is waited for; none are left where the clock was turned back.

        Args:
            now: Unix seconds.
        """
        allowed = self.read_assignment().report_within_milliseconds / 1000
        return self.began + allowed - now if now >= self.began else 0.0

    def can_resume(self, now: float) -> bool:
        """Whether the work may be done again from its beginning."""
        is_trusted = self.read_assignment().secure_sum.protocol == task_pb2.SUM_PROTOCOL_TRUSTED
        return self.seconds_left(now) > 0 and (is_trusted or self.progress == BEGUN)

    def after(self, progress: str, group: bytes = b"", aggregator: str = "") -> Unfinished:
        """Returns the session a step further."""
        return replace(self, progress=progress, group=group or self.group, aggregator=aggregator or self.aggregator)

    def to_bytes(self) -> bytes:
        """Returns the file's content."""
        text = asdict(self) | {"assignment": self.assignment.hex(), "group": self.group.hex()}
        return json.dumps(text).encode()


def read_unfinished(content: bytes) -> Unfinished | None:
    """Returns what a file says; None if it cannot be read."""
    try:
        told = json.loads(content)
        unfinished = Unfinished(
            bytes.fromhex(told["assignment"]),
            float(told["began"]),
            str(told["progress"]),
            bytes.fromhex(told["group"]),
            str(told["aggregator"]),
            (int(told["retry_milliseconds"][0]), int(told["retry_milliseconds"][1])),
        )
        unfinished.read_assignment()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, DecodeError):
        return None
    return unfinished
