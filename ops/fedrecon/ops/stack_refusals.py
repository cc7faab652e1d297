"""What a local stack refuses before it starts anything: each said at once, by the name that has to be changed.

A service would say the same in its own log, but only after those before it have been started.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path

from fedrecon.ops.durable_files import StorageFull, make_folder
from fedrecon.ops.journal import DurabilityRefused, JournalUnavailable
from fedrecon.ops.mistakes import Unreachable, UserMistake
from fedrecon.ops.settings import Settings, load_settings, room_settings

_LOCK_FILE = "stack.lock"
_NEEDED_BYTES = 256 << 10
"""Logs, ready files and the journal's next appends."""

_PATIENCE_SECONDS = 3.0
"""How long a Redis that the settings name may take to answer; services that run already wait longer."""


def make_home(home: Path) -> None:
    """Make the folder of a stack.

    Raises:
        UserMistake: Nothing can be written there.
    """
    try:
        make_folder(home / "logs")
    except OSError as error:
        raise unwritable_home(home, error) from error


def unwritable_home(home: Path, error: OSError) -> UserMistake:
    """Return what to say of a home that cannot be written."""
    return UserMistake(
        f"FEDRECON_HOME: the stack cannot keep anything in {home}: {(error.strerror or str(error)).lower()}.",
        "Set FEDRECON_HOME to a folder that you may write, on a disk with free space.",
    )


def refuse_full_home(home: Path) -> None:
    """Refuse to start a service that would die at once for want of space.

    Raises:
        StorageFull: There is too little.
    """
    if shutil.disk_usage(home).free < _NEEDED_BYTES:
        raise StorageFull(errno.ENOSPC, "no space left: free space or enlarge the disk; nothing was started", str(home))


def lock_home(home: Path) -> int:
    """Lock the folder of a stack for this process; closing the descriptor, or the end of the process, frees it.

    Returns:
        The descriptor to close.

    Raises:
        UserMistake: Another stack has it, or nothing can be written there.
    """
    try:
        lock = os.open(home / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unwritable_home(home, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(lock, 100, 0).decode() or "just starting"
        os.close(lock)
        raise UserMistake(
            f"A stack runs already on {home} (process {pid}).",
            "Use it, stop it with Ctrl-C in its terminal, or set FEDRECON_HOME to another folder.",
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def refuse_wrong_settings(settings: Settings) -> None:
    """Refuse what no service of a stack could start with.

    Raises:
        InvalidSettings: A variable of a room is misspelt or wrong.
        UserMistake: The services cannot share what the settings give them.
    """
    for room in room_settings()[0].values():
        load_settings(room)
    if settings.metrics_port > 0:
        raise UserMistake(
            f"FEDRECON_METRICS_PORT is {settings.metrics_port}: the services of a local stack cannot share one port.",
            "Leave it out, and each takes a free one that `fedrecon up` shows; or set it to none.",
        )


def refuse_wrong_redis(settings: Settings) -> None:
    """Refuse a Redis that does not answer, or may lose what it acknowledges.

    Raises:
        Unreachable: It does not answer.
        UserMistake: It is not durable.
    """
    import stamina.instrumentation

    from fedrecon.ops.journal.redis import RedisJournal

    async def look() -> None:
        journal = await RedisJournal.connect(
            settings.redis_url,
            accepted_loss=settings.accepts_loss,
            patience_seconds=_PATIENCE_SECONDS,
        )
        await journal.close()

    stamina.instrumentation.set_on_retry_hooks([])  # the person is told once, at the end
    try:
        asyncio.run(look())
    except JournalUnavailable as error:
        raise Unreachable(
            f"FEDRECON_REDIS_URL: no Redis or Valkey answers there: {error}.",
            "Start it or correct the address; or leave the variable out, and `fedrecon up` starts its own Valkey.",
        ) from error
    except DurabilityRefused as error:
        raise UserMistake(
            f"FEDRECON_REDIS_URL: {error}.",
            "Or leave the variable out, and `fedrecon up` starts its own Valkey.",
        ) from error
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)  # the usual ones
