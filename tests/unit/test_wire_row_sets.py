"""Public row sets on the wire: what is one, and what a layout makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Layout, Manifest, Parameter, Segment
from fedrecon.wire.manifests import MalformedPlanError, least_contributing_share, segment_elements
from fedrecon.wire.row_sets import MalformedRowSetError, RowSet, read_row_set, write_row_set

DIGEST = b"s" * 32
POPULAR = RowSet(np.array([1, 3, 4]), contributors=5, cohort_size=50)
MANIFEST = Manifest(
    parameters=[
        Parameter(name="items", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[6, 2], vocabulary="items"),
        Parameter(name="biases", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[6, 1], vocabulary="items"),
        Parameter(name="dense", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[4]),
    ]
)


def layout_of(**digests: bytes) -> Layout:
    """A segment for each parameter named, of a row set where a digest is given."""
    widths = {"items": 2, "biases": 1, "dense": 4}
    segments = []
    for name, digest in digests.items():
        segment = Segment(parameter=name, bound=1.0, width=widths[name])
        if digest:
            segment.row_set_digest = digest
        else:
            segment.all_rows = True
        segments.append(segment)
    return Layout(segments=segments)


def test_a_row_set_is_read_as_it_was_written() -> None:
    read = read_row_set(write_row_set(np.array([0, 7, 3_000_000]), 5, 100))
    assert read.rows.tolist() == [0, 7, 3_000_000]
    assert read.rows.dtype == np.int64
    assert read.contributing_share == 0.05


@pytest.mark.parametrize(
    ("rows", "contributors", "cohort", "told"),
    [
        ([], 1, 1, "no rows"),
        ([1, 1], 1, 1, "ascend"),
        ([2, 1], 1, 1, "ascend"),
        ([1], 0, 1, "0 contributors"),
        ([1], 3, 2, "3 contributors in a sum of 2"),
        ([1], 1, 0, "1 contributors in a sum of 0"),
        ([(1 << 64) - 1], 1, 1, "no vocabulary has"),
    ],
)
def test_what_makes_no_sense_is_no_row_set(rows: list[int], contributors: int, cohort: int, told: str) -> None:
    message = plan_pb2.RowSet(rows=rows, contributors=contributors, cohort_size=cohort)
    with pytest.raises(MalformedRowSetError, match=told):
        read_row_set(message.SerializeToString())


def test_damaged_bytes_are_no_row_set() -> None:
    with pytest.raises(MalformedRowSetError, match="damaged"):
        read_row_set(b"\xff\xff")


def test_a_row_set_that_nobody_could_read_is_not_written() -> None:
    with pytest.raises(MalformedRowSetError, match="ascend"):
        write_row_set(np.array([3, 1]), 1, 2)


def test_segments_of_a_row_set_have_its_rows_only() -> None:
    layout = layout_of(items=DIGEST, biases=DIGEST, dense=b"")
    assert segment_elements(layout, MANIFEST, {"items": 6}, {DIGEST: POPULAR}) == [6, 3, 4]
    assert segment_elements(layout_of(items=b"", dense=b""), MANIFEST, {"items": 6}, {}) == [12, 4]


@pytest.mark.parametrize(
    ("layout", "rows", "told"),
    [
        (layout_of(items=b"t" * 32), 6, "not there"),
        (layout_of(items=DIGEST), 4, "has row 4 of 4"),
        (layout_of(dense=DIGEST), 6, "no vocabulary"),
    ],
)
def test_a_layout_whose_row_set_does_not_fit_is_refused(layout: Layout, rows: int, told: str) -> None:
    with pytest.raises(MalformedPlanError, match=told):
        segment_elements(layout, MANIFEST, {"items": rows}, {DIGEST: POPULAR})


def test_the_least_popular_row_of_all_that_is_summed_counts() -> None:
    rare = RowSet(np.array([2]), contributors=1, cohort_size=50)
    sets = {DIGEST: POPULAR, b"t" * 32: rare}
    assert least_contributing_share(layout_of(items=DIGEST, dense=b""), MANIFEST, sets) == 0.1
    assert least_contributing_share(layout_of(items=DIGEST, biases=b"t" * 32), MANIFEST, sets) == 0.02
    assert least_contributing_share(layout_of(items=DIGEST, biases=b""), MANIFEST, sets) == 0.0
    assert least_contributing_share(layout_of(dense=b""), MANIFEST, {}) == 1.0
