"""Groups in the journal that nobody works on any more: of a disk that was replaced, or that nobody can read.

Whoever holds a group removes it, so what is still there long after that should have happened has no holder: every
aggregator may remove it then. One that lives and comes late finds its stream gone, and gives the group up.

So are sealed sums that no group names: their batch was never journalled, or their group is gone.

Rules: nothing goes before its attempt has expired and twice the time has passed for which answers are kept. A stream
whose expiry cannot be read counts from when this process first saw it, and while there is one no sum goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fedrecon.aggregator.attempts import Attempts, state_of
from fedrecon.aggregator.group_events import Key
from fedrecon.aggregator.groups import Group, IllegalEventError
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.ops.journal import History, Journal, JournalError, StaleWriter
from fedrecon.ops.logs import logger_of

_log = logger_of(__name__)


class Leftovers:
    """Removes what nobody works on.

    Args:
        attempts: what this process works on.
        journal: where streams of groups lie.
        snapshots: the sealed sums of all aggregators.
        keep_milliseconds: how long a holder keeps ended groups after they have expired.
    """

    def __init__(self, attempts: Attempts, journal: Journal, snapshots: Snapshots, keep_milliseconds: int) -> None:
        self._attempts = attempts
        self._journal = journal
        self._snapshots = snapshots
        self._keep_milliseconds = keep_milliseconds
        self._unreadable_since: dict[Key, int] = {}

    async def remove(self, now_milliseconds: int) -> int:
        """Removes the groups that everybody has forgotten, and sums; what fails is tried again the next time.

        Args:
            now_milliseconds: Unix milliseconds.

        Returns:
            How many attempts were removed.
        """
        removed = 0
        try:
            named = self._attempts.files
            forgotten = await self._attempts.forgotten()
            for key, streams in forgotten.items():
                histories = [await self._journal.load(key[0], stream) for stream in streams]
                states = self._states_of(key, histories, now_milliseconds)
                named |= {digest for state in states for digest in state.files}
                removed += await self._remove_attempt(key, streams, histories, states, now_milliseconds)
            self._unreadable_since = {key: at for key, at in self._unreadable_since.items() if key in forgotten}
            if not self._unreadable_since:
                await asyncio.to_thread(self._snapshots.sweep, named, now_milliseconds)
        except (JournalError, OSError) as error:
            _log.warning("leftovers not removed", why=type(error).__name__)
        return removed

    def _states_of(self, key: Key, histories: Sequence[History], now: int) -> list[Group]:
        """Returns the groups of an attempt; none if one cannot be read."""
        try:
            return [state for state in map(state_of, histories) if state is not None]
        except (JournalError, IllegalEventError, ValueError):
            self._unreadable_since.setdefault(key, now)
            return []

    async def _remove_attempt(
        self, key: Key, streams: Sequence[str], histories: Sequence[History], states: Sequence[Group], now: int
    ) -> bool:
        task, number, attempt, _ = key
        expires = max((one.config.expires_milliseconds for one in states), default=self._unreadable_since.get(key, now))
        if now < expires + 2 * self._keep_milliseconds:
            return False
        for stream, history in reversed(list(zip(streams, histories, strict=True))):
            try:
                await self._journal.discard(task, stream, history.version)
            except StaleWriter:
                return False  # somebody works on it after all
        _log.warning("leftover groups removed", task=task, round=number, attempt=attempt, groups=len(streams))
        return True
