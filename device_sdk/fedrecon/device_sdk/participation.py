"""How a participation ended: an answer, never an exception."""

from __future__ import annotations

from collections.abc import Callable
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
    STOPPED = "stopped"
    """The app stopped it, or the process died before: the session was given up."""
    NOT_NOW = "not now"
    """Nothing was begun: the user has opted out, another participation is under way, or a condition is not met."""


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
        ended: Unix seconds, by the device's clock; 0 where nothing was begun.
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
    ended: float = 0.0


TRANSIENT_REST_SECONDS = 15 * 60.0
"""Rest where nobody told one and the next try may do better; a fifth up or down, as large fleets of phones do."""
PERMANENT_REST_SECONDS = 4 * 3600.0
"""Rest where nobody told one and the same is likely to happen again."""
_SPREAD = 0.2
_PERMANENT = frozenset({Outcome.FAILED, Outcome.REFUSED})


def rest_after(participation: Participation, entropy: Callable[[int], bytes]) -> float:
    """Returns how long a device rests, in seconds: as it was told, else by how it ended.

    Args:
        participation: what just ended.
        entropy: gives that many random bytes: devices must not come back all at once.
    """
    if participation.retry_after_seconds is not None:
        return participation.retry_after_seconds
    rest = PERMANENT_REST_SECONDS if participation.outcome in _PERMANENT else TRANSIENT_REST_SECONDS
    fraction = int.from_bytes(entropy(4), "little") / (1 << 32)
    return rest * (1 - _SPREAD + 2 * _SPREAD * fraction)
