"""Groups in the journal that nobody works on any more: of a disk that was replaced, or that nobody can read.

Whoever holds a group removes it, so what is still there long after that should have happened has no holder: every
aggregator may remove it then. One that lives and comes late finds its stream gone, and gives the group up.

Rules: nothing goes before its attempt has expired and twice the time has passed for which answers are kept. A stream
whose expiry cannot be read counts from when this process first saw it.
"""

from __future__ import annotations

from fedrecon.aggregator.attempts import Attempts, Key, state_of
from fedrecon.aggregator.groups import IllegalEventError
from fedrecon.ops.journal import Journal, JournalError, StaleWriter
from fedrecon.ops.logs import logger_of

_log = logger_of(__name__)


class Leftovers:
    """Removes what nobody works on.

    Args:
        attempts: what this process works on.
        journal: where streams of groups lie.
        keep_milliseconds: how long a holder keeps ended groups after they have expired.
    """

    def __init__(self, attempts: Attempts, journal: Journal, keep_milliseconds: int) -> None:
        self._attempts = attempts
        self._journal = journal
        self._keep_milliseconds = keep_milliseconds
        self._unreadable_since: dict[Key, int] = {}

    async def remove(self, now_milliseconds: int) -> int:
        """Removes the groups that everybody has forgotten; what fails is tried again the next time.

        Args:
            now_milliseconds: Unix milliseconds.

        Returns:
            How many attempts were removed.
        """
        removed = 0
        try:
            forgotten = await self._attempts.forgotten()
            for key, streams in forgotten.items():
                removed += await self._remove_attempt(key, streams, now_milliseconds)
            self._unreadable_since = {key: at for key, at in self._unreadable_since.items() if key in forgotten}
        except JournalError as error:
            _log.warning("leftovers not removed", why=type(error).__name__)
        return removed

    async def _remove_attempt(self, key: Key, streams: tuple[str, ...], now: int) -> bool:
        task, number, attempt = key
        histories = [await self._journal.load(task, stream) for stream in streams]
        try:
            states = [state_of(history) for history in histories]
            expires = max(state.config.expires_milliseconds for state in states if state is not None)
        except (JournalError, IllegalEventError, ValueError):
            expires = self._unreadable_since.setdefault(key, now)
        if now < expires + 2 * self._keep_milliseconds:
            return False
        for stream, history in reversed(list(zip(streams, histories, strict=True))):
            try:
                await self._journal.discard(task, stream, history.version)
            except StaleWriter:
                return False  # somebody works on it after all
        _log.warning("leftover groups removed", task=task, round=number, attempt=attempt, groups=len(streams))
        return True
