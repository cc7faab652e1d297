"""Clipping an update to a norm, before it becomes integers: what makes a differential privacy guarantee possible.

The norm is Euclidean, over all that is reported. Where the clip norm adapts, the report also tells whether the norm was
within it: one bit, summed with noise (Andrew et al. 2021, arXiv 1905.03871).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fedrecon.device_sdk.runtime import SparseUpdate, TrainingResult
from fedrecon.v1.plan_pb2 import Layout


def clip(result: TrainingResult, layout: Layout, clip_norm: float, *, adapts: bool) -> TrainingResult:
    """Returns what a session computed with its update clipped.

    Args:
        result: what the session computed.
        layout: what is reported of it.
        clip_norm: largest norm; 0: any, and nothing is changed.
        adapts: whether the report tells if the norm was within it.
    """
    if not clip_norm:
        return result
    names = [segment.parameter for segment in layout.segments if segment.parameter in result.updates]
    squares = [float(np.sum(np.square(result.updates[name].values, dtype=np.float64))) for name in names]
    norm = math.sqrt(sum(squares))
    metric_sums = (*result.metric_sums, float(norm <= clip_norm)) if adapts else result.metric_sums
    if norm <= clip_norm:
        return replace(result, metric_sums=metric_sums)
    clipped = {
        name: SparseUpdate(result.updates[name].values * (clip_norm / norm), result.updates[name].rows)
        for name in names
    }
    return replace(result, updates={**result.updates, **clipped}, metric_sums=metric_sums)
