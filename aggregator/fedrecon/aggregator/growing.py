"""Rows for new items: a checkpoint and its optimizer state, longer than before.

Rules: a new row is the mean of all rows there are, so that an item which nobody has met is scored like an average one;
its optimizer state is that of a first round. Rows are appended and never renumbered: what there was keeps its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.aggregator.optimizers import Optimizer, State
from fedrecon.device_sdk.calling import BLOB_LIMIT_BYTES


class ShrunkError(ValueError):
    """A parameter cannot have as many rows as are asked for: it has more already, or no device would take so many."""


def grow(
    checkpoint: Mapping[str, NDArray[Any]], state: State | None, rows: Mapping[str, int], optimizer: Optimizer
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]] | None]:
    """Returns a checkpoint and its optimizer state with rows for new items.

    Args:
        checkpoint: Parameters by name, `[rows, ...]` where they have rows.
        state: The optimizer's state after the last commit; None before the first.
        rows: Rows wanted, by parameter.
        optimizer: What the state belongs to.

    Raises:
        ShrunkError: A parameter has more rows, or would be larger than what devices fetch.

    Example:
        >>> from fedrecon.aggregator.optimizers import sgd
        >>> grow({"items": np.float32([[1, 2], [3, 6]])}, None, {"items": 3}, sgd(1.0))[0]["items"].tolist()
        [[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]
    """
    added: dict[str, NDArray[Any]] = {}
    for name, wanted in rows.items():
        table = checkpoint[name]
        if len(table) > wanted:
            raise ShrunkError(f"{name} has {len(table)} rows, more than the {wanted} of its vocabulary")
        if wanted * table.itemsize * math.prod(table.shape[1:]) > BLOB_LIMIT_BYTES:  # before room is made for it
            raise ShrunkError(f"{name} would have {wanted} rows: no device fetches more than {BLOB_LIMIT_BYTES} bytes")
        if len(table) < wanted:
            mean = table.mean(axis=0, dtype=np.float64) if len(table) else np.zeros(table.shape[1:])
            added[name] = np.broadcast_to(mean.astype(table.dtype), (wanted - len(table), *table.shape[1:]))
    after = {**checkpoint, **{name: np.concatenate([checkpoint[name], rows]) for name, rows in added.items()}}
    if state is None:
        return after, None
    fresh = optimizer.init(added)
    return after, {**state, **{name: np.concatenate([state[name], more]) for name, more in fresh.items()}}
