"""Second moments beside the metric sums of an evaluation: so that a mean over users has an interval.

A device that is asked to (`Assignment.tells_spread`) appends to its metric sums, with n its query examples: n, n^2, and
for each metric m of the plan, in order, m^2 and m * n. Only their sums over a group are revealed, like all metric sums.

Rule: bounds are stated for one example and count n times (`fixed_point`), so those of products leave room for
`MOST_EXAMPLES`; a device with more is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

_SQUARED, _TIMES_EXAMPLES = ".squared", ".times_examples"
EXAMPLES = "query_examples"
EXAMPLES_SQUARED = EXAMPLES + _SQUARED
MOST_EXAMPLES = 10_000


def squared(name: str) -> str:
    """Returns the name of the sum of a metric's squares."""
    return name + _SQUARED


def times_examples(name: str) -> str:
    """Returns the name of the sum of a metric times the number of query examples."""
    return name + _TIMES_EXAMPLES


def is_spread(name: str) -> bool:
    """Returns whether a metric sum is one of these, and says nothing by itself."""
    return name == EXAMPLES or name.endswith((_SQUARED, _TIMES_EXAMPLES))


def spread_metrics(metrics: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Returns names and bounds of the sums that follow on a plan's.

    Args:
        metrics: Name and bound of each metric of the plan, in order.

    Example:
        >>> spread_metrics([("squared_error", 25.0)])[2:]
        (('squared_error.squared', 6250000.0), ('squared_error.times_examples', 250000.0))
    """
    own = [(EXAMPLES, 1.0), (EXAMPLES_SQUARED, float(MOST_EXAMPLES))]
    for name, bound in metrics:
        own += [(squared(name), bound * bound * MOST_EXAMPLES), (times_examples(name), bound * MOST_EXAMPLES)]
    return tuple(own)


def spread_sums(sums: Sequence[float], examples: int) -> tuple[float, ...]:
    """Returns what a device appends.

    Args:
        sums: Its sums of the plan's metrics, in order.
        examples: Its query examples.

    Example:
        >>> spread_sums([3.0], 2)
        (2.0, 4.0, 9.0, 6.0)
    """
    own = [float(examples), float(examples) ** 2]
    for value in sums:
        own += [value * value, value * examples]
    return tuple(own)
