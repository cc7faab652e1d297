"""Drawing a cohort: a uniform sample by random priorities.

Every waiting device has one random priority; the cohort is the m devices with the smallest (bottom-k sampling, Cohen
and Kaplan 2007). The smallest of a union are among the smallest of its parts, so replicas need hand over only theirs,
in any order and more than once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A device that waits.

    Attributes:
        priority: Random, 64 bits; the same for as long as the device waits.
        device: Mark of the device; settles ties.
    """

    priority: int
    device: bytes


def merge(parts: Iterable[Iterable[Candidate]], size: int) -> tuple[Candidate, ...]:
    """Returns the sample of a union.

    Args:
        parts: Candidates, each part with at least its own `size` smallest; a device that is in several counts once,
            with its smallest priority.
        size: Candidates wanted.

    Returns:
        The `size` smallest, in order; fewer if there are fewer.

    Example:
        >>> a, b, c = (Candidate(priority, b"%d" % priority) for priority in (3, 1, 2))
        >>> [candidate.priority for candidate in merge([[a, b], [c, b]], 2)]
        [1, 2]
    """
    smallest: dict[bytes, Candidate] = {}
    for part in parts:
        for candidate in part:
            known = smallest.get(candidate.device)
            if known is None or candidate < known:
                smallest[candidate.device] = candidate
    return tuple(heapq.nsmallest(size, smallest.values()))
