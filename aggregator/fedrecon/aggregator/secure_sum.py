"""What every protocol of summing reports is to the aggregator: phases, messages, vectors, and a sum of integers.

Rules: vectors of the contract (`fedrecon.wire.fixed_point`) are added modulo their rings whatever the protocol, since
masks cancel under that same addition; so a running sum can be kept and restored without knowing the protocol. What a
protocol decides is which phases a group goes through, what may be looked at before a vector is added, and how the
running sum becomes the sum that is dequantised. Everything here is pure: no I/O, no clock, no randomness that is not
passed in.
"""

from __future__ import annotations

from typing import Protocol

from fedrecon.aggregator.group_events import Phase
from fedrecon.wire.fixed_point import TAIL_ONE, TAIL_WEIGHT, Vector


class WrongPhaseError(Exception):
    """The protocol has no such message, or not now."""


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


class SecureSum(Protocol):
    """One protocol, for one group."""

    def open(self) -> Phase:
        """Returns the phase that members find the group in."""
        ...

    def receive(self, phase: Phase, session: bytes, message: bytes) -> bytes:
        """Takes a member's message of a phase other than the upload.

        Args:
            phase: JOINING, SHARING or UNMASKING.
            session: the member.
            message: the serialised request.

        Returns:
            The serialised response.

        Raises:
            WrongPhaseError: the protocol has no such message, or not now.
        """
        ...

    def check(self, report: Vector) -> None:
        """Looks at a vector before it is added, as far as the protocol lets the aggregator see.

        Raises:
            InvalidReportError: it must not be added.
        """
        ...

    def close(self, total: Vector, reports: int) -> Vector:
        """Returns the integers of the sum, without masks.

        Args:
            total: the vectors of all acknowledged reports, added modulo the rings.
            reports: how many the journal says they are.

        Raises:
            DamagedSumError: the sum of the ones is another number, or the weights cannot be theirs.
            WrongPhaseError: messages that unmask the sum are missing.
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
