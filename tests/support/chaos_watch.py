"""Follows the rounds of a chaos run's task in the journal, as fast as they are written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from fedrecon.coordinator import ledger, round_events
from fedrecon.coordinator.entries import Entry, round_entries, round_stream
from fedrecon.coordinator.ledger import RoundAt
from fedrecon.coordinator.round_state import Phase, Round
from fedrecon.ops.journal import JournalUnavailable
from fedrecon.ops.journal.redis import RedisJournal
from support.chaos_programs import Stage

TASK = "films"
_TAIL_MILLISECONDS = 2_000
_AWAY_SECONDS = 0.02
_BLOB_LOOK_SECONDS = 0.0005


@dataclass(slots=True)
class Watch:
    """Where the rounds of the task are, and all that was written of them.

    Attributes:
        journal: The journal.
        blobs: Folder of the blobs.
        number: The round that is followed.
        at: Its attempts.
        entries: What was written of every round, by number.
        changed: Set at every change.
    """

    journal: RedisJournal
    blobs: Path
    number: int = 1
    at: RoundAt = field(default_factory=RoundAt)
    entries: dict[int, list[Entry[round_events.Event]]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _blobs_before: int = 0

    async def run(self) -> None:
        while True:
            try:
                recorded = await self.journal.tail(TASK, round_stream(self.number), self.at.version, _TAIL_MILLISECONDS)
            except JournalUnavailable:
                await asyncio.sleep(_AWAY_SECONDS)
                continue
            self.at = ledger.fold_round(self.at, recorded)
            if recorded:
                self.entries.setdefault(self.number, []).extend(round_entries.decode(each.event) for each in recorded)
            last = self.at.last
            if last is not None and last.phase is Phase.REPORTING:
                self._blobs_before = self._blobs_written()
            if last is not None and last.committed is not None:
                self.number, self.at = self.number + 1, RoundAt()
            self.changed.set()

    @property
    def attempt(self) -> Round | None:
        return self.at.last

    @property
    def stage(self) -> Stage:
        """Where the round is, as far as it is known here."""
        match None if self.attempt is None else self.attempt.phase:
            case Phase.SELECTING:
                return Stage.SELECTING
            case Phase.REPORTING:
                return Stage.REPORTING
            case Phase.AGGREGATING:
                return self._aggregating_stage()
            case _:
                return Stage.BETWEEN

    async def entered(self, stage: Stage) -> None:
        """Returns when a round enters a stage; at once if it is there."""
        while self.stage is not stage:
            self.changed.clear()
            if stage is Stage.COMMITTING and self.stage is Stage.MERGING:
                await asyncio.sleep(_BLOB_LOOK_SECONDS)  # no event tells of a blob
            else:
                await self.changed.wait()

    def _aggregating_stage(self) -> Stage:
        attempt = self.attempt
        assert attempt is not None
        if attempt.closed is None:
            return Stage.CLOSING
        return Stage.MERGING if self._blobs_written() == self._blobs_before else Stage.COMMITTING

    def _blobs_written(self) -> int:
        """Returns a number that changes when somebody begins to write a blob; in an object store nobody sees it."""
        place = self.blobs / "writing"
        return place.stat().st_mtime_ns if place.exists() else 0
