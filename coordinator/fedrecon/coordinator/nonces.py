"""Nonces of signed calls: each is heard once, by any coordinator, until it would not be believed any more.

Rule: a call goes on when the journal has kept its nonce, durably. Those that come within a moment are kept together:
a selection gathers thousands of check-ins, and one by one the journal's round trips cost more than all else that is
checked. The moment is nothing to a call that waits for its selection.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from fedrecon.coordinator.entries import REGISTRY_TASK
from fedrecon.ops.journal import Journal

_GATHERED_SECONDS = 0.005


@dataclass(slots=True, eq=False)
class _Batch:
    """Nonces that are kept together.

    Attributes:
        notes: Names, each with its instant.
        answers: Whether each was new, once the journal has said so.
    """

    notes: list[tuple[str, int]] = field(default_factory=list)
    answers: asyncio.Task[tuple[bool, ...]] | None = None


class Nonces:
    """Nonces that were heard.

    Args:
        journal: Where they are kept.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: _Batch | None = None

    async def is_new(self, device_key: bytes, nonce: bytes, until: int) -> bool:
        """Returns whether a device's nonce is heard for the first time, and keeps it.

        Args:
            device_key: The device's.
            nonce: Of its call.
            until: When it would not be believed any more, Unix milliseconds.

        Raises:
            JournalUnavailable: It cannot be told.
        """
        batch = self._open
        if batch is None:
            batch = self._open = _Batch()
            batch.answers = asyncio.create_task(self._keep(batch), name="keep nonces")
        place = len(batch.notes)
        batch.notes.append((f"nonce/{hashlib.sha256(device_key + nonce).hexdigest()}", until))
        assert batch.answers is not None  # noqa: S101 - made with the batch
        return (await asyncio.shield(batch.answers))[place]  # who goes away takes nobody along

    async def _keep(self, batch: _Batch) -> tuple[bool, ...]:
        await asyncio.sleep(_GATHERED_SECONDS)
        self._open = None
        return await self._journal.remember_all(REGISTRY_TASK, batch.notes)
