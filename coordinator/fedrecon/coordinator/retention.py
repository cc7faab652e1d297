"""What a task's journal keeps, for months of rounds: the newest rounds whole, older ones as summaries.

Rules:
- The newest rounds stay as they are; so does a round for as long as its devices may ask what became of their reports,
  and of a task that has ended the last round. Older ones are condensed, oldest first.
- The task's own stream is condensed whenever it has grown by `CONDENSED_EVENTS`.
- A snapshot follows from the stream alone, and compaction is one step of the journal: whoever is killed in between
  loses nothing, and two who condense the same write the same.
- A stream that cannot be read stays as it is, and is told of once.
"""

from __future__ import annotations

import asyncio

from fedrecon.coordinator import ledger
from fedrecon.coordinator.condensing import condense_round, condense_task
from fedrecon.coordinator.entries import TASK_STREAM, round_entries, round_stream
from fedrecon.coordinator.round_events import IllegalEvent
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.journal import History, Journal, JournalError, JournalUnavailable
from fedrecon.ops.logs import logger_of

CONDENSED_EVENTS = 256
"""Events by which a task's stream grows before it is condensed."""

TIDY_MILLISECONDS = 60_000
"""How often a task's journal is tidied."""

_KEPT_OF_ENDED = 1


class Retention:
    """Condenses the journal of one task.

    Args:
        task: Its name.
        journal: Where it is kept.
        kept_rounds: Newest committed rounds that stay whole.
        kept_checkpoints: Newest commits that stay in the task's list.
    """

    def __init__(self, task: str, journal: Journal, kept_rounds: int, kept_checkpoints: int) -> None:
        self._name = task
        self._journal = journal
        self._kept_rounds = kept_rounds
        self._kept_checkpoints = kept_checkpoints
        self._condensed: int | None = None
        self._snapshot_version: int | None = None
        self._tidying = asyncio.Lock()
        self._log = logger_of(__name__, task=task)

    async def tidy(self, task: Task, version: int, now: int) -> None:
        """Condenses what is old enough.

        Args:
            task: The task as it stands.
            version: Version of its stream.
            now: Unix milliseconds.

        Raises:
            JournalUnavailable: The journal does not answer; what is left is condensed the next time.
        """
        async with self._tidying:
            await self._tidy_rounds(task, now)
            if self._snapshot_version is None or version - self._snapshot_version >= CONDENSED_EVENTS:
                await self._tidy_task()

    async def _tidy_rounds(self, task: Task, now: int) -> None:
        last = task.committed - (_KEPT_OF_ENDED if task.has_ended else self._kept_rounds)
        if self._condensed is None:
            self._condensed = await self._find_condensed(max(last, 0))
        for number in range(self._condensed + 1, last + 1):
            if not await self._condense_round(number, now):
                return  # it comes later, and so do those after it
            self._condensed = number

    async def _condense_round(self, number: int, now: int) -> bool:
        """Condenses a round, unless that was done or cannot be done.

        Returns:
            False while its devices may still ask.
        """
        try:
            history = await self._load(number)
            if history.snapshot is not None or not history.events:
                return True
            summary = _summary_of(history, now)
        except JournalUnavailable:
            raise
        except (JournalError, IllegalEvent) as error:
            self._log.warning("old round cannot be condensed", round=number, why=str(error)[:200])
            return True
        if summary is not None:
            await self._journal.compact(self._name, round_stream(number), history.version, summary)
        return summary is not None

    async def _find_condensed(self, last: int) -> int:
        """Returns the newest round that was condensed before; rounds are condensed in order."""
        low, high = 0, last
        while low < high:
            middle = (low + high + 1) // 2
            if (await self._load(middle)).snapshot is None:
                high = middle - 1
            else:
                low = middle
        return low

    async def _load(self, number: int) -> History:
        return await self._journal.load(self._name, round_stream(number))

    async def _tidy_task(self) -> None:
        history = await self._journal.load(self._name, TASK_STREAM)
        if len(history.events) >= CONDENSED_EVENTS:
            at = ledger.task_of(history)
            assert at.task is not None  # noqa: S101 - its stream has events
            snapshot = condense_task(at.task, ledger.task_records_of(history), self._kept_checkpoints)
            await self._journal.compact(self._name, TASK_STREAM, history.version, snapshot)
            self._snapshot_version = history.version
        else:
            self._snapshot_version = history.snapshot_version


def _summary_of(history: History, now: int) -> bytes | None:
    """Returns the summary of a round; None while it may change, or its devices may ask."""
    attempts = ledger.round_of(history).attempts
    if not all(attempt.is_over and now >= _asked_until(attempt) for attempt in attempts):
        return None
    return condense_round(attempts, [round_entries.decode(each.event) for each in history.events])


def _asked_until(attempt: Round) -> int:
    return attempt.ended_at + attempt.terms.reporting_milliseconds + attempt.terms.aggregating_milliseconds
