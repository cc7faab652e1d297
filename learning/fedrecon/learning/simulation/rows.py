"""Rows of row-sparse parameters that clients touch: whether each is read once, and copies where they are not.

A client whose steps read a row again must see what it did to the row before, so it gets a copy of the rows that its
query set names, numbered from 0; fields are renumbered accordingly, as the `touch` graph of a plan does on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.simulation.batches import Half
from fedrecon.learning.simulation.examples import ClientExamples, Positions
from fedrecon.learning.simulation.steps import Named


@dataclass(frozen=True, slots=True, eq=False)
class Touched:
    """The rows that clients of a chunk touch.

    Attributes:
        columns: all fields; those with a vocabulary are numbered by each client's own rows.
        rows: these rows, `[clients, most] int64`, by vocabulary; padded with row 0, which no field then names.
    """

    columns: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]

    def of(self, model: FederatedModel, global_parameters: Tensors) -> Named:
        """Returns each client's copy of its rows of every row-sparse parameter, `[clients, most, ...]`."""
        sparse = model.row_sparse if self.rows else {}
        return {name: global_parameters[name][self.rows[vocabulary]] for name, vocabulary in sparse.items()}


def fields_of(model: FederatedModel, vocabulary: str) -> tuple[str, ...]:
    """Returns the fields that hold row numbers of a vocabulary."""
    return tuple(each.name for each in model.fields if each.vocabulary == vocabulary)


def reads_once(model: FederatedModel, examples: ClientExamples) -> bool:
    """Returns whether no client's examples name a row of any vocabulary twice."""
    owners = np.repeat(np.arange(len(examples)), examples.counts)
    for vocabulary in set(model.row_sparse.values()):
        named = _named(model, vocabulary, examples, slice(None))
        keys = owners[:, None] * (int(named.max(initial=0)) + 1) + named
        if len(np.unique(keys)) != keys.size:
            return False
    return True


def bytes_of_rows(model: FederatedModel, query: Half) -> int:
    """Returns an upper bound of the bytes of all rows that one client touches."""
    most = int(query.counts.max(initial=0))
    total = 0
    for name, vocabulary in model.row_sparse.items():
        named = sum(math.prod(each.shape) for each in model.fields if each.vocabulary == vocabulary)
        value = model.parameters[name]
        total += min(most * named, len(value)) * value[0].numel() * value.element_size()
    return total


def touch(model: FederatedModel, examples: ClientExamples, query: Half, chunk: Positions) -> Touched:
    """Returns the rows that the query sets of some clients name.

    Args:
        model: whose row-sparse parameters count.
        examples: of all clients.
        query: their query sets.
        chunk: which clients.
    """
    padded, mask = query.padded(chunk)
    positions = torch.from_numpy(padded[mask > 0])
    owners = np.nonzero(mask > 0)[0]
    columns = dict(examples.fields)
    rows: Named = {}
    for vocabulary in sorted(set(model.row_sparse.values())):
        named = _named(model, vocabulary, examples, positions)
        extent = int(named.max(initial=0)) + 1
        keys, inverse = np.unique(owners[:, None] * extent + named, return_inverse=True)
        owner, row = keys // extent, keys % extent
        own = np.bincount(owner, minlength=len(chunk))
        slots = np.arange(len(keys)) - (np.cumsum(own) - own)[owner]
        table = np.zeros((len(chunk), max(int(own.max(initial=0)), 1)), dtype=np.int64)
        table[owner, slots] = row
        rows[vocabulary] = torch.from_numpy(table)
        numbers = torch.from_numpy(slots[inverse].reshape(named.shape))
        for name in fields_of(model, vocabulary):
            column = torch.zeros_like(examples.fields[name])
            width = _by_example(column).shape[1]
            mine, numbers = numbers.split([width, numbers.shape[1] - width], dim=1)  # type: ignore[no-untyped-call]
            column[positions] = mine.reshape(-1, *column.shape[1:]).to(column.device)
            columns[name] = column
    device = next(iter(columns.values())).device
    return Touched(columns, {name: table.to(device) for name, table in rows.items()})


def _named(model: FederatedModel, vocabulary: str, examples: ClientExamples, positions: Tensor | slice) -> Positions:
    """Returns the rows that examples name, `[examples, rows of one]`."""
    columns = [examples.fields[name][positions] for name in fields_of(model, vocabulary)]
    named: Positions = torch.cat([_by_example(column) for column in columns], dim=1).cpu().numpy()
    return named


def _by_example(column: Tensor) -> Tensor:
    """Returns a field as a table, `[examples, numbers of one]`; of no examples, too."""
    return column.reshape(len(column), math.prod(column.shape[1:]))
