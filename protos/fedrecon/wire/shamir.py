"""Shamir's secret sharing: any `threshold` shares give a secret of 32 bytes, fewer tell nothing about it.

A secret is a number below 2^256, little-endian; shares are values of a polynomial of degree `threshold - 1` over the
integers modulo p = 2^256 + 297, the smallest prime above 2^256, whose value at 0 is the secret. A share is the value
at a point x > 0: 33 bytes, little-endian. A member of a group with position i in the roster has the point i + 1.

Coefficients come from the caller's entropy: 49 bytes each, little-endian, modulo p, the coefficient of x first, all in
one call. 49 bytes leave a bias below 2^-128 (RFC 9380, section 5.1).

Source: A. Shamir, How to share a secret, CACM 22(11), 1979.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
LARGEST_POINT = 1 << 20
"""More members than any group has: products of a few points stay short."""

_COEFFICIENT_BYTES = 49
_STEPS_WITHOUT_REDUCTION = 16
_WORD_BITS = 62


class DamagedShareError(ValueError):
    """Shares are too few, no shares, or not of one secret."""


def point_of(member: int) -> int:
    """Returns the point of the member with this position in the roster.

    Example:
        >>> point_of(0)
        1
    """
    return member + 1


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Callable[[int], bytes]) -> dict[int, bytes]:
    """Returns one share for each point.

    Args:
        secret: 32 bytes.
        threshold: shares that give it back, from 1 to the number of points.
        points: where the polynomial is evaluated: distinct, from 1.
        entropy: gives so many bytes of a CSPRNG.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import os
        >>> shares = split(bytes(range(32)), 2, [1, 2, 3], os.urandom)
        >>> combine({1: shares[1], 3: shares[3]}, 2) == bytes(range(32))
        True
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"{len(points)} shares cannot have a threshold of {threshold}")
    if len(set(points)) != len(points) or not all(1 <= point <= LARGEST_POINT for point in points):
        raise ValueError(f"points must be distinct and from 1 to {LARGEST_POINT}")
    drawn = entropy(_COEFFICIENT_BYTES * (threshold - 1))
    if len(drawn) != _COEFFICIENT_BYTES * (threshold - 1):  # fewer coefficients would need fewer shares
        raise ValueError(f"the entropy gave {len(drawn)} of {_COEFFICIENT_BYTES * (threshold - 1)} bytes")
    coefficients = [
        int.from_bytes(drawn[start : start + _COEFFICIENT_BYTES], "little") % PRIME
        for start in range(0, len(drawn), _COEFFICIENT_BYTES)
    ]
    descending = [*reversed(coefficients), int.from_bytes(secret, "little")]
    return {point: _value(descending, point).to_bytes(SHARE_BYTES, "little") for point in points}


def _value(descending: Sequence[int], point: int) -> int:
    """Returns the polynomial's value by Horner's rule; points are short, so that a few steps need no reduction."""
    value = 0
    for start in range(0, len(descending), _STEPS_WITHOUT_REDUCTION):
        for coefficient in descending[start : start + _STEPS_WITHOUT_REDUCTION]:
            value = value * point + coefficient
        value %= PRIME
    return value


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Returns the secret behind shares.

    The shares with the smallest points are used. Damaged ones give another secret, or an error: whoever combines
    compares the secret with a commitment.

    Args:
        shares: a share for each point, at least `threshold`.
        threshold: shares that the secret was split for.

    Raises:
        DamagedShareError: they are too few, malformed, or give no secret.
    """
    if not 1 <= threshold <= len(shares):
        raise DamagedShareError(f"{len(shares)} shares; the secret needs {threshold}")
    points = sorted(shares)[:threshold]
    if not (points[0] >= 1 and points[-1] <= LARGEST_POINT):
        raise DamagedShareError(f"the points of shares are from 1 to {LARGEST_POINT}")
    values = [_read_share(shares[point]) for point in points]
    weights = _weights_at_zero(tuple(points))
    secret = sum(value * weight for value, weight in zip(values, weights, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise DamagedShareError("the shares give no secret: at least one of them is damaged")
    return secret.to_bytes(SECRET_BYTES, "little")


def check_share(share: bytes) -> None:
    """Raises unless bytes are a share's.

    Raises:
        DamagedShareError: they are not 33, or their number is not below the prime.
    """
    _read_share(share)


def _read_share(share: bytes) -> int:
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise DamagedShareError(f"a share has {SHARE_BYTES} bytes and is below the prime; this one has {len(share)}")
    return value


@functools.lru_cache(maxsize=16)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Lagrange's weights for the value at 0: the product of x_j / (x_j - x_i) over all j but i.

    Kept for a few sets of points: secrets of members near each other in a ring are shared out among the same ones.

    A single inversion serves all weights.
    """
    column = np.array(points, dtype=np.int64)
    differences = column[None, :] - column[:, None]
    np.fill_diagonal(differences, 1)
    denominators = [x * factor for x, factor in zip(points, _products(differences), strict=True)]
    numerator = _products(column[None, :])[0]
    before, running = [], 1
    for denominator in denominators:
        before.append(running)
        running = running * denominator % PRIME
    inverse = numerator * pow(running, -1, PRIME) % PRIME
    weights = [0] * len(points)
    for position in reversed(range(len(points))):
        weights[position] = before[position] * inverse % PRIME
        inverse = inverse * denominators[position] % PRIME
    return tuple(weights)


def _products(rows: NDArray[np.int64]) -> list[int]:
    """Returns the product of every row modulo the prime; numpy multiplies as many factors at a time as fit a word."""
    at_once = max(1, _WORD_BITS // int(np.abs(rows).max()).bit_length())
    starts = np.arange(0, rows.shape[1], at_once)
    return [math.prod(row) % PRIME for row in np.multiply.reduceat(rows, starts, axis=1).tolist()]
