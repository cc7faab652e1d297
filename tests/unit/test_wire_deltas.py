"""A delta gives the very file, or nothing."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecon.wire.deltas import MalformedDeltaError, apply_delta, make_delta


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_file_becomes_any_other(old: bytes, new: bytes) -> None:
    assert apply_delta(old, make_delta(old, new), len(new)) == new


def test_a_file_whose_numbers_moved_a_little_costs_little() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(2_000, 20)).astype(np.float32)
    moved = table.copy()
    rows = random.choice(2_000, 200, replace=False)
    moved[rows] *= 1 + 1e-4 * random.normal(size=(200, 20)).astype(np.float32)
    old, new = b"head" + table.tobytes() + b"round 9", b"head" + moved.tobytes() + b"round 10"
    assert len(make_delta(old, new)) < 0.08 * len(new)


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"\x05\0\0\0",
        (6).to_bytes(8, "little") + zlib.compress(bytes(8)),
        (5).to_bytes(8, "little") + b"no stream",
        (5).to_bytes(8, "little") + zlib.compress(bytes(8))[:-2],
        (5).to_bytes(8, "little") + zlib.compress(bytes(12)),
        (5).to_bytes(8, "little") + zlib.compress(bytes(1 << 24)),
        (5).to_bytes(8, "little") + zlib.compress(bytes(8)) + b"more",
    ],
    ids=["empty", "short", "another size", "no stream", "cut off", "too long", "a bomb", "more behind it"],
)
def test_what_is_no_delta_is_refused(delta: bytes) -> None:
    with pytest.raises(MalformedDeltaError):
        apply_delta(b"12345", delta, 5)
