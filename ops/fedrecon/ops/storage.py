"""Opens what services keep things in: the journal and the blobs that the settings name.

What a person can mend is said as a `UserMistake` with the variable's name; a store that only does not answer is an
error of its own, since it may come back by itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from fedrecon.ops.blobs import open_blobs
from fedrecon.ops.journal import DurabilityRefused
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.storage_watch import StorageWatch
from fedrecon.ops.watched_blobs import WatchedBlobs


async def connect_journal(settings: Settings, watch: StorageWatch | None = None) -> RedisJournal:
    """Connect to the journal.

    Args:
        settings: Name its Redis or Valkey, and say whether losses are accepted.
        watch: Told what the journal does.

    Raises:
        UserMistake: None is named, or it may lose what it acknowledges.
        JournalUnavailable: It does not answer.
    """
    if not settings.redis_url:
        raise UserMistake(
            "FEDRECON_REDIS_URL is not set: the journal is kept there.",
            "Name a Redis or Valkey, or start the whole stack with `fedrecon up`, which brings its own.",
        )
    try:
        note = None if watch is None else watch.noting("journal")
        return await RedisJournal.connect(settings.redis_url, accepted_loss=settings.accepts_loss, note=note)
    except DurabilityRefused as error:
        raise UserMistake(f"FEDRECON_REDIS_URL: {error}.", "See the text above.") from error


async def open_blob_store(settings: Settings, watch: StorageWatch) -> WatchedBlobs:
    """Open the blobs, without holding up the event loop.

    Args:
        settings: Name the folder or object store.
        watch: Told what the store does.

    Raises:
        UserMistake: It is of a kind that cannot keep blobs, or needs a package that is not installed.
    """
    return await open_place(settings.blobs_place, "FEDRECON_BLOBS_URL", watch)


async def open_place(place: str | Path, variable: str, watch: StorageWatch) -> WatchedBlobs:
    """Open a place for blobs, without holding up the event loop.

    Args:
        place: A folder or object store.
        variable: The setting that names it.
        watch: Told what the store does.

    Raises:
        UserMistake: It is of a kind that cannot keep blobs, or needs a package that is not installed.
    """
    try:
        return WatchedBlobs(await asyncio.to_thread(open_blobs, place), watch.noting("blobs"))
    except (ValueError, ImportError) as error:
        raise UserMistake(f"{variable}: {error}.", "Name a folder or an object store.") from error
