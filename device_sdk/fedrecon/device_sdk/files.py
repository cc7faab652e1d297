"""Files that are whole or not there: written beside their place, synced, then moved into it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedrecon.device_sdk.errors import StorageFailedError

PRIVATE = 0o600


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, also after a loss of power, finds the old content or the new one.

    Only the owner may read it.

    Args:
        path: where; its folder is made if it is missing.
        content: all of it.

    Raises:
        StorageFailedError: the disk is full, or the folder may not be written to; what was there is there still.
    """
    with blaming_the_disk(path):
        _write(path, content)


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        StorageFailedError: it may not be removed.
    """
    with blaming_the_disk(path):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def blaming_the_disk(path: Path) -> Iterator[None]:
    """Makes what the operating system says of a file a typed error."""
    try:
        yield
    except OSError as error:
        raise StorageFailedError(f"{path} cannot be read or written: {error.strerror or error}") from error


def _write(path: Path, content: bytes) -> None:
    import tempfile  # slow to load, and an app that writes nothing need not

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".writing")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(PRIVATE)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable, where the platform can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
