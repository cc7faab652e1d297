"""How a round is spread over aggregators: which share of its devices and reports each one gets.

Rules: pure functions. Sum groups are what is spread, and they stay as large as on one aggregator: a round that needs
one group has one part. A session belongs to one part, for good, so that no report can be in two.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.wire.sum_context import expected_members, groups_needed


@dataclass(frozen=True, slots=True)
class PartSize:
    """What one part of an attempt is for.

    Attributes:
        cohort_size: Devices that it is opened for.
        report_goal: Reports wanted of it.
    """

    cohort_size: int
    report_goal: int


def part_sizes(whole: PartSize, maximum_reports: int, aggregators: int, *, is_masked: bool) -> tuple[PartSize, ...]:
    """Returns the parts of an attempt, at most one for each aggregator.

    Args:
        whole: What the attempt is for.
        maximum_reports: Most reports of one group.
        aggregators: How many take groups.
        is_masked: Whether a group is for reports that are wanted, not for all that are assigned.

    Example:
        >>> part_sizes(PartSize(130, 100), 50, 2, is_masked=False)
        (PartSize(cohort_size=87, report_goal=67), PartSize(cohort_size=43, report_goal=33))
        >>> part_sizes(PartSize(130, 100), 1_000, 2, is_masked=False)
        (PartSize(cohort_size=130, report_goal=100),)
    """
    groups = _groups_of(whole, maximum_reports, is_masked=is_masked)
    for parts in range(min(aggregators, groups), 1, -1):
        shares = [groups // parts + (number < groups % parts) for number in range(parts)]
        goals = _split(whole.report_goal, shares)
        spares = _split(whole.cohort_size - whole.report_goal, shares)  # apart: no part is short of its goal
        sizes = tuple(PartSize(goal + spare, goal) for goal, spare in zip(goals, spares, strict=True))
        if [_groups_of(size, maximum_reports, is_masked=is_masked) for size in sizes] == shares:
            return sizes  # else the spare members, or what was rounded, would make more groups, and smaller ones
    return (whole,)


def places(sizes: tuple[PartSize, ...], count: int) -> tuple[int, ...]:
    """Returns the part of each of so many devices: alike in turn, in proportion to what the parts are for.

    Args:
        sizes: The parts.
        count: Devices that were drawn, at most as many as all parts are for.

    Example:
        >>> places((PartSize(4, 3), PartSize(2, 1)), 5)
        (0, 1, 0, 0, 1)
    """
    turns = sorted(
        ((turn + 0.5) / size.cohort_size, number)
        for number, size in enumerate(sizes)
        for turn in range(size.cohort_size)
    )
    return tuple(number for _, number in turns[:count])


def _groups_of(size: PartSize, maximum_reports: int, *, is_masked: bool) -> int:
    goal = size.report_goal if is_masked else 0
    return groups_needed(expected_members(size.cohort_size, goal), maximum_reports)


def _split(total: int, shares: list[int]) -> list[int]:
    """Returns a number in parts, in proportion to shares."""
    ends = [round(total * sum(shares[: number + 1]) / sum(shares)) for number in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
