"""Sessions counted by what apps tell of their devices, so that a difference in drop-out between kinds is seen.

Rules: kinds are words of the contract, and each is counted by itself, never crossed with another. A count moves only in
steps of `SHOWN_TOGETHER` sessions, so no two looks at it differ by fewer: when a single device has ended its session is
not to be seen in it. Nothing is kept: counts begin anew with the process, and what has not made a step yet is lost.
Whoever vanishes tells nothing: such sessions are missing here, and are in the drop-out of the round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fedrecon.coordinator.round_events import Outcome
from fedrecon.v1.coordinator_pb2 import Activity, DeviceClass, DeviceKind

SHOWN_TOGETHER = 20
"""Sessions that are shown together: as many as the smallest group that an app joins by default."""

DEVICE_CLASSES = ("low", "middle", "high")
ACTIVITIES = ("few", "some", "many")
ENDS = ("reported", "not_reported")

Cell = tuple[str, str, str]
"""What is told (`device_class` or `activity`), its word, and how the session ended."""


class Kinds:
    """Gathers sessions until enough of them can be shown together."""

    def __init__(self) -> None:
        self._gathered: Counter[Cell] = Counter()

    def note(self, kind: DeviceKind, outcome: Outcome) -> Iterator[Cell]:
        """Notes a session, and yields the cells that move by `SHOWN_TOGETHER` now.

        Args:
            kind: What its device tells; what is not told, or by words of another version, is not counted.
            outcome: How it ended.
        """
        end = ENDS[0] if outcome is Outcome.UPLOADED else ENDS[1]
        for what, word in _words(kind):
            cell = what, word, end
            self._gathered[cell] += 1
            if self._gathered[cell] == SHOWN_TOGETHER:
                del self._gathered[cell]
                yield cell


def _words(kind: DeviceKind) -> Iterator[tuple[str, str]]:
    if kind.device_class in DeviceClass.values() and kind.device_class:
        yield "device_class", DeviceClass.Name(kind.device_class).removeprefix("DEVICE_CLASS_").lower()
    if kind.activity in Activity.values() and kind.activity:
        yield "activity", Activity.Name(kind.activity).removeprefix("ACTIVITY_").lower()
