"""Leaving out, before anything is clipped or masked, the rows that a round's public row sets do not name.

A threshold that the server applied to a sum would hide nothing from the server; what never enters the sum, it cannot
see. What a device can check: that a set is one, fits the model, and is stated to be popular enough for what the app
insists on, in the smallest group that may be opened. That the operator's statement is true, it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedrecon.device_sdk.errors import FloorsNotMetError
from fedrecon.device_sdk.runtime import SparseUpdate, TrainingResult
from fedrecon.v1.plan_pb2 import Layout, Manifest
from fedrecon.wire import manifests
from fedrecon.wire.row_sets import RowSet


def verify_contributors(
    layout: Layout,
    manifest: Manifest,
    row_sets: Mapping[bytes, RowSet],
    minimum_group: int,
    minimum_contributors: int,
) -> None:
    """Raises unless every row that a report holds is expected to have as many contributors as the app insists on.

    Args:
        layout: the assignment's.
        manifest: the plan's.
        row_sets: by digest, those that the layout names.
        minimum_group: fewest reports for which the sum is opened.
        minimum_contributors: the app's floor.

    Raises:
        FloorsNotMetError: there may be fewer (`TOO_FEW_CONTRIBUTORS`).
    """
    expected = manifests.least_contributing_share(layout, manifest, row_sets) * minimum_group
    if expected < minimum_contributors:
        raise FloorsNotMetError(
            f"in a sum of {minimum_group} devices a row may have {expected:g} contributors, by what the task states; "
            f"the app wants {minimum_contributors}",
            reason="TOO_FEW_CONTRIBUTORS",
        )


def restrict(result: TrainingResult, layout: Layout, row_sets: Mapping[bytes, RowSet]) -> TrainingResult:
    """Returns what a session computed, of row sets' parameters only their rows, numbered by their places in the set.

    Args:
        result: what the session computed.
        layout: the assignment's.
        row_sets: by digest, those that the layout names.
    """
    updates = dict(result.updates)
    for segment in layout.segments:
        if segment.row_set_digest and segment.parameter in updates:
            updates[segment.parameter] = _restricted(updates[segment.parameter], row_sets[segment.row_set_digest])
    return replace(result, updates=updates)


def _restricted(update: SparseUpdate, row_set: RowSet) -> SparseUpdate:
    if update.rows is None:
        return SparseUpdate(update.values[row_set.rows], None)
    is_kept = np.isin(update.rows, row_set.rows)
    return SparseUpdate(update.values[is_kept], np.searchsorted(row_set.rows, update.rows[is_kept]))
