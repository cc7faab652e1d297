"""DP-FedAvg: noise on the sum of clipped updates, a fixed denominator, and a clip norm that may adapt.

Rules: the noise is added to the integers of the sum, after the groups were added and before anything is made of them;
what is released follows from the noisy integers alone, so weights, metric sums and the exact sum's digest stay here.
Reports weigh one each, and the mean divides by the number that was wanted, however many there are: a denominator that
depended on the reports would have to be noised itself. The noise is a function of a secret key and the groups: a merge
that is repeated gives the same checkpoint, since two draws for one sum would give the sum away. With noise in a tree,
a sum gets the noise of one node, and loses that of the nodes which this one replaces: rounded alike, it cancels to the
bit.

The Gaussian is drawn in double precision from the AES keystream of a 32-byte secret seed (53 bits for each of the two
numbers of Box and Muller 1958) and rounded to integers. Rounding after the noise is post-processing; that a double is
no real number is the usual caveat (Mironov 2012), and far below the integers here.

Source: McMahan et al. 2018 (arXiv 1710.06963); adaptive clipping: Andrew, Thakkar, McMahan and Ramaswamy 2021
(arXiv 1905.03871), with its rate 0.2 and sigma_b = n / 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrecon.wire import keystream
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import METRIC_SCALE, WITHIN_CLIP_NOISE_SHARE, FixedPoint

CLIP_RATE = 0.2
_WORDS_FOR_NORMAL = 4
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How one sum is made private.

    Attributes:
        noise_multiplier: z, of the whole mechanism: of the update, and of the count that the clip norm adapts by.
        clip_norm: C that the updates were clipped to.
        clip_quantile: what the clip norm follows; 0: it is fixed.
        denominator: reports that were wanted.
        seed: 32 secret bytes of this sum alone, or of the node of a tree whose noise it gets.
        removed: seeds of the nodes whose noise is taken away again.
    """

    noise_multiplier: float
    clip_norm: float
    clip_quantile: float
    denominator: int
    seed: bytes
    removed: tuple[bytes, ...] = ()

    @property
    def update_multiplier(self) -> float:
        """Noise multiplier of the update: larger than z where the count of norms within the clip has its share.

        z_d = (z^-2 - (2 sigma_b)^-2)^(-1/2), with sigma_b the noise of that count (Andrew et al. 2021, theorem 1).
        """
        if not self.clip_quantile:
            return self.noise_multiplier
        left = self.noise_multiplier**-2 - (2 * self.bit_deviation) ** -2
        if left <= 0:
            raise ValueError(
                f"a noise multiplier of {self.noise_multiplier} leaves nothing for the update with {self.denominator} "
                "reports: take a smaller one, a fixed clip norm, or more reports"
            )
        return float(left**-0.5)

    @property
    def bit_deviation(self) -> float:
        """Standard deviation of the noise on the count of norms within the clip, in devices."""
        return WITHIN_CLIP_NOISE_SHARE * self.denominator


def add_noise(body: NDArray[np.int64], fixed_point: FixedPoint, mechanism: Mechanism) -> NDArray[np.int64]:
    """Returns the integers of a sum with noise.

    A report's integers are within one of its scaled values each (they are rounded up or down), so the norm that noise
    must cover is C and what rounding may add.

    Args:
        body: `[elements] int64`, the sum, signed.
        fixed_point: how updates became integers.
        mechanism: how much noise.
    """
    scales = fixed_point.scales()
    rounding = math.sqrt(
        sum(segment.elements / scale**2 for segment, scale in zip(fixed_point.segments, scales, strict=True))
    )
    deviation = mechanism.update_multiplier * (mechanism.clip_norm + rounding)
    noisy, start = body.copy(), 0
    for segment, scale in zip(fixed_point.segments, scales, strict=True):
        for first in range(start, start + segment.elements, _PIECE):
            last = min(first + _PIECE, start + segment.elements)
            for seed, sign in ((mechanism.seed, 1), *((each, -1) for each in mechanism.removed)):
                noise = normals(seed, "noise of the update", first, last - first)
                noisy[first:last] += sign * np.rint(deviation * scale * noise).astype(np.int64)
        start += segment.elements
    return noisy


def next_clip_norm(within: int, mechanism: Mechanism) -> float:
    """Returns the clip norm of the next round: C exp(-0.2 (share within C - quantile)), with a noisy share.

    Args:
        within: the sum of the metric `within_clip`, as its integer.
        mechanism: the round's.
    """
    if not mechanism.clip_quantile:
        return mechanism.clip_norm
    noise = float(normals(mechanism.seed, "noise of the clip", 0, 1)[0]) * mechanism.bit_deviation
    share = (within / METRIC_SCALE + noise) / mechanism.denominator
    return mechanism.clip_norm * math.exp(-CLIP_RATE * (share - mechanism.clip_quantile))


def digest_of_noisy(body: NDArray[np.int64]) -> bytes:
    """Returns SHA-256 of noisy integers, little-endian: the exact sum's digest would let guesses be tried."""
    return digest_of(np.ascontiguousarray(body, dtype="<i8").tobytes())


def normals(seed: bytes, purpose: str, start: int, count: int) -> NDArray[np.float64]:
    """Returns standard normal numbers, addressed by their position, `[count] float64`.

    Args:
        seed: 32 secret bytes.
        purpose: what they are for: streams of different purposes are independent.
        start: index of the first.
        count: how many.

    Example:
        >>> all_of_them = normals(bytes(32), "example", 0, 5)
        >>> bool((normals(bytes(32), "example", 2, 3) == all_of_them[2:]).all())
        True
    """
    words = keystream.words(seed, purpose, _WORDS_FOR_NORMAL * start, _WORDS_FOR_NORMAL * count)
    pairs = words.reshape(count, _WORDS_FOR_NORMAL).astype(np.uint64)
    first, second = (_uniform(pairs[:, column], pairs[:, column + 1]) for column in (0, 2))
    drawn: NDArray[np.float64] = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
    return drawn


def _uniform(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns numbers in (0, 1] of 53 bits each."""
    return ((high >> np.uint64(5)) * (1 << 26) + (low >> np.uint64(6)) + 1).astype(np.float64) * 2.0**-53
