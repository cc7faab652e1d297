"""What a store of blobs promises; `fedrecon.ops.blobs` opens one.

Rules: a blob never changes; putting it again changes nothing but its age, and mends a damaged one. When `put` returns,
the blob is whole and stays. Reading from the start to the end verifies the digest before the last byte is handed out; a
damaged blob is moved aside, so that it counts as missing and can be put anew. A read from further on is the reader's to
verify.

Whoever names a blob where it will be looked for has put or refreshed it shortly before; so whoever collects blobs may
remove, at any later time, each that nothing named and that was old when it looked (`delete_unless_written`).

Beside blobs lie notes: a few small named contents that change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

CHUNK_BYTES = 1 << 16
"""Bytes read at a time, and handed out by `chunks` at most: what a message of a stream carries, and so what a device
fetches twice where a connection breaks."""

NOTES = "notes"
"""Folder of the notes."""

_NOTE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def checked_note(name: str) -> str:
    """Return the name of a note if it is one.

    Raises:
        ValueError: If it is not.
    """
    if _NOTE.fullmatch(name) is None:
        raise ValueError(f"{name!r} cannot name a note: use 1 to 200 of letters, digits and ._-")
    return name


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as its store knows it.

    Attributes:
        digest: Its digest, 32 bytes.
        size: Its length in bytes.
        written_milliseconds: When it was last put or refreshed, Unix milliseconds.
    """

    digest: bytes
    size: int
    written_milliseconds: int


class BlobMissing(LookupError):  # noqa: N818 - named for what it says
    """No blob with this digest lies here."""


class CorruptBlob(Exception):  # noqa: N818 - the same
    """A blob's bytes do not have its digest; it was moved aside and counts as missing now."""


class ReadBlobs(Protocol):
    """What is read of blobs and notes by who only looks; see `BlobStore`."""

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob."""
        ...

    def read_note(self, name: str) -> bytes | None:
        """Return the content kept under a name, or None if there is none."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return the names of all notes, in order."""
        ...


class BlobStore(Protocol):
    """Where blobs lie. See the module for the rules."""

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob.

        Args:
            content: Its bytes, whole or in chunks.

        Returns:
            Its digest, 32 bytes.

        Raises:
            StorageFull: If the disk is full; nothing is left behind.
        """
        ...

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here."""
        ...

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob.

        Args:
            digest: Its digest, 32 bytes.
            offset: Where to begin, at most its size.
            length: How many bytes at most; None for all. All from 0 are verified.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: If its bytes do not have its digest.
            ValueError: If the offset lies outside it.
        """
        ...

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks of at most `CHUNK_BYTES`; from 0, they are verified.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: In place of the last chunk, if the bytes do not have its digest.
            ValueError: If the offset lies outside it.
        """
        ...

    def delete(self, digest: bytes) -> None:
        """Remove a blob; nothing happens if it is not here."""
        ...

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs, so that their owner can delete those that nothing names any more."""
        ...

    def stored(self) -> Iterator[StoredBlob]:
        """Return all blobs with their size and age, for whoever collects them."""
        ...

    def refresh(self, digest: bytes) -> None:
        """Make a blob count as written just now: whoever is about to name an old one does this first.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: If it had to be read, and its bytes do not have its digest.
        """
        ...

    def delete_unless_written(self, digest: bytes, since_milliseconds: int) -> bool:
        """Remove a blob that nobody has written or refreshed since an instant.

        A `put` or `refresh` at the same time is not lost: either it comes first, and the blob stays, or the blob is
        removed before, and is written again.

        Args:
            digest: Its digest, 32 bytes.
            since_milliseconds: Unix milliseconds.

        Returns:
            Whether it was removed.
        """
        ...

    def write_note(self, name: str, content: bytes) -> None:
        """Keep a small content under a name, in place of what was there; when this returns, it stays.

        Args:
            name: 1 to 200 of letters, digits and `. _ -`, not beginning with a dot.
            content: What to keep.

        Raises:
            StorageFull: If the disk is full; what was there stays.
        """
        ...

    def read_note(self, name: str) -> bytes | None:
        """Return the content kept under a name, or None if there is none."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return the names of all notes, in order."""
        ...
