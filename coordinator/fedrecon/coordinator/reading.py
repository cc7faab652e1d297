"""Tasks and rounds for whoever only looks on: read once, then only what is new.

A task's stream grows with every round (ten thousand rounds are 0.15 s of replay), and a watcher looks twice a second.

Rules: what is kept is what the journal held at some moment, and every reading asks for what came after it; if that was
condensed meanwhile, the whole is read again. Of a task's rounds only the two newest are kept.
"""

from __future__ import annotations

from fedrecon.coordinator import ledger
from fedrecon.coordinator.entries import RECOMMENDERS_STREAM, TASK_STREAM, round_stream
from fedrecon.coordinator.ledger import RoundAt, TaskAt
from fedrecon.coordinator.serving import RecommendersAt, fold
from fedrecon.ops.journal import HistoryCompacted, Journal

_ROUNDS_KEPT = 2


class Reader:
    """Reads one journal.

    Args:
        journal: Where tasks and rounds are kept.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tasks: dict[str, TaskAt] = {}
        self._rounds: dict[str, dict[int, RoundAt]] = {}
        self._recommenders: dict[str, RecommendersAt] = {}

    async def task(self, name: str) -> TaskAt:
        """Returns a task as it stands; without one if there is none of that name."""
        at = self._tasks.get(name, TaskAt(None, 0))
        try:
            while recorded := await self._journal.tail(name, TASK_STREAM, at.version, 0):
                at = ledger.fold_task(at, recorded)
        except HistoryCompacted:
            at = await ledger.load_task(self._journal, name)
        if at.task is not None:
            self._tasks[name] = at
        return at

    async def recommenders(self, name: str) -> RecommendersAt:
        """Returns what a task serves as it stands; its stream is never condensed."""
        at = self._recommenders.get(name, RecommendersAt())
        while recorded := await self._journal.tail(name, RECOMMENDERS_STREAM, at.version, 0):
            at = fold(at, recorded)
        self._recommenders[name] = at
        return at

    async def round(self, name: str, number: int) -> RoundAt:
        """Returns a round as it stands; without attempts if there is no such round."""
        at = self._rounds.get(name, {}).get(number, RoundAt())
        try:
            while recorded := await self._journal.tail(name, round_stream(number), at.version, 0):
                at = ledger.fold_round(at, recorded)
        except HistoryCompacted:
            at = await ledger.load_round(self._journal, name, number)
        if at.attempts:
            kept = self._rounds.setdefault(name, {})
            kept[number] = at
            for old in sorted(kept)[:-_ROUNDS_KEPT]:
                del kept[old]
        return at
