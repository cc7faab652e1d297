"""Which items a model takes for alike: the cosine of the angle between their vectors.

Rules: an item's vector is its row of every global parameter that has rows of the items and more than one number in
each; a bias says how an item is liked, not what it is like. Retired items are never returned, an item not to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.inference.bundles import Bundle


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """The vectors of all items.

    Attributes:
        unit: `[items, factors] float32`, each of length 1, or 0 for an item of no direction.
        retired: rows that are not returned.
    """

    unit: NDArray[np.float32]
    retired: NDArray[np.int64]

    @classmethod
    def of(cls, bundle: Bundle, checkpoint: Mapping[str, NDArray[Any]], retired: tuple[int, ...]) -> ItemVectors:
        """Returns the vectors of a checkpoint's items; of no factors where the model has none."""
        vocabulary = bundle.item_field().vocabulary
        tables = [
            values.reshape(len(values), -1)
            for name, values in checkpoint.items()
            if bundle.parameter(name).vocabulary == vocabulary and values.ndim > 1 and values[0].size > 1
        ]
        rows = len(next(iter(tables))) if tables else 0
        joined = np.concatenate(tables, axis=1) if tables else np.zeros((rows, 0), np.float32)
        lengths = np.linalg.norm(joined, axis=1, keepdims=True)
        unit = np.divide(joined, lengths, out=np.zeros_like(joined), where=lengths > 0)
        return cls(unit.astype(np.float32, copy=False), np.array(retired, dtype=np.int64))

    def similar_to(self, row: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the rows most like one, the most alike first, and their cosines.

        Args:
            row: of the item.
            count: wanted, at least 1; there are fewer where fewer are left.
        """
        cosines = self.unit @ self.unit[row]
        cosines[self.retired] = -np.inf
        cosines[row] = -np.inf
        count = min(count, int(np.isfinite(cosines).sum()))
        best = np.argpartition(-cosines, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        best = best[np.lexsort((best, -cosines[best]))]
        return best, cosines[best]
