"""The lease under which an aggregator holds its groups, and on whose end another may take them.

One lease for each aggregator, not for each group: `aggregator/HOLDER` of the journal's task `registry`, renewed every
second. Its end only says when groups may be taken; that two never write to one group is the journal's to see to, by the
versions of their streams.

Rules: an aggregator that was restarted on its folder has its lease at once. One that takes groups from another holds
that one's lease while it does. Who finds its lease taken looks which of its groups are gone, and goes on with the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from fedrecon.ops.clock import Clock
from fedrecon.ops.journal import Journal, JournalUnavailable, Lease, LeaseLost
from fedrecon.ops.logs import logger_of

LEASE_MILLISECONDS = 3_000
RENEW_MILLISECONDS = 1_000
_REGISTRY_TASK = "registry"

_log = logger_of(__name__)


class Holding:
    """The lease of one aggregator.

    Args:
        holder: its name in the journal.
        journal: where leases are kept.
        clock: the time.
    """

    def __init__(self, holder: str, journal: Journal, clock: Clock) -> None:
        self._holder = holder
        self._journal = journal
        self._clock = clock
        self._lease: Lease | None = None

    async def begin(self) -> None:
        """Takes the lease, once nobody is taking groups from this aggregator any more.

        Raises:
            JournalUnavailable: the journal does not answer.
        """
        while not await self._acquire():
            await self._pause()

    async def keep(self, confirm: Callable[[], Awaitable[None]]) -> None:
        """Renews the lease until it is cancelled.

        Args:
            confirm: called when the lease was taken meanwhile: looks which groups are gone.
        """
        while True:
            await self._pause()
            try:
                if self._lease is None:
                    if await self._acquire():
                        await confirm()
                else:
                    self._lease = await self._journal.renew(self._lease)
            except LeaseLost:
                _log.warning("lease lost: another aggregator takes groups over")
                self._lease = None
            except JournalUnavailable:
                _log.warning("journal away")

    async def end(self) -> None:
        """Gives the lease back, so that others need not wait."""
        if self._lease is not None:
            with contextlib.suppress(JournalUnavailable):
                await self._journal.release(self._lease)

    @contextlib.asynccontextmanager
    async def of(self, holder: str) -> AsyncIterator[bool]:
        """Holds another aggregator's lease for a moment; yields whether it was free.

        Args:
            holder: the other one's name.
        """
        lease = await self._journal.acquire(_REGISTRY_TASK, _name_of(holder), self._holder, LEASE_MILLISECONDS)
        try:
            yield lease is not None
        finally:
            if lease is not None:
                await self._journal.release(lease)

    async def _acquire(self) -> bool:
        name = _name_of(self._holder)
        self._lease = await self._journal.acquire(_REGISTRY_TASK, name, self._holder, LEASE_MILLISECONDS)
        return self._lease is not None

    async def _pause(self) -> None:
        await self._clock.sleep_until(self._clock.now_milliseconds() + RENEW_MILLISECONDS)


def _name_of(holder: str) -> str:
    return f"aggregator/{holder}"
