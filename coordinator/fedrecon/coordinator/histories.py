"""How rounds went over a task's life, for charts: one line of figures for each round, read from the journal once.

Rules: a round that was committed never changes, so its figures are kept in memory (about half a kilobyte each) and the
journal is asked only for those that came since. What a chart cannot show apart is added up: a point stands for
neighbouring rounds, so that ten thousand rounds are as quick to draw as a hundred.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from fedrecon.coordinator import ledger
from fedrecon.coordinator.ledger import RoundAt
from fedrecon.coordinator.messages import round_message
from fedrecon.ops.journal import Journal
from fedrecon.v1 import admin_pb2
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_EVALUATE

_READ_AT_ONCE = 100
"""Rounds that are asked for before the first has come: they share round trips, and others get their turn between."""


class Histories:
    """Reads the histories of tasks.

    Args:
        journal: Where rounds are kept.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[str, list[admin_pb2.HistoryPoint]] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, name: str, committed: int) -> Sequence[admin_pb2.HistoryPoint]:
        """Returns a point for each round, oldest first, and one for the attempts of the next that were abandoned.

        Args:
            name: The task.
            committed: Rounds that it has committed.
        """
        async with self._reading[name]:  # who asks meanwhile need not read the same
            known = self._known.setdefault(name, [])
            del known[committed:]  # a journal that went back knows fewer
            while len(known) < committed:
                numbers = range(len(known) + 1, min(len(known) + _READ_AT_ONCE, committed) + 1)
                known += await asyncio.gather(*(self._figures(name, number) for number in numbers))
        under_way = await self._figures(name, committed + 1)
        return [*known[:committed], under_way] if under_way.abandoned else known[:committed]

    async def _figures(self, name: str, number: int) -> admin_pb2.HistoryPoint:
        return figures_of(number, messages_of(await ledger.load_round(self._journal, name, number)))


def messages_of(found: RoundAt) -> list[admin_pb2.Round]:
    """Returns the attempts of a round as operators see them, also of one of which only a summary is left."""
    if found.summary is not None:
        return found.summary.messages
    return [round_message(attempt) for attempt in found.attempts]


def figures_of(number: int, attempts: Sequence[admin_pb2.Round]) -> admin_pb2.HistoryPoint:
    """Returns what one round came to.

    Args:
        number: The round.
        attempts: Its attempts.
    """
    point = admin_pb2.HistoryPoint(first_round=number, last_round=number)
    for each in attempts:
        point.ended_unix_milliseconds = max(point.ended_unix_milliseconds, each.ended_unix_milliseconds)
        if each.phase == admin_pb2.ROUND_PHASE_ABANDONED:
            point.abandoned += 1
        elif each.phase == admin_pb2.ROUND_PHASE_COMMITTED:
            point.committed += 1
            point.milliseconds += max(each.ended_unix_milliseconds - each.opened_unix_milliseconds, 0)
            point.report_goal += each.report_goal
            point.assigned += each.assigned
            point.counted += each.counted
            sums = point.evaluation if each.kind == SESSION_KIND_EVALUATE else point.training
            sums.rounds += 1
            sums.weight += each.weight
            sums.metric_sums.update(each.metric_sums)
    return point


def points_of(figures: Sequence[admin_pb2.HistoryPoint], most: int) -> list[admin_pb2.HistoryPoint]:
    """Returns at most so many points, each of equally many neighbouring rounds, the last of fewer.

    Args:
        figures: One for each round, oldest first.
        most: Points, at least 1.
    """
    width = -(-len(figures) // most) or 1
    return [_together(figures[first : first + width]) for first in range(0, len(figures), width)]


def _together(figures: Sequence[admin_pb2.HistoryPoint]) -> admin_pb2.HistoryPoint:
    point = admin_pb2.HistoryPoint(first_round=figures[0].first_round, last_round=figures[-1].last_round)
    point.ended_unix_milliseconds = max(each.ended_unix_milliseconds for each in figures)
    for each in figures:
        for name in ("committed", "abandoned", "milliseconds", "report_goal", "assigned", "counted"):
            setattr(point, name, getattr(point, name) + getattr(each, name))
        for sums, more in ((point.training, each.training), (point.evaluation, each.evaluation)):
            sums.rounds += more.rounds
            sums.weight += more.weight
            for name, total in more.metric_sums.items():
                sums.metric_sums[name] += total
    return point
