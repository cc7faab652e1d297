"""Looks after what a service stands on, and tells it: metrics, log and health.

Rules:
- A store that failed counts as failing until something was written to it: of a full Redis reads go on to work. So while
  it fails a small write is tried, and the journal, where writes cost little, is tried all the time.
- The health of the service itself stays SERVING while a store fails: all replicas share the store, and devices that
  find nobody would learn neither why nor when to come back. Health of `fedrecon.storage` says NOT_SERVING.
- The journal's server has the one clock that all replicas can see: how far each is from it tells how far they are
  from each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cryptography import x509

from fedrecon.ops.journal import JournalError
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.logs import logger_of
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.watched_blobs import WatchedBlobs

STORAGE_HEALTH = "fedrecon.storage"
"""Name under which gRPC's health service tells of storage."""

_LOOK_SECONDS = 5.0
_TRIED_TASK, _TRIED_MILLISECONDS = "_health", 60_000
"""No task has such a name."""

_TRIED_NOTE = "health"
_SECONDS_PER_DAY = 86_400
_SOON_DAYS = 14
_CERTIFICATE_LOOKS = 12

_log = logger_of(__name__)


class StorageWatch:
    """Tells of a service's stores.

    Args:
        metrics: Where it is told.
        tell_health: Told whether all stores work, whenever that was found out.
    """

    def __init__(self, metrics: Metrics, tell_health: Callable[[str, bool], Awaitable[None]]) -> None:
        self._metrics = metrics
        self._tell_health = tell_health
        self._trouble: dict[str, str] = {}
        self._known: set[str] = set()

    def note(self, store: str, outcome: str, seconds: float) -> None:
        """Note how an operation ended.

        Args:
            store: One of `fedrecon.ops.metrics.STORES`.
            outcome: One of `fedrecon.ops.metrics.STORE_OUTCOMES`.
            seconds: How long it took.
        """
        self._metrics.storage_seconds.labels(store=store, outcome=outcome).observe(seconds)
        if outcome == "ok":
            if store not in self._trouble:
                self._metrics.storage_up.labels(store=store).set(1)
            return
        self._metrics.storage_up.labels(store=store).set(0)
        if self._trouble.get(store) != outcome:
            _log.error("storage fails", store=store, why=outcome)
        self._trouble[store] = outcome

    def noting(self, store: str) -> Callable[[str, float], None]:
        """Return what one store tells, without its name."""
        return lambda outcome, seconds: self.note(store, outcome, seconds)

    @property
    def works(self) -> bool:
        """Whether no store is known to fail."""
        return not self._trouble

    async def keep_watch(self, journal: RedisJournal | None, blobs: WatchedBlobs, certificate: Path | None) -> None:
        """Look at everything again and again, until it is cancelled.

        Args:
            journal: The journal; None for a service that has none.
            blobs: The blobs.
            certificate: PEM file of what the service shows; None for plaintext.
        """
        looks = 0
        while True:
            if journal is not None:
                await self.look_at_journal(journal)
            await self.look_at_blobs(blobs)
            if certificate is not None and looks % _CERTIFICATE_LOOKS == 0:
                await asyncio.to_thread(self.look_at_certificate, certificate)
            await self._tell_health(STORAGE_HEALTH, self.works)
            looks += 1
            await asyncio.sleep(_LOOK_SECONDS)

    async def look_at_journal(self, journal: RedisJournal) -> None:
        """Write something small, and ask for memory and time; the journal's own connection tells of failures."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await journal.remember(_TRIED_TASK, "tried", time.time_ns() // 1_000_000 + _TRIED_MILLISECONDS)
                self._mended("journal")
                asked = time.time()
                standing = await journal.standing()
        except (TimeoutError, JournalError):
            return  # noted where it happened
        self._metrics.storage_used_ratio.labels(store="journal").set(standing.used_ratio)
        self._metrics.clock_skew_seconds.set((asked + time.time()) / 2 - standing.server_seconds)

    async def look_at_blobs(self, blobs: WatchedBlobs) -> None:
        """Try to write while the store is known to fail, and look how full a folder's disk is."""
        if "blobs" in self._trouble:
            with contextlib.suppress(OSError):  # noted where it happened
                await asyncio.to_thread(blobs.write_note, _TRIED_NOTE, b"")
                self._mended("blobs")
        if blobs.folder is not None:
            with contextlib.suppress(OSError):
                usage = await asyncio.to_thread(shutil.disk_usage, blobs.folder)
                self._metrics.storage_used_ratio.labels(store="blobs").set(usage.used / usage.total)

    def look_at_certificate(self, path: Path) -> None:
        """Read until when the certificate is valid that a service shows."""
        try:
            shown = x509.load_pem_x509_certificates(path.read_bytes())[0]
        except (OSError, ValueError, IndexError) as error:
            _log.warning("certificate cannot be read", problem=str(error))
            return
        expires = shown.not_valid_after_utc.timestamp()
        self._metrics.certificate_expiry_timestamp_seconds.set(expires)
        days = (expires - time.time()) / _SECONDS_PER_DAY
        if days < _SOON_DAYS:
            _log.warning("certificate expires" if days > 0 else "certificate has expired", days=round(days, 1))

    def _mended(self, store: str) -> None:
        if self._trouble.pop(store, None) is not None:
            _log.info("storage works again", store=store)
        self._metrics.storage_up.labels(store=store).set(1)
