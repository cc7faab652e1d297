"""Cuts byte strings into the chunks of the contract, and puts them together again.

A chunk holds at most 1 MiB and carries the digest of its data, so that a damaged piece is found when it arrives
and a transfer goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedrecon.v1.common_pb2 import Chunk
from fedrecon.wire.digests import digest_of, verify_digest

CHUNK_BYTES = 1 << 20


class ChunkOrderError(ValueError):
    """A chunk does not continue what has arrived."""


def cut(content: bytes | memoryview, offset: int = 0, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yields the chunks of `content` from `offset` to its end.

    Args:
        content: the whole.
        offset: first byte wanted; a transfer that stopped goes on here.
        size: bytes in a chunk, at most 1 MiB.

    Example:
        >>> [(chunk.offset, chunk.data) for chunk in cut(b"abcde", offset=1, size=3)]
        [(1, b'bcd'), (4, b'e')]
    """
    view = memoryview(content)
    for start in range(offset, len(view), size):
        piece = bytes(view[start : start + size])
        yield Chunk(offset=start, data=piece, digest=digest_of(piece))


def take(chunk: Chunk, expected_offset: int, limit: int) -> bytes:
    """Returns the data of a chunk that continues a transfer.

    Args:
        chunk: what arrived.
        expected_offset: how many bytes are there already.
        limit: length of the whole.

    Raises:
        ChunkOrderError: the chunk begins elsewhere, is empty, too large, or goes beyond the whole.
        DigestMismatchError: its data is damaged.
    """
    if chunk.offset != expected_offset:
        raise ChunkOrderError(f"chunk at offset {chunk.offset}, but {expected_offset} comes next; ask for the status")
    data = chunk.data  # every reading of the field makes a copy
    if not 0 < len(data) <= CHUNK_BYTES:
        raise ChunkOrderError(f"chunk of {len(data)} bytes at offset {chunk.offset}; allowed are 1 to {CHUNK_BYTES}")
    if expected_offset + len(data) > limit:
        raise ChunkOrderError(f"chunk ends at byte {expected_offset + len(data)} of {limit}: too many bytes")
    verify_digest(data, chunk.digest, f"chunk at offset {chunk.offset}")
    return data
