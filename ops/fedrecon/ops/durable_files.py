"""Files that are whole or not there, and that stay: temporary file, fsync, rename, fsync of the folder.

fsspec's local files and most libraries stop at the rename, which loses the file, or leaves it empty, when power fails.
Rules: a reader never sees half a file; when a write returns, the file and every folder made for it survive loss of
power; a write that fails leaves nothing behind.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
TEMPORARY_PREFIX = ".writing-"


class StorageFull(OSError):  # noqa: N818 - named for what happened
    """The disk or quota is full; nothing was kept of what was being written."""


def write_durably(
    place: Callable[[], Path] | Path,
    chunks: Iterable[bytes],
    folder: Path | None = None,
    naming: AbstractContextManager[None] | None = None,
) -> Path:
    """Write a file that is whole and stays, or none. An existing file is replaced.

    Args:
        place: The file to make; or a function asked for it once all chunks were taken (content-addressed files).
        chunks: The content.
        folder: Where the temporary file lies, on the same disk; the file's own folder by default.
        naming: Held while the file gets its name, for those who remove files at the same time.

    Returns:
        The file's path.

    Raises:
        StorageFull: If the disk is full.
        OSError: If it cannot be written for another reason.
    """
    if folder is None:
        if not isinstance(place, Path):
            raise TypeError("a file named only at its end needs the folder of its temporary file")
        folder = place.parent
    temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        make_folder(folder)
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        path = place if isinstance(place, Path) else place()
        make_folder(path.parent)
        with naming or contextlib.nullcontext():
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StorageFull(
                error.errno,
                f"no space left for {folder}: free space or enlarge the disk; nothing was kept",
                str(folder),
            ) from error
        raise
    return path


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents so that they survive loss of power."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
