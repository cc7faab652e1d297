"""Sealing: what must never lie on disk in the clear (snapshots of sums, staged updates) under AES-256-GCM.

A sealed content is `FRS1`, a nonce of 12 random bytes, the ciphertext, a tag of 16 bytes. The associated bytes say what
it is (for instance task, round and group): they are not kept, and opening with others fails, so that one sealed file
cannot stand in for another.

Rules: nonces come from `os.urandom`, so one key seals at most 2^32 contents (NIST SP 800-38D, 8.3); change the key long
before. A wrong key, other associated bytes and a changed file cannot be told apart, and all are refused.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedrecon.ops.blobs import BlobStore

KEY_BYTES = 32
SEALED_OVERHEAD_BYTES = 4 + 12 + 16
"""By how much a sealed content is longer than the content."""

_FORMAT = b"FRS1"
_NONCE_BYTES = 12
_CONTENT_LIMIT_BYTES = 2**31 - 1 - 16
"""What the library's AES-GCM takes in one call."""


class SealBroken(Exception):  # noqa: N818 - named for what happened
    """A sealed content did not open: another key sealed it, it is something else than believed, or it was changed."""


def seal(key: bytes, content: bytes, associated: bytes) -> bytes:
    """Return a content sealed.

    Args:
        key: 32 bytes.
        content: What to hide, below 2 GiB.
        associated: What it is; needed again to open it.

    Raises:
        ValueError: If the key has another length, or the content is too long.

    Example:
        >>> key = bytes(32)
        >>> open_sealed(key, seal(key, b"sum", b"round 1"), b"round 1")
        b'sum'
    """
    if len(content) > _CONTENT_LIMIT_BYTES:
        raise ValueError(f"a sealed content is below 2 GiB, got {len(content)} bytes: seal it in parts")
    nonce = os.urandom(_NONCE_BYTES)
    return _FORMAT + nonce + _cipher(key).encrypt(nonce, content, _FORMAT + associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return the content that was sealed.

    Args:
        key: 32 bytes.
        sealed: What `seal` returned.
        associated: What it is believed to be, as given to `seal`.

    Raises:
        SealBroken: If it does not open.
        ValueError: If the key has another length.
    """
    cipher = _cipher(key)
    if len(sealed) < SEALED_OVERHEAD_BYTES or not sealed.startswith(_FORMAT):
        raise SealBroken("these bytes are no sealed content: the file was cut short, or is not one of ours")
    nonce_end = len(_FORMAT) + _NONCE_BYTES
    try:
        return cipher.decrypt(sealed[len(_FORMAT) : nonce_end], sealed[nonce_end:], _FORMAT + associated)
    except InvalidTag as error:
        raise SealBroken(
            "a sealed content did not open: give the key it was sealed with; if the key is right, the file was changed "
            "or stands in another's place"
        ) from error


class SealedBlobs:
    """Sealed contents in a place of their own, named by the digest of their sealed bytes.

    The digest goes into the journal: a file that was replaced by an older one cannot pass for the newest.

    Args:
        blobs: Where they lie.
        key: 32 bytes.

    Raises:
        ValueError: If the key has another length.
    """

    def __init__(self, blobs: BlobStore, key: bytes) -> None:
        _cipher(key)
        self._key = key
        self._blobs = blobs

    def put(self, content: bytes, associated: bytes) -> bytes:
        """Keep a content sealed; when this returns, it survives loss of power.

        Returns:
            Its digest, 32 bytes.

        Raises:
            StorageFull: If the disk is full; nothing is left behind.
        """
        return self._blobs.put(seal(self._key, content, associated))

    def read(self, digest: bytes, associated: bytes) -> bytes:
        """Return a content.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: If the file was damaged.
            SealBroken: If it does not open.
        """
        return open_sealed(self._key, self._blobs.read(digest), associated)

    def delete(self, digest: bytes) -> None:
        """Remove a content; nothing happens if it is not here."""
        self._blobs.delete(digest)

    def sweep(self, named: frozenset[bytes], since_milliseconds: int) -> int:
        """Remove contents that nothing names and that nobody has written since an instant.

        Args:
            named: Digests of those that are needed.
            since_milliseconds: Unix milliseconds.

        Returns:
            How many were removed.
        """
        old = [
            blob.digest
            for blob in self._blobs.stored()
            if blob.digest not in named and blob.written_milliseconds < since_milliseconds
        ]
        return sum(self._blobs.delete_unless_written(digest, since_milliseconds) for digest in old)


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the sealing key has {KEY_BYTES} bytes, got {len(key)}: make one with `openssl rand -hex 32`")
    return AESGCM(key)
