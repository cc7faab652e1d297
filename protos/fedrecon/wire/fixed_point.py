"""Fixed-point vectors: updates as integers whose sums are exact in any order.

A report is one vector (`Layout` in `plan.proto`): the body holds the weighted update, one integer of the ring for
each element; the tail holds the weight, a one, and the metric sums in 64 bits each.

- body: `q = floor(clip(w * delta, ±W * bound) * scale + u)` modulo 2^M with `scale = qmax / (W * bound)` and
  `qmax = floor((2^(M-1) - 1) / n)`, so a sum of n reports cannot leave the signed range. `u` in [0, 1) is addressed
  by coordinate (`keystream`, purpose `rounding`), so a sparse row and a dense vector round alike; a zero stays zero
  because floor(0 + u) = 0. All of it in float64.
- tail: `[w, 1, metrics...]` modulo 2^64, metrics as `round(clip(sum, ±n_i * bound) * 2^20)`, and never more than
  `floor((2^63 - 1) / n)`, so that their sum stays signed, too.

w = min(n_i, W) is the clipped weight. Rounding is stochastic and therefore unbiased: E[floor(x + u)] = x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrecon.wire import keystream

METRIC_SCALE = 1 << 20
RING_BITS = (16, 32)
TAIL_WEIGHT = 0
TAIL_ONE = 1
TAIL_METRICS = 2
WITHIN_CLIP = "within_clip"
"""Metric sum that reports have beside the plan's where a clip norm adapts: 1 if the update's norm was within it."""
WITHIN_CLIP_BOUND = 1.0
WITHIN_CLIP_NOISE_SHARE = 0.05
"""Noise on the count of those within the clip norm, as a share of the reports wanted (Andrew et al. 2021)."""
TAIL_ENTRY_BYTES = 8

_PIECE_ELEMENTS = 1 << 14
"""Elements that are rounded together: a phone has no room for a whole report in 64 bits, several times over."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of vector elements that share a contribution bound.

    Attributes:
        elements: how many elements.
        bound: largest absolute value of one element of the update, > 0.
        row_set: digest of the public row set whose rows they are; empty where they are all rows.
    """

    elements: int
    bound: float
    row_set: bytes = b""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How updates become integers: agreed for one round, the same for every device.

    Attributes:
        segments: the body of the vector.
        metric_bounds: for every metric sum, the largest absolute value one example adds.
        maximum_reports: n, the most reports that one sum may hold.
        maximum_weight: W, the weight clip.
        ring_bits: M, 16 or 32.
    """

    segments: tuple[Segment, ...]
    metric_bounds: tuple[float, ...]
    maximum_reports: int
    maximum_weight: int
    ring_bits: int = 32

    def __post_init__(self) -> None:
        """Refuses parameters under which a sum could overflow or carry nothing."""
        if self.ring_bits not in RING_BITS:
            raise ValueError(f"ring of {self.ring_bits} bits; allowed are {RING_BITS}")
        if self.maximum_reports < 1 or self.maximum_weight < 1:
            raise ValueError(
                f"maximum_reports {self.maximum_reports} and maximum_weight {self.maximum_weight} must be >= 1"
            )
        if self.quantum_limit < 1:
            raise ValueError(f"{self.maximum_reports} reports do not fit a ring of {self.ring_bits} bits")
        if any(segment.elements < 0 or not 0 < segment.bound < float("inf") for segment in self.segments):
            raise ValueError("every segment needs a finite bound > 0 and a length >= 0")
        if not all(0 < scale < float("inf") for scale in self.scales().tolist()):
            raise ValueError("a segment's bound is too large or too small: its values cannot be scaled to integers")
        if not all(0 <= bound < float("inf") for bound in self.metric_bounds):
            raise ValueError("every metric sum needs a finite bound >= 0")

    @property
    def quantum_limit(self) -> int:
        """qmax: the largest absolute integer of one report's body."""
        return int(((1 << (self.ring_bits - 1)) - 1) // self.maximum_reports)

    @property
    def metric_limit(self) -> int:
        """The largest absolute integer of one report's metric sum: n of them stay within signed 64 bits."""
        return ((1 << 63) - 1) // self.maximum_reports

    @property
    def elements(self) -> int:
        """Elements of the body."""
        return sum(segment.elements for segment in self.segments)

    @property
    def body_type(self) -> np.dtype[np.unsignedinteger]:
        """Unsigned integer type of the ring, little-endian."""
        return np.dtype(f"<u{self.ring_bits // 8}")

    @property
    def tail_entries(self) -> int:
        """Entries of the tail: weight, one, metric sums."""
        return TAIL_METRICS + len(self.metric_bounds)

    @property
    def vector_bytes(self) -> int:
        """Length of a report's vector."""
        return self.elements * self.body_type.itemsize + self.tail_entries * TAIL_ENTRY_BYTES

    def scales(self) -> NDArray[np.float64]:
        """Returns integers per unit of `weight * update`, one for every segment, `[segments] float64`."""
        return np.array([self.quantum_limit / (self.maximum_weight * segment.bound) for segment in self.segments])


@dataclass(frozen=True, slots=True)
class Vector:
    """The integers of one report, or a sum of such.

    Attributes:
        body: `[elements]` unsigned integers modulo 2^ring_bits.
        tail: `[2 + metrics] uint64`: weight, ones, metric sums, modulo 2^64.
    """

    body: NDArray[np.unsignedinteger]
    tail: NDArray[np.uint64]

    def to_bytes(self) -> bytes:
        """Returns the little-endian bytes, body first."""
        return self.body.tobytes() + self.tail.tobytes()


def quantise(
    updates: Sequence[NDArray[np.floating]],
    examples: int,
    metric_sums: Sequence[float],
    fixed_point: FixedPoint,
    rounding_seed: bytes,
) -> Vector:
    """Returns the integers that one device reports.

    Args:
        updates: the update of every segment, flattened, in layout order.
        examples: n_i, the query examples behind it.
        metric_sums: sums over those examples, in manifest order.
        fixed_point: the round's agreement.
        rounding_seed: 32 bytes of the device's own CSPRNG.

    Raises:
        ValueError: lengths differ from the layout, a value is not finite, or there are no examples.
    """
    if examples < 1:
        raise ValueError("a report needs at least one query example")
    if [update.size for update in updates] != [segment.elements for segment in fixed_point.segments]:
        raise ValueError(
            f"updates have {[update.size for update in updates]} elements, "
            f"the layout {[segment.elements for segment in fixed_point.segments]}"
        )
    if len(metric_sums) != len(fixed_point.metric_bounds):
        raise ValueError(f"{len(metric_sums)} metric sums, the layout has {len(fixed_point.metric_bounds)}")
    weight = min(examples, fixed_point.maximum_weight)
    body = np.zeros(fixed_point.elements, dtype=fixed_point.body_type)
    start = 0
    for update, segment, scale in zip(updates, fixed_point.segments, fixed_point.scales(), strict=True):
        flat = np.asarray(update).ravel()
        if not np.isfinite(flat).all():
            raise ValueError("the update holds a value that is not finite: it diverged; nothing is reported")
        limit = fixed_point.maximum_weight * segment.bound
        for first in range(0, flat.size, _PIECE_ELEMENTS):
            piece = flat[first : first + _PIECE_ELEMENTS].astype(np.float64)
            scaled = np.clip(piece * weight, -limit, limit) * scale
            scaled += keystream.uniform(rounding_seed, "rounding", start + first, piece.size)
            integers = np.clip(np.floor(scaled), -fixed_point.quantum_limit, fixed_point.quantum_limit)
            body[start + first : start + first + piece.size] = integers.astype(np.int64).astype(fixed_point.body_type)
        start += flat.size
    tail = [weight, 1]
    for total, bound in zip(metric_sums, fixed_point.metric_bounds, strict=True):
        if not np.isfinite(total):
            raise ValueError("a metric sum is not finite; nothing is reported")
        scaled_sum = float(np.clip(total, -examples * bound, examples * bound)) * METRIC_SCALE
        limit = fixed_point.metric_limit  # as a float it may be rounded up, and an infinite sum has no integer
        tail.append(max(-limit, min(limit, round(float(np.clip(scaled_sum, -limit, limit))))))
    return Vector(body, np.array([entry % (1 << 64) for entry in tail], dtype="<u8"))


def read_vector(content: bytes | bytearray | memoryview, fixed_point: FixedPoint) -> Vector:
    """Returns the vector of little-endian bytes; a view, not a copy.

    Raises:
        ValueError: the length is not the layout's.
    """
    if len(content) != fixed_point.vector_bytes:
        raise ValueError(f"a vector of {len(content)} bytes; the layout needs {fixed_point.vector_bytes}")
    body = np.frombuffer(content, dtype=fixed_point.body_type, count=fixed_point.elements)
    tail_start = fixed_point.elements * fixed_point.body_type.itemsize
    return Vector(body, np.frombuffer(content, dtype="<u8", offset=tail_start))


def add(total: Vector, report: Vector) -> None:
    """Adds a report to a sum in place, modulo the rings."""
    np.add(total.body, report.body, out=total.body)
    np.add(total.tail, report.tail, out=total.tail)


def zero(fixed_point: FixedPoint) -> Vector:
    """Returns an empty sum."""
    return Vector(
        np.zeros(fixed_point.elements, dtype=fixed_point.body_type),
        np.zeros(fixed_point.tail_entries, dtype="<u8"),
    )


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """What a closed sum says, in real numbers.

    Attributes:
        updates: per segment the sum of w * delta, `[elements] float64`.
        weight: the sum of w.
        reports: the sum of the ones.
        metrics: sums over examples, in manifest order.
    """

    updates: tuple[NDArray[np.float64], ...]
    weight: int
    reports: int
    metrics: tuple[float, ...]


def dequantise(total: Vector, fixed_point: FixedPoint) -> WeightedSum:
    """Returns the real numbers behind a sum of at most `maximum_reports` reports."""
    signed = total.body.view(np.dtype(f"<i{fixed_point.ring_bits // 8}")).astype(np.float64)
    updates, start = [], 0
    for segment, scale in zip(fixed_point.segments, fixed_point.scales(), strict=True):
        updates.append(signed[start : start + segment.elements] / scale)
        start += segment.elements
    metrics = total.tail[TAIL_METRICS:].view("<i8").astype(np.float64) / METRIC_SCALE
    return WeightedSum(
        updates=tuple(updates),
        weight=int(total.tail[TAIL_WEIGHT]),
        reports=int(total.tail[TAIL_ONE]),
        metrics=tuple(float(metric) for metric in metrics),
    )
