"""What devices say of themselves, as labels of metrics: few, whatever devices say.

A label of a metric costs memory for good, and devices may say anything. So shapes that no session has, and versions
that are none or come after the first thirty, all have the label `other`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedrecon.coordinator.population import Census
from fedrecon.coordinator.specs import parse_version

OTHER = "other"
_STEPS = "-v[]+^"
_ENDS = ("", "!", "#")
SHAPES = frozenset(_STEPS[:count] + end for count in range(1, len(_STEPS) + 1) for end in _ENDS)
MOST_VERSIONS = 30


def shape_label(shape: str) -> str:
    """Returns the label of a session's shape.

    Example:
        >>> shape_label("-v[]+^"), shape_label("-v[!"), shape_label("^^^^")
        ('-v[]+^', '-v[!', 'other')
    """
    return shape if shape in SHAPES else OTHER


@dataclass(slots=True, eq=False)
class Versions:
    """How many devices run which version of the SDK: one that changes it counts for both, for two days at most."""

    _censuses: dict[str, Census] = field(default_factory=dict)

    def note(self, version: str, number: int, now: int) -> tuple[str, Census]:
        """Notes a call, and returns the version's label and its devices.

        Args:
            version: What the device says.
            number: Hash of the device.
            now: Unix milliseconds.
        """
        parsed = parse_version(version)
        label = OTHER if parsed is None else ".".join(map(str, parsed))
        if label not in self._censuses and len(self._censuses) >= MOST_VERSIONS:
            label = OTHER
        census = self._censuses.setdefault(label, Census())
        census.note(number, now)
        return label, census
