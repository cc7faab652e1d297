"""Reading blobs, and naming them: the same for every store.

Digests are 32 raw bytes; names are hex: `ab/abcdef...`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Protocol

from fedrecon.ops.blob_contract import CHUNK_BYTES, BlobMissing, CorruptBlob
from fedrecon.ops.logs import logger_of
from fedrecon.wire.digests import DIGEST_BYTES

ASIDE = ".corrupt"
"""Follows the name of a damaged blob that was moved aside."""

_log = logger_of(__name__)


class Opened(Protocol):
    """What reading needs of a store."""

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length, or None if it is not here."""
        ...

    def open(self, digest: bytes) -> BinaryIO:
        """Open a blob at its start. Raises FileNotFoundError if it is not here."""
        ...

    def set_aside(self, digest: bytes) -> str:
        """Move a damaged blob out of the way; return where it lies now."""
        ...


def read_blob(store: Opened, digest: bytes, offset: int, length: int | None) -> bytes:
    """Return bytes of a blob. See `BlobStore.read`."""
    if length is None:
        return b"".join(blob_chunks(store, digest, offset))
    if length < 0:
        raise ValueError(f"the length of a read cannot be negative, got {length}")
    _check_offset(store, digest, offset)
    with _open(store, digest) as file:
        file.seek(offset)
        return file.read(length)


def blob_chunks(store: Opened, digest: bytes, offset: int) -> Iterator[bytes]:
    """Return a blob's bytes in chunks. See `BlobStore.chunks`."""
    _check_offset(store, digest, offset)  # here, so that what is missing shows at the call, not at the first chunk
    return _verified(store, digest, offset)


def _verified(store: Opened, digest: bytes, offset: int) -> Iterator[bytes]:
    seen, held = hashlib.sha256(), b""
    with _open(store, digest) as file:
        file.seek(offset)
        while chunk := _read_chunk(file, digest):
            seen.update(chunk)
            if held:
                yield held
            held = chunk
    if offset == 0 and seen.digest() != digest:
        aside = store.set_aside(digest)
        # Whoever reads first sees it; to everyone after, the blob is only missing.
        _log.error("blob damaged and moved aside", blob=digest.hex(), found=seen.hexdigest(), aside=aside)
        raise CorruptBlob(
            f"blob {digest.hex()} is damaged: its bytes have the digest {seen.hexdigest()}. It was moved to "
            f"{aside}; put it again from where it came, and check the disk"
        )
    if held:
        yield held


def _check_offset(store: Opened, digest: bytes, offset: int) -> None:
    size = store.size(digest)
    if size is None:
        raise missing(digest)
    if not 0 <= offset <= size:
        raise ValueError(f"offset {offset} lies outside blob {digest.hex()} of {size} bytes")


def _open(store: Opened, digest: bytes) -> BinaryIO:
    try:
        return store.open(digest)
    except FileNotFoundError as error:
        raise missing(digest) from error


def _read_chunk(file: BinaryIO, digest: bytes) -> bytes:
    try:
        return file.read(CHUNK_BYTES)
    except FileNotFoundError as error:  # an object that was removed while it was read
        raise missing(digest) from error


def missing(digest: bytes) -> BlobMissing:
    """Return what says that a blob is not here."""
    return BlobMissing(f"no blob {digest.hex()} lies here")


def hashed(content: bytes | Iterable[bytes], digest: Any) -> Iterator[bytes]:
    """Yield a content in chunks, and tell a digest of each."""
    for chunk in (content,) if isinstance(content, bytes) else content:
        digest.update(chunk)
        yield chunk


def name_of(digest: bytes) -> str:
    """Return the name of a blob.

    Raises:
        ValueError: If the digest has another length.
    """
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, got {len(digest)}")
    return digest.hex()


def digest_in(name: str) -> Iterator[bytes]:
    """Yield the digest a file is named after; nothing for other files."""
    with contextlib.suppress(ValueError):
        digest = bytes.fromhex(name)
        if len(digest) == DIGEST_BYTES:
            yield digest
