"""The one pseudo-random generator of fedrecon: the AES-256-CTR keystream.

Initial local parameters and the rounding of updates are drawn from it, and the masks of secure sum are the same
stream under other keys: every platform has AES, it is the fastest generator measured here (5 GB/s), and it can be
read from any position, so that a value is *addressed by its coordinate* and not by what was drawn before it.

The keystream of a seed and a purpose is AES-256-CTR over zeros with key SHA-256(seed || purpose in ASCII) and an
all-zero initial counter block, as in NIST SP 800-38A (big-endian 128-bit counter). Word i is bytes 4i to 4i + 3,
little-endian.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

BLOCK_BYTES = 16
WORD_BYTES = 4
SEED_BYTES = 32


def words(seed: bytes, purpose: str, start: int, count: int) -> NDArray[np.uint32]:
    """Returns words `start` to `start + count - 1` of the keystream, `[count] uint32`.

    Args:
        seed: 32 secret or public bytes; the device draws them from its own CSPRNG.
        purpose: what the words are for, in ASCII: streams of different purposes are independent.
        start: index of the first word.
        count: how many.

    Raises:
        ValueError: the seed is not 32 bytes, or `start` or `count` is negative.

    Example:
        >>> both = words(bytes(32), "example", 0, 8)
        >>> bool((words(bytes(32), "example", 3, 5) == both[3:]).all())
        True
    """
    if start < 0 or count < 0:
        raise ValueError(f"start {start} and count {count} must not be negative")
    stream = stream_from(seed, purpose, start * WORD_BYTES).update(bytes(count * WORD_BYTES))
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32, copy=False)


def stream_from(seed: bytes, purpose: str, first_byte: int) -> CipherContext:
    """Returns the keystream from a byte on: `update` and `update_into` give as many bytes as they are handed zeros.

    Args:
        seed: 32 bytes.
        purpose: what the bytes are for, in ASCII.
        first_byte: position of the first byte.

    Raises:
        ValueError: the seed is not 32 bytes, or the position negative.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a keystream seed has {SEED_BYTES} bytes, not {len(seed)}")
    key = hashlib.sha256(seed + purpose.encode("ascii")).digest()
    block, skipped = divmod(first_byte, BLOCK_BYTES)
    if block < 0:
        raise ValueError(f"the first byte, {first_byte}, must not be negative")
    stream = Cipher(AES(key), CTR(block.to_bytes(BLOCK_BYTES, "big"))).encryptor()
    if skipped:
        stream.update(bytes(skipped))
    return stream


def uniform(seed: bytes, purpose: str, start: int, count: int) -> NDArray[np.float64]:
    """Returns numbers in [0, 1): `word * 2^-32` for every word, `[count] float64`."""
    return words(seed, purpose, start, count).astype(np.float64) * 2.0**-32
