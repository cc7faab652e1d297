"""Removes blobs that nothing names any more: mark and sweep over all tasks of a deployment.

Left over are checkpoints and optimizer states beyond those that can be rolled back to, checkpoints of merges that were
abandoned, uploads that no task was made of, and recommenders that inference serves no more (it refreshes those that it
serves).

Rules:
- Marked is what the tasks name (`named_blobs`); swept is what is not marked and older than the grace time. What cannot
  be marked with certainty stops the sweep.
- A lease keeps two from doing the same work. Safety does not rest on it: whoever names a blob has written or refreshed
  it just before, and `delete_unless_written` spares what was written since. So an old mark stays good, however late it
  is swept by, and whoever is killed in between leaves nothing behind but blobs for the next sweep.
- The grace time is longer than any upload, and than the time from a merge to its commit.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace

from fedrecon.coordinator.entries import REGISTRY_TASK
from fedrecon.coordinator.named_blobs import NamesUnknown, digests_named, load_roots
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.journal import JournalError
from fedrecon.ops.logs import logger_of

LEASE_NAME = "blob-sweep"
SWEEP_MILLISECONDS = 3_600_000
"""How often blobs are collected, by whichever coordinator comes first."""

_LEASE_MILLISECONDS = 600_000
_LOOK_MILLISECONDS = 60_000
_SWEPT_KEY = "swept"

_log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found.

    Attributes:
        needed: Blobs that tasks name.
        needed_bytes: Their size.
        young: Blobs that nothing names, and that are younger than the grace time.
        young_bytes: Their size.
        removed: Blobs that were removed, or would be.
        removed_bytes: Their size.
        blocked: Why nothing was removed; empty if nothing stood in the way.
    """

    needed: int = 0
    needed_bytes: int = 0
    young: int = 0
    young_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    blocked: str = ""


class Collector:
    """Collects blobs for one coordinator.

    Args:
        around: Journal, blobs, clock, and how much is kept.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._holder = f"collector/{secrets.token_hex(8)}"

    async def run(self) -> None:
        """Collects now and then, in turns with other coordinators, until it is cancelled."""
        clock = self._around.clock
        while True:
            await clock.sleep_until(clock.now_milliseconds() + _LOOK_MILLISECONDS)
            try:
                await self._take_turn()
            except Exception:  # noqa: BLE001 - whatever it is, rounds go on, and the next sweep tries again
                _log.exception("blobs not collected")

    async def collect(self, *, dry_run: bool = False) -> Swept:
        """Removes what nothing names.

        Args:
            dry_run: Whether to remove nothing, and only say what would be.
        """
        around = self._around
        try:
            roots = await load_roots(around.journal, around.kept_checkpoints)
            named = await asyncio.to_thread(digests_named, roots, around.blobs)
        except NamesUnknown as unknown:
            _log.error("blobs not collected", why=str(unknown))
            return Swept(blocked=str(unknown))
        since = around.clock.now_milliseconds() - around.blobs_grace_milliseconds
        swept = await asyncio.to_thread(self._sweep, named, since, dry_run=dry_run)
        if not dry_run:
            counts = {"needed": swept.needed, "young": swept.young, "removed": swept.removed}
            sizes = {"needed_bytes": swept.needed_bytes, "removed_bytes": swept.removed_bytes}
            _log.info("blobs collected", **counts, **sizes)
        return swept

    async def _take_turn(self) -> None:
        around = self._around
        try:
            lease = await around.journal.acquire(REGISTRY_TASK, LEASE_NAME, self._holder, _LEASE_MILLISECONDS)
            if lease is None:
                return
            try:
                due = around.clock.now_milliseconds() + SWEEP_MILLISECONDS
                if await around.journal.remember(REGISTRY_TASK, _SWEPT_KEY, due):
                    await self.collect()
            finally:
                await around.journal.release(lease)
        except JournalError as error:
            _log.warning("blobs not collected", why=type(error).__name__)

    def _sweep(self, named: frozenset[bytes], since: int, *, dry_run: bool) -> Swept:
        swept = Swept()
        for blob in self._around.blobs.stored():
            size = blob.size
            if blob.digest in named:
                swept = replace(swept, needed=swept.needed + 1, needed_bytes=swept.needed_bytes + size)
            elif blob.written_milliseconds < since and (
                dry_run or self._around.blobs.delete_unless_written(blob.digest, since)
            ):
                swept = replace(swept, removed=swept.removed + 1, removed_bytes=swept.removed_bytes + size)
            else:
                swept = replace(swept, young=swept.young + 1, young_bytes=swept.young_bytes + size)
        return swept
