"""Sums of some rows only: parameters and optimizer state narrowed to a public row set, and put back.

The server optimizer then knows nothing of the other rows: their values, and what it remembers of them, keep their
bytes, also under momentum, which would move a row without an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = Mapping[str, NDArray[np.int64]]
"""Rows that a sum holds, `[rows] int64` ascending, by parameter; a parameter that is not named is held whole."""


def narrow(arrays: Mapping[str, NDArray[Any]], rows: Rows) -> dict[str, NDArray[Any]]:
    """Returns parameters, or their optimizer state, with those rows only that a sum holds.

    Args:
        arrays: by the parameter's name, or by `MOMENT/NAME`.
        rows: what the sum holds.

    Raises:
        IndexError: a row is beyond an array.
    """
    chosen = {name: _rows_of(name, rows) for name in arrays}
    return {name: array if (own := chosen[name]) is None else array[own] for name, array in arrays.items()}


def widen(
    narrowed: Mapping[str, NDArray[Any]], whole: Mapping[str, NDArray[Any]], rows: Rows
) -> dict[str, NDArray[Any]]:
    """Returns whole arrays with the rows that a sum held as they are now.

    Args:
        narrowed: what became of what `narrow` gave.
        whole: as they were before.
        rows: what the sum held.
    """
    after = {}
    for name, array in narrowed.items():
        own = _rows_of(name, rows)
        if own is None:
            after[name] = array
            continue
        after[name] = np.array(whole[name])
        after[name][own] = array
    return after


def _rows_of(name: str, rows: Rows) -> NDArray[np.int64] | None:
    """Returns the rows of an array's parameter; None for all."""
    return rows.get(name, rows.get(name.partition("/")[2]))
