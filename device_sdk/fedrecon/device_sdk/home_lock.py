"""One participation at a time in a home folder, also across processes.

The operating system holds the lock and takes it back when the process ends, however it ends: a kill -9 leaves nothing
that somebody must clear away. The file itself stays, empty.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fedrecon.device_sdk.errors import BusyError
from fedrecon.device_sdk.files import PRIVATE, blaming_the_disk

LOCK_FILE = "lock"


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Holds a home folder; nobody else does meanwhile.

    Raises:
        BusyError: somebody else holds it.
        StorageFailedError: the folder cannot be written to.
    """
    path = folder / LOCK_FILE
    with blaming_the_disk(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        if not _lock(handle):
            raise BusyError(f"another participation holds {path}")
        yield
    finally:
        os.close(handle)  # and with it the lock


def _lock(handle: int) -> bool:
    """Takes the lock of an open file without waiting, and says whether it could."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
