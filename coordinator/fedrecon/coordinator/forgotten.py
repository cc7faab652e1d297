"""Keys that were forgotten: their tokens are refused until the last of them would have expired.

A short list in the journal, which every coordinator follows: no check-in asks the journal for it. It holds keyed
hashes, never keys, and each only as long as a token lives.

Rules: an entry is there on every coordinator a moment after `forget` returned, and on the one that was asked at once.
Whoever adds to a long list writes down anew what is still in force.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fedrecon.coordinator.entries import REGISTRY_TASK
from fedrecon.ops.clock import Clock
from fedrecon.ops.journal import Append, HistoryCompacted, Journal, JournalUnavailable, Recorded, StaleWriter
from fedrecon.ops.journal.codec import Codec
from fedrecon.ops.logs import logger_of

STREAM = "forgotten"
_LONGEST_LIST = 500
_TAIL_MILLISECONDS = 30_000
_AFTER_OUTAGE_MILLISECONDS = 500
_DOMAIN = b"fedrecon forgotten 1"

_log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class KeyForgotten:
    """A key is to be refused.

    Attributes:
        key: Keyed hash of the device key, hexadecimal.
        until: Unix milliseconds.
    """

    key: str
    until: int


@dataclass(frozen=True, slots=True)
class ForgottenKeys:
    """What is in force, in place of older entries.

    Attributes:
        keys: The entries.
    """

    keys: tuple[KeyForgotten, ...]


_entries: Codec[KeyForgotten] = Codec(KeyForgotten)
_snapshots: Codec[ForgottenKeys] = Codec(ForgottenKeys)


class Forgotten:
    """Keys whose tokens are refused.

    Args:
        journal: Where the list is kept.
        key: Of the names of devices in ledgers.
        clock: The time.
    """

    def __init__(self, journal: Journal, key: bytes, clock: Clock) -> None:
        self._journal = journal
        self._key = key
        self._clock = clock
        self._until: dict[str, int] = {}
        self._version = 0

    def holds(self, device_key: bytes) -> bool:
        """Whether a key was forgotten."""
        if not self._until:
            return False
        return self._until.get(self._name(device_key), 0) > self._clock.now_milliseconds()

    async def add(self, device_key: bytes, until: int) -> None:
        """Forgets a key.

        Args:
            device_key: The key.
            until: When the last of its tokens expires, Unix milliseconds.

        Raises:
            JournalUnavailable: The journal does not answer: the key may have been forgotten, or not.
        """
        event = KeyForgotten(self._name(device_key), until)
        while True:
            before = self._version
            try:
                await self._journal.append(REGISTRY_TASK, [Append(STREAM, before, (_entries.encode(event),))])
                break
            except StaleWriter:
                await self.load()
        self._until[event.key] = until
        self._version = max(self._version, before + 1)  # `follow` may have read it already
        await self._condense()

    async def follow(self) -> None:
        """Follows the list until it is cancelled."""
        while True:
            try:
                recorded = await self._journal.tail(REGISTRY_TASK, STREAM, self._version, _TAIL_MILLISECONDS)
                self._apply(recorded)
            except HistoryCompacted:
                await self.load()
            except JournalUnavailable:
                _log.warning("journal away")
                await self._clock.sleep_until(self._clock.now_milliseconds() + _AFTER_OUTAGE_MILLISECONDS)

    async def load(self) -> None:
        """Reads the list as it stands: at the start, before anybody is answered.

        Raises:
            JournalUnavailable: The journal does not answer.
        """
        history = await self._journal.load(REGISTRY_TASK, STREAM)
        if history.snapshot is not None:
            for each in _snapshots.decode(history.snapshot).keys:
                self._until[each.key] = each.until
        self._version = max(self._version, history.snapshot_version)
        self._apply(history.events)

    def _apply(self, recorded: tuple[Recorded, ...]) -> None:
        for each in recorded:
            if each.version > self._version:
                entry = _entries.decode(each.event)
                self._until[entry.key], self._version = entry.until, each.version

    async def _condense(self) -> None:
        """Writes down anew what is in force, where the list has become long."""
        now = self._clock.now_milliseconds()
        self._until = {key: until for key, until in self._until.items() if until > now}
        if self._version % _LONGEST_LIST:
            return
        kept = ForgottenKeys(tuple(KeyForgotten(key, until) for key, until in sorted(self._until.items())))
        await self._journal.compact(REGISTRY_TASK, STREAM, self._version, _snapshots.encode(kept))

    def _name(self, device_key: bytes) -> str:
        return hmac.digest(self._key, _DOMAIN + device_key, "sha256").hex()
