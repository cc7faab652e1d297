"""How a participation ended: an answer, never an exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fedrecon.device_sdk.receipts import Receipt


class Outcome(Enum):
    """How a participation ended."""

    UPLOADED = "uploaded"
    """The report was acknowledged: it is durable, and counts once if its group closes."""
    REJECTED = "rejected"
    """The device was not drawn this time: come back within the retry window."""
    TOO_FEW_EXAMPLES = "too few examples"
    """There is too little to learn from; nothing was reported."""
    REFUSED = "refused"
    """The device refused an assignment below what the app insists on; nothing was computed."""
    TOO_LATE = "too late"
    """The round ended before the report was acknowledged."""
    FAILED = "failed"
    """The plan failed here, or a service refused; nothing was counted."""
    UNREACHABLE = "unreachable"
    """A service did not answer."""


class Fate(Enum):
    """What became of a report, as far as the coordinator knew at the end."""

    NONE = "none"
    PENDING = "pending"
    COUNTED = "counted"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Participation:
    """How one participation ended, and what left the device.

    Attributes:
        outcome: how it ended.
        reason: stable word for programs, for example `FULL` or `ROUND_CLOSED`; empty after an upload.
        message: the same for people, with advice.
        retry_after_seconds: when to take part again: drawn uniformly from the coordinator's window; None if the
            coordinator told no window.
        task: name of the task; empty without an assignment, as are the next four.
        round: number of the round.
        attempt: attempt of that round.
        session: id of the session, hexadecimal.
        shape: one character for each step of the session, as it was told to the coordinator.
        fate: what became of the report.
        examples: query examples behind the report.
        unknown_keys: keys of the examples that the model does not know; they were left out.
        receipt: all that left the device.
    """

    outcome: Outcome
    reason: str = ""
    message: str = ""
    retry_after_seconds: float | None = None
    task: str = ""
    round: int = 0
    attempt: int = 0
    session: str = ""
    shape: str = ""
    fate: Fate = Fate.NONE
    examples: int = 0
    unknown_keys: tuple[str, ...] = ()
    receipt: Receipt = field(default_factory=Receipt, repr=False)
