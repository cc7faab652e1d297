"""An update is clipped as a whole, and tells whether it had to be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrecon.device_sdk.clipping import clip
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.runtime import SparseUpdate, TrainingResult
from fedrecon.v1.plan_pb2 import Layout, Segment

LAYOUT = Layout(segments=[Segment(parameter="items", all_rows=True), Segment(parameter="bias", all_rows=True)])
ROWS = np.array([1, 4])


def result() -> TrainingResult:
    """An update of norm 5, and one of a parameter that is not reported."""
    updates = {
        "items": SparseUpdate(np.array([[0.0, 3.0], [0.0, 0.0]], np.float32), ROWS),
        "bias": SparseUpdate(np.array([4.0], np.float32), None),
        "unreported": SparseUpdate(np.array([100.0], np.float32), None),
    }
    return TrainingResult(updates, (2.5,), 7, LocalParameters({}), {}, ())


def norm_of(clipped: TrainingResult) -> float:
    return math.sqrt(sum(float(np.sum(clipped.updates[name].values ** 2)) for name in ("items", "bias")))


@pytest.mark.parametrize("clip_norm", [1.0, 2.5, 4.999])
def test_a_long_update_is_shortened_and_keeps_its_direction(clip_norm: float) -> None:
    clipped = clip(result(), LAYOUT, clip_norm, adapts=True)
    assert norm_of(clipped) == pytest.approx(clip_norm, rel=1e-6)
    assert clipped.updates["items"].values[0, 1] / clipped.updates["bias"].values[0] == pytest.approx(0.75)
    assert clipped.updates["items"].rows is ROWS
    assert clipped.metric_sums == (2.5, 0.0)
    assert clipped.updates["unreported"].values[0] == 100


def test_a_short_update_is_not_changed() -> None:
    clipped = clip(result(), LAYOUT, 5.0, adapts=True)
    assert norm_of(clipped) == 5.0
    assert clipped.metric_sums == (2.5, 1.0)
    assert clip(result(), LAYOUT, 6.0, adapts=False).metric_sums == (2.5,)


def test_without_a_clip_norm_nothing_is_clipped() -> None:
    assert norm_of(clip(result(), LAYOUT, 0.0, adapts=False)) == 5.0
