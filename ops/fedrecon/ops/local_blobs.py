"""Blobs in a folder of this machine, which several processes may share.

Removing an old blob and giving a file its name exclude each other by a lock of the folder, so a blob that is put while
it is being removed is there afterwards. Whoever has opened a blob reads it to its end, also when it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fedrecon.ops.blob_contract import NOTES, StoredBlob, checked_note
from fedrecon.ops.blob_reading import ASIDE, blob_chunks, digest_in, hashed, missing, name_of, read_blob
from fedrecon.ops.durable_files import TEMPORARY_PREFIX, make_folder, write_durably

_ABANDONED_SECONDS = 24 * 60 * 60
_NANOSECONDS_PER_MILLISECOND = 1_000_000
_LOCK = "naming.lock"


class LocalBlobs:
    """Blobs in a folder of this machine, which several processes may share.

    Args:
        folder: Where they lie; made if missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder).absolute()
        self._writing = self._folder / "writing"
        self._notes = self._folder / NOTES
        make_folder(self._writing)
        self._remove_abandoned()

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._folder

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob. See `BlobStore.put`."""
        digest = hashlib.sha256()
        place = lambda: self._path(digest.digest())  # noqa: E731 - asked for when the digest is known
        write_durably(place, hashed(content, digest), self._writing, self._naming(fcntl.LOCK_SH))
        return digest.digest()

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here. See `BlobStore.size`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob. See `BlobStore.read`."""
        return read_blob(self, digest, offset, length)

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks. See `BlobStore.chunks`."""
        return blob_chunks(self, digest, offset)

    def delete(self, digest: bytes) -> None:
        """Remove a blob; after loss of power it may be back. See `BlobStore.delete`."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs. See `BlobStore.digests`."""
        return (blob.digest for blob in self.stored())

    def stored(self) -> Iterator[StoredBlob]:
        """Return all blobs with their size and age. See `BlobStore.stored`."""
        for path in self._folder.glob("??/*"):
            for digest in digest_in(path.name):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    status = path.stat()
                    yield StoredBlob(digest, status.st_size, status.st_mtime_ns // _NANOSECONDS_PER_MILLISECOND)

    def refresh(self, digest: bytes) -> None:
        """Make a blob count as written just now. See `BlobStore.refresh`."""
        with self._naming(fcntl.LOCK_SH):
            try:
                os.utime(self._path(digest))
            except FileNotFoundError as error:
                raise missing(digest) from error

    def delete_unless_written(self, digest: bytes, since_milliseconds: int) -> bool:
        """Remove a blob that nobody has written since. See `BlobStore.delete_unless_written`."""
        path = self._path(digest)
        with self._naming(fcntl.LOCK_EX):
            try:
                if path.stat().st_mtime_ns // _NANOSECONDS_PER_MILLISECOND >= since_milliseconds:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def write_note(self, name: str, content: bytes) -> None:
        """Keep a small content under a name. See `BlobStore.write_note`."""
        write_durably(self._notes / checked_note(name), [content], self._writing)

    def read_note(self, name: str) -> bytes | None:
        """Return the content kept under a name. See `BlobStore.read_note`."""
        try:
            return (self._notes / checked_note(name)).read_bytes()
        except FileNotFoundError:
            return None

    def notes(self) -> tuple[str, ...]:
        """Return the names of all notes. See `BlobStore.notes`."""
        return tuple(sorted(path.name for path in self._notes.glob("*")))

    def open(self, digest: bytes) -> BinaryIO:
        """Open a blob for reading at its start."""
        return self._path(digest).open("rb")

    def set_aside(self, digest: bytes) -> str:
        """Move a damaged blob out of the way; return where it lies now."""
        path = self._path(digest)
        aside = path.with_name(path.name + ASIDE)
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            path.replace(aside)
        return str(aside)

    def _path(self, digest: bytes) -> Path:
        name = name_of(digest)
        return self._folder / name[:2] / name

    @contextlib.contextmanager
    def _naming(self, kind: int) -> Iterator[None]:
        """Holds the folder's lock: shared while a file gets its name or age, alone while an old one is removed."""
        lock = os.open(
            self._writing / _LOCK, os.O_RDWR | os.O_CREAT, 0o600
        )  # of this call alone: threads have their own
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)

    def _remove_abandoned(self) -> None:
        """Remove what processes that were killed while writing left behind; others may be writing now."""
        for path in self._writing.glob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()
