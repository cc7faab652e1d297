"""What sums of metrics say for people: one number and its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedrecon.wire.outcomes import is_outcome
from fedrecon.wire.spread import is_spread

_EXAMPLES = "examples"
_SQUARED = "squared_error"


@dataclass(frozen=True, slots=True)
class Quality:
    """A number that tells how good a checkpoint is.

    Attributes:
        name: What it is, for people.
        value: The number.
    """

    name: str
    value: float


def quality_of(sums: Mapping[str, float], weight: float = 0.0) -> Quality | None:
    """Return the RMSE of those whose sums these are, else the mean of the first other sum; None without any.

    Args:
        sums: Metric sums by name.
        weight: Sum of weights, for sums that do not count their examples.

    Example:
        >>> quality_of({"squared_error": 8.0, "examples": 2.0})
        Quality(name='RMSE', value=2.0)
        >>> quality_of({"hits": 3.0}, weight=6)
        Quality(name='hits', value=0.5)
    """
    examples = sums.get(_EXAMPLES) or weight
    if not examples:
        return None
    if _SQUARED in sums:
        return Quality("RMSE", math.sqrt(max(sums[_SQUARED], 0.0) / examples))
    name = min((name for name in sums if name != _EXAMPLES and not (is_spread(name) or is_outcome(name))), default=None)
    return None if name is None else Quality(name, sums[name] / examples)
