"""The vectorised reader may answer only what the exact one answers."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedrecon.datasets import MalformedFile
from fedrecon.datasets.columns import Columns, Layout, read_exactly, read_numbers
from fedrecon.datasets.text import split_rows

LAYOUT = Layout(width=4, user=0, item=1, rating=2, timestamp=3, numbered=True, scale=(0.5, 5.0))

plain = st.tuples(
    st.integers(0, 30).map(str),
    st.one_of(st.integers(0, 30).map(str), st.just("007"), st.just("3.0")),
    st.sampled_from(["1", "2.5", "5", "5.0", "0.5"]),
    st.integers(0, 2**31).map(str),
).map("\t".join)
odd = st.text("0123.\t-x", max_size=12)


def exactly(body: str) -> Columns | None:
    try:
        return read_exactly(split_rows(body, "\t", Path("x")), LAYOUT, Path("x"))
    except MalformedFile:
        return None


def assert_alike(fast: Columns, exact: Columns | None) -> None:
    assert exact is not None
    for name in ("users", "items", "ratings", "timestamps"):
        assert np.array_equal(getattr(fast, name), getattr(exact, name))
    assert (fast.user_keys, fast.item_keys) == (exact.user_keys, exact.item_keys)


@given(st.lists(st.one_of(plain, odd), min_size=1, max_size=8))
def test_the_fast_reader_never_contradicts_the_exact_one(rows: list[str]) -> None:
    body = "\n".join(rows) + "\n"
    fast = read_numbers(body.encode(), LAYOUT)
    if fast is not None:
        assert_alike(fast, exactly(body))


@given(st.lists(plain, min_size=1, max_size=8, unique_by=lambda row: tuple(float(key) for key in row.split("\t")[:2])))
def test_the_fast_reader_reads_every_plain_file(rows: list[str]) -> None:
    body = "\n".join(rows) + "\n"
    fast = read_numbers(body.encode(), LAYOUT)
    assert fast is not None
    assert_alike(fast, exactly(body))
