"""The protocol `trusted`: the aggregator sees every report, checks it, and adds it.

For tests, enclaves and deployments whose devices trust the aggregator: one report of a matrix factorisation reveals
the local parameters behind it, and whoever chooses this protocol is told so. There are no keys: a group is in
UPLOADING at once, and all checks that a device makes on its own report are made again here.
"""

from __future__ import annotations

import math

import numpy as np
from google.protobuf.message import Message

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import Aborted, Closed, Phase
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.secure_sum import InvalidReportError, MessageRefusedError
from fedrecon.v1.aggregator_pb2 import GroupPhase, JoinRequest, JoinResponse
from fedrecon.wire.fixed_point import METRIC_SCALE, TAIL_METRICS, TAIL_ONE, TAIL_WEIGHT, FixedPoint, Vector

_PIECE_ELEMENTS = 1 << 16
"""Of a report, copied at once: a whole copy of each would be as large as the report."""


class TrustedSum:
    """A sum whose parts the aggregator sees. See `SecureSum` for the methods.

    Args:
        fixed_point: the group's agreement on integers.
    """

    def __init__(self, fixed_point: FixedPoint) -> None:
        self._fixed_point = fixed_point

    def open(self) -> Phase:
        """Returns UPLOADING: there is nothing to agree on before."""
        return Phase.UPLOADING

    def restore(self, roster: bytes, shares: bytes) -> None:
        """Does nothing: all that there is stands in the journal."""

    def can_join(self, group: Group, session: bytes) -> bool:
        """Returns whether the group takes reports: joining says no more."""
        del session
        return group.phase is Phase.UPLOADING

    def can_report(self, group: Group, session: bytes) -> bool:
        """Returns whether the group takes reports."""
        del session
        return group.phase is Phase.UPLOADING

    def receive(self, group: Group, session: bytes, message: Message, now: int) -> None:
        """Takes nothing but a device that enters without keys.

        Raises:
            MessageRefusedError: it brings keys, or the message belongs to a masked protocol.
        """
        del group, session, now
        if not isinstance(message, JoinRequest):
            raise MessageRefusedError(
                "late", "WRONG_PHASE", "under `trusted` a device joins, then uploads", "Follow the phase of the answer."
            )
        if message.share_key or message.mask_key or message.key_signature:
            raise MessageRefusedError(
                "late",
                "NOT_MASKED",
                "The device brings keys for masks, but reports of this round are summed in the clear",
                "Refuse the assignment: it is weaker than what the app insists on.",
            )

    def answer(self, group: Group, session: bytes, message: Message) -> Message:
        """Returns where the device uploads to."""
        del session, message
        return JoinResponse(group=group.group, phase=GroupPhase.ValueType(group.phase))

    def due(self, group: Group, now: int, since: int, *, closing: bool) -> Closed | Aborted | None:
        """Returns the group's end once the coordinator asks for it."""
        del since
        return groups.end(group, now, discard=False) if closing else None

    def check(self, report: Vector) -> None:
        """Raises unless the report is one that `fedrecon.wire.fixed_point.quantise` can give.

        Raises:
            InvalidReportError: an integer is beyond its bound.
        """
        weight, one = int(report.tail[TAIL_WEIGHT]), int(report.tail[TAIL_ONE])
        if not 1 <= weight <= self._fixed_point.maximum_weight:
            raise InvalidReportError(
                "weight", f"the report's weight is {weight}; allowed are 1 to {self._fixed_point.maximum_weight}"
            )
        if one != 1:
            raise InvalidReportError("shape", f"the report counts itself {one} times; it must be once")
        self._check_metrics(report, weight)
        limit = self._fixed_point.quantum_limit
        signed = report.body.view(np.dtype(f"<i{self._fixed_point.ring_bits // 8}"))
        if signed.size and (int(signed.max()) > limit or int(signed.min()) < -limit):
            position = int(np.argmax((signed > limit) | (signed < -limit)))
            raise InvalidReportError(
                "norm", f"element {position} of the report is {int(signed[position])}; the bound is {limit}"
            )

    def norm_of(self, report: Vector) -> float:
        """Returns the Euclidean norm of the update that a checked report holds: of each parameter, without weight."""
        signed = report.body.view(np.dtype(f"<i{self._fixed_point.ring_bits // 8}"))
        squares, start = 0.0, 0
        for segment, scale in zip(self._fixed_point.segments, self._fixed_point.scales(), strict=True):
            end = start + segment.elements
            for piece in range(start, end, _PIECE_ELEMENTS):
                part = signed[piece : min(piece + _PIECE_ELEMENTS, end)].astype(np.float32)
                squares += float(np.dot(part, part)) / float(scale) ** 2
            start = end
        return math.sqrt(squares) / int(report.tail[TAIL_WEIGHT])

    def _check_metrics(self, report: Vector, weight: int) -> None:
        # Below the clip the weight is the number of examples; at the clip there may be any number of them, and only
        # the room that the sum of all reports has is a bound.
        room = self._fixed_point.metric_limit
        clipped = weight == self._fixed_point.maximum_weight
        entries = report.tail[TAIL_METRICS:].view("<i8").tolist()
        for number, (entry, bound) in enumerate(zip(entries, self._fixed_point.metric_bounds, strict=True)):
            limit = room if clipped else min(room, round(weight * bound * METRIC_SCALE))
            if abs(entry) > limit:
                raise InvalidReportError(
                    "norm",
                    f"metric sum {number} of the report is {entry / METRIC_SCALE}; "
                    f"{weight} examples give at most {limit / METRIC_SCALE}",
                )
