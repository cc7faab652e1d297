"""What every protocol of summing reports is to the aggregator: phases, messages, vectors, and a sum of integers.

Rules: vectors of the contract (`fedrecon.wire.fixed_point`) are added modulo their rings whatever the protocol, since
masks cancel under that same addition; so a running sum can be kept and restored without knowing the protocol. What a
protocol decides is which phases a group goes through, who may send what in them, what may be looked at before a vector
is added, and how the running sum becomes the sum that is dequantised. Everything here is pure: no I/O, no clock, no
randomness that is not passed in.

A protocol keeps in memory what members have sent and no event holds yet: they send it again after a crash. What the
moment calls for it returns as a value (`Due`), and whoever runs the group makes it durable before anybody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Protocol

from google.protobuf.message import Message

from fedrecon.aggregator.group_events import Aborted, Closed, Phase, RosterFrozen, SharesFixed, UploadsEnded
from fedrecon.aggregator.groups import Group
from fedrecon.wire.fixed_point import TAIL_ONE, TAIL_WEIGHT, Vector


class MessageRefusedError(Exception):
    """A member's message that cannot be taken.

    Attributes:
        kind: `late`: the group is past it, or not there yet; `invalid`: it is not what the phase asks for; `differs`:
            the member has sent another one.
        reason: a stable word.
        advice: what to do.
    """

    def __init__(self, kind: Literal["late", "invalid", "differs"], reason: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.advice = advice


class InvalidReportError(ValueError):
    """A report that must not touch a sum.

    Attributes:
        reason: a stable word of the metrics: `shape`, `norm`, `weight` or `nonfinite`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DamagedSumError(Exception):
    """A sum contradicts the journal: a report is missing from it, or in it twice."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Seal a content on disk, and then record an event that names it.

    Attributes:
        content: what is sealed.
        event: makes the event of the file's digest.
    """

    content: bytes
    event: Callable[[bytes], RosterFrozen | SharesFixed]


class Unmasking(Protocol):
    """Takes the masks off a running sum; it may take seconds."""

    def __call__(self, total: Vector, executor: Executor | None = None, parts: int = 1) -> Vector:
        """Returns the sum.

        Args:
            total: the running sum; it is not changed.
            executor: does the parts of the work; None: they are done here, one after the other.
            parts: how many parts.

        Raises:
            DamagedSumError: it cannot be made.
        """
        ...


@dataclass(frozen=True, slots=True)
class Unmask:
    """Take the masks off the sum, and close the group.

    Attributes:
        work: makes the sum of the running sum.
    """

    work: Unmasking


Due = Keep | Unmask | UploadsEnded | Closed | Aborted
"""What a moment calls for."""


class SecureSum(Protocol):
    """One protocol, for one group."""

    def open(self) -> Phase:
        """Returns the phase that members find the group in."""
        ...

    def restore(self, roster: bytes, shares: bytes) -> None:
        """Takes a group up again that the journal knows.

        Args:
            roster: content of the roster's file; empty if there is none.
            shares: content of the shares' file; empty if there is none.
        """
        ...

    def can_join(self, group: Group, session: bytes) -> bool:
        """Whether a session may enter the group now, or is in it."""
        ...

    def can_report(self, group: Group, session: bytes) -> bool:
        """Whether a session's vector may be added now."""
        ...

    def receive(self, group: Group, session: bytes, message: Message, now: int) -> None:
        """Takes a member's message of a phase other than the upload; the same message again changes nothing.

        Args:
            group: its state.
            session: the member.
            message: a request of the contract.
            now: Unix milliseconds.

        Raises:
            MessageRefusedError: it cannot be taken.
        """
        ...

    def answer(self, group: Group, session: bytes, message: Message) -> Message | None:
        """Returns the answer to a message that was received; None if the group must move first.

        Raises:
            MessageRefusedError: the group went on without this member.
        """
        ...

    def due(self, group: Group, now: int, since: int, *, closing: bool) -> Due | None:
        """Returns what the moment calls for.

        Args:
            group: its state.
            now: Unix milliseconds.
            since: when its phase could first be worked on: its beginning, or the start of this process.
            closing: whether the coordinator wants no more reports.
        """
        ...

    def check(self, report: Vector) -> None:
        """Looks at a vector before it is added, as far as the protocol lets the aggregator see.

        Raises:
            InvalidReportError: it must not be added.
        """
        ...


def check_sum(total: Vector, reports: int, maximum_weight: int) -> None:
    """Raises unless ones and weights of a sum without masks are those of its reports.

    Args:
        total: the sum.
        reports: how many the journal says it holds.
        maximum_weight: largest weight of one report.

    Raises:
        DamagedSumError: they are not.
    """
    weight, ones = int(total.tail[TAIL_WEIGHT]), int(total.tail[TAIL_ONE])
    if ones != reports:
        raise DamagedSumError(f"a sum holds {ones} reports, the journal {reports}")
    if not reports <= weight <= reports * maximum_weight:
        raise DamagedSumError(f"the sum of {reports} weights is {weight}, which they cannot give")
