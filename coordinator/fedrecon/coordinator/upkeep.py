"""What the one that leads a task does beside its rounds.

Old events are condensed, a loss of history is found, and what was evaluated becomes a candidate.

Rules: nothing here holds rounds up. A journal that knows less than was known before, by this process or by the note
beside the blobs, pauses the task; a round under way is given up, since its reports may be of a past that is gone.
"""

from __future__ import annotations

import asyncio

from fedrecon.coordinator import rounds, serving
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.retention import TIDY_MILLISECONDS, Retention
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.tasks import AttemptAbandoned
from fedrecon.coordinator.watermarks import find_loss, keep_watermark
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.logs import logger_of

_AFTER_FAILURE_MILLISECONDS = 10_000


class Upkeep:
    """Looks after the journal of one task; under its lease.

    Args:
        around: What its runner works with.
        book: The task's journal.
    """

    def __init__(self, around: Surroundings, book: Book) -> None:
        self._around = around
        self._book = book
        self._retention = self._new_retention()
        self._log = logger_of(__name__, task=book.name)

    def _new_retention(self) -> Retention:
        around = self._around
        return Retention(self._book.name, around.journal, around.kept_rounds, around.kept_checkpoints)

    async def stop_after_loss(self) -> None:
        """Pauses the task if the journal knows less of it than was known before; a round under way is given up."""
        book = self._book
        known = book.name, book.task, book.version
        loss = await asyncio.to_thread(find_loss, self._around.blobs, *known, knew_more=book.knew_more)
        if loss is None:
            return
        self._log.error("journal went back", why=loss.reason)
        attempt = book.attempt
        if attempt is None or attempt.is_over:
            await book.record_task(loss)
        else:
            event = rounds.abandon(attempt, "the journal went back to an older state", book.now())
            told = AttemptAbandoned(attempt.number, attempt.attempt, event.reason, event.retry_at)
            await book.record(attempt.number, event, told, loss)
        book.knew_more = False
        self._retention = self._new_retention()  # what it has condensed may be whole again

    async def keep_tidy(self) -> None:
        """Condenses what is old enough, again and again."""
        while True:
            await self._book.confirm()
            await self.tidy()
            await self._pause(TIDY_MILLISECONDS)

    async def tidy(self) -> None:
        """Condenses what is old enough."""
        await self._retention.tidy(self._book.task, self._book.version, self._book.now())

    async def admit_evaluated(self) -> None:
        """Makes the checkpoint that was evaluated last a candidate, if the task asks for that and nobody has."""
        around, book = self._around, self._book
        try:
            await serving.admit_evaluated(around.journal, around.blobs, book.name, book.task, book.now())
        except Refusal as refusal:
            self._log.warning("evaluated checkpoint is no candidate", why=refusal.message)

    async def keep_mark(self) -> None:
        """Notes outside of the journal how far the task has come, whenever it has come further."""
        while True:
            self._book.task_changed.clear()
            try:
                known = self._book.name, self._book.task, self._book.version
                await asyncio.to_thread(keep_watermark, self._around.blobs, *known)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, rounds go on
                self._log.warning("watermark not noted", why=str(error)[:200])
                await self._pause(_AFTER_FAILURE_MILLISECONDS)
            else:
                await self._book.task_changed.wait()

    async def _pause(self, milliseconds: int) -> None:
        await self._around.clock.sleep_until(self._around.clock.now_milliseconds() + milliseconds)
