"""A blob store whose every operation is timed, and whose failures are told apart and counted.

Rules: what a store says of one blob (missing, damaged) is an answer, and no failure. What fails because the store is
away, full or refuses becomes an `OSError`, whatever library reached it: callers then treat a folder and an object store
alike, and whoever called learns BLOBS_UNAVAILABLE instead of an incident.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator

from fedrecon.ops.blob_contract import BlobMissing, BlobStore, CorruptBlob, StoredBlob
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.local_blobs import LocalBlobs

Note = Callable[[str, float], None]
"""Told the outcome of an operation, one of `fedrecon.ops.metrics.STORE_OUTCOMES`, and its seconds."""


class BlobsUnavailable(OSError):  # noqa: N818 - named for what it says
    """The store of blobs is away, or refuses; nobody knows whether the operation was done."""


class WatchedBlobs:
    """A store that tells what it does. See `BlobStore` for the methods.

    Args:
        store: What keeps the blobs.
        note: Told of every operation.

    Attributes:
        folder: Where the blobs lie on this machine; None for an object store.
    """

    def __init__(self, store: BlobStore, note: Note) -> None:
        self._store = store
        self._note = note
        self.folder = store.folder if isinstance(store, LocalBlobs) else None

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob. See `BlobStore.put`."""
        given: list[BaseException] = []

        def chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
            try:
                yield from parts
            except BaseException as error:
                given.append(error)  # of whoever gives the content, and not of the store
                raise

        with self._watched(given):
            return self._store.put(content if isinstance(content, bytes) else chunks(content))

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None. See `BlobStore.size`."""
        with self._watched():
            return self._store.size(digest)

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob. See `BlobStore.read`."""
        with self._watched():
            return self._store.read(digest, offset, length)

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes in chunks; each is timed apart. See `BlobStore.chunks`."""
        with self._watched():
            chunks = self._store.chunks(digest, offset)
        while True:
            with self._watched():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def delete(self, digest: bytes) -> None:
        """Remove a blob. See `BlobStore.delete`."""
        with self._watched():
            self._store.delete(digest)

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs. See `BlobStore.digests`."""
        return (blob.digest for blob in self.stored())

    def stored(self) -> Iterator[StoredBlob]:
        """Return all blobs with their size and age, looked up at once. See `BlobStore.stored`."""
        with self._watched():
            found = list(self._store.stored())
        return iter(found)

    def refresh(self, digest: bytes) -> None:
        """Make a blob count as written just now. See `BlobStore.refresh`."""
        with self._watched():
            self._store.refresh(digest)

    def delete_unless_written(self, digest: bytes, since_milliseconds: int) -> bool:
        """Remove a blob that nobody has written since. See `BlobStore.delete_unless_written`."""
        with self._watched():
            return self._store.delete_unless_written(digest, since_milliseconds)

    def write_note(self, name: str, content: bytes) -> None:
        """Keep a small content under a name. See `BlobStore.write_note`."""
        with self._watched():
            self._store.write_note(name, content)

    def read_note(self, name: str) -> bytes | None:
        """Return the content kept under a name. See `BlobStore.read_note`."""
        with self._watched():
            return self._store.read_note(name)

    def notes(self) -> tuple[str, ...]:
        """Return the names of all notes. See `BlobStore.notes`."""
        with self._watched():
            return self._store.notes()

    @contextlib.contextmanager
    def _watched(self, given: list[BaseException] | None = None) -> Iterator[None]:
        """Note how the operation inside ends, and translate what a library makes of a store's failure."""
        began, outcome = time.monotonic(), "ok"
        try:
            yield
        except (BlobMissing, CorruptBlob, ValueError):
            raise
        except Exception as error:
            if given and error is given[0]:
                raise
            found = outcome_of(error)
            if found is None:
                raise
            outcome = found
            if isinstance(error, StorageFull | BlobsUnavailable):
                raise
            raise BlobsUnavailable(f"{type(error).__name__}: {error}") from error
        finally:
            self._note(outcome, time.monotonic() - began)


def outcome_of(error: Exception) -> str | None:
    """Tell what is wrong with a store; None if the exception is not of one.

    Example:
        >>> outcome_of(PermissionError("Access Denied")), outcome_of(ConnectionRefusedError()), outcome_of(TypeError())
        ('refused', 'away', None)
    """
    match error:
        case StorageFull():
            return "full"
        case PermissionError():
            return "refused"
        case OSError(errno=errno.EROFS):
            return "read_only"
        case OSError():
            return "away"
        case _:  # libraries of object stores have exceptions of their own; Python's own are our mistakes
            return None if type(error).__module__ == "builtins" else "away"
