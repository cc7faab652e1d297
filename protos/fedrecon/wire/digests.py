"""SHA-256 digests: the names of blobs, chunks and vectors.

A digest is always the raw 32 bytes; people and file names see its hexadecimal form.
"""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 32


class DigestMismatchError(ValueError):
    """Bytes are not what their digest says."""


def digest_of(content: bytes | bytearray | memoryview) -> bytes:
    """Returns the SHA-256 of `content`, 32 bytes.

    Example:
        >>> digest_of(b"").hex()[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(content).digest()


def verify_digest(content: bytes | bytearray | memoryview, digest: bytes, what: str) -> None:
    """Raises unless `content` has this digest.

    Args:
        content: the bytes to check.
        digest: what their SHA-256 must be.
        what: how to call them in the error, for example `"checkpoint"`.

    Raises:
        DigestMismatchError: the content differs; the message names both digests.
    """
    found = digest_of(content)
    if found != digest:
        raise DigestMismatchError(
            f"{what}: expected SHA-256 {digest.hex()}, got {found.hex()} ({len(content)} bytes); fetch it again"
        )
