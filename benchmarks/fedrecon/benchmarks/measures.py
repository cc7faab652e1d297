"""The form of every benchmark's result.

`{"name", "machine", "measures": [{"name", "value", "unit", "target", "holds"}]}`: a target is a limit that was
promised, and `holds` says whether this run kept it; a measure without a target is there to compare with.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a benchmark.

    Attributes:
        name: What was measured; its unit is in the name where it has one.
        value: The figure.
        unit: Unit, or `ratio`.
        limit: What was promised, or None.
        direction: Whether the figure must stay below the limit or reach it.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    direction: Literal["below", "at least"] = "below"

    @property
    def holds(self) -> bool | None:
        """Whether the promise was kept; None where nothing was promised."""
        if self.limit is None:
            return None
        return self.value < self.limit if self.direction == "below" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        """Return the measure as JSON has it."""
        target = None if self.limit is None else f"{self.direction} {self.limit:g}"
        return {"name": self.name, "value": self.value, "unit": self.unit, "target": target, "holds": self.holds}


def result_of(name: str, measures: list[Measure]) -> dict[str, Any]:
    """Return a benchmark's result as JSON has it."""
    machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    return {"name": name, "machine": machine, "measures": [measure.as_dict() for measure in measures]}
