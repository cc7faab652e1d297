"""The difference between two files of which the second is the first with other numbers: what a device fetches.

    delta = size (8 bytes, little-endian) of the new file | zlib stream (RFC 1950) of the planes

The planes are the exclusive or of both files, byte by byte, the old one cut or filled up with zeros to the new one's
size and both to a multiple of four: first every fourth byte from the first on, then from the second on, and so on.
What stayed the same is zeros; of numbers that moved a little the upper bytes are, and these lie together.

Rules: a delta says nothing of itself: whoever applies it knows the digest of the file that must come out, and believes
no other. It is expanded to the size of that file and no further, whatever it holds.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_SIZE_BYTES = 8
_PLANES = 4
_LEVEL = 6


class MalformedDeltaError(ValueError):
    """Bytes are no delta, or one of another size than expected."""


def make_delta(old: bytes, new: bytes) -> bytes:
    """Returns what turns one file into another.

    Example:
        >>> old, new = bytes(1000) + b"1234", bytes(1000) + b"1235"
        >>> len(make_delta(old, new)) < 40
        True
        >>> apply_delta(old, make_delta(old, new), len(new)) == new
        True
    """
    changed = _fitted(old, len(new)) ^ _fitted(new, len(new))
    planes = np.ascontiguousarray(changed.reshape(-1, _PLANES).T)
    return len(new).to_bytes(_SIZE_BYTES, "little") + zlib.compress(planes.tobytes(), _LEVEL)


def apply_delta(old: bytes, delta: bytes, size: int) -> bytes:
    """Returns the new file; its digest is the caller's to check.

    Args:
        old: the file that the delta was made from.
        delta: what `make_delta` gave.
        size: of the new file, as whoever names it says.

    Raises:
        MalformedDeltaError: it is no delta to a file of this size.
    """
    if int.from_bytes(delta[:_SIZE_BYTES], "little") != size or len(delta) < _SIZE_BYTES:
        raise MalformedDeltaError(f"the delta is not to a file of {size} bytes")
    padded = -(-size // _PLANES) * _PLANES
    stream = zlib.decompressobj()
    try:
        planes = stream.decompress(delta[_SIZE_BYTES:], padded + 1)
    except zlib.error as error:
        raise MalformedDeltaError(f"the delta cannot be expanded: {error}") from error
    if len(planes) != padded or not stream.eof or stream.unused_data:
        raise MalformedDeltaError(f"the delta holds something else than {padded} bytes")
    changed = np.frombuffer(planes, dtype=np.uint8).reshape(_PLANES, -1).T.reshape(-1)
    return (_fitted(old, size) ^ changed)[:size].tobytes()


def _fitted(content: bytes, size: int) -> NDArray[np.uint8]:
    """Returns bytes cut or filled up with zeros to a size, and that to a multiple of four."""
    fitted = np.zeros(-(-size // _PLANES) * _PLANES, dtype=np.uint8)
    kept = np.frombuffer(content[:size], dtype=np.uint8)
    fitted[: kept.size] = kept
    return fitted
