"""The examples of many clients in a few arrays: one client after the other, nothing padded.

Positions are numbers of examples in these arrays; a client's examples are oldest first, as on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ClientExamples:
    """Examples of many clients.

    Attributes:
        fields: by name, `[examples, ...]`, all clients' one after the other; vocabulary fields as row numbers.
        offsets: `[clients + 1] int64`, where each client's examples begin, and the end.

    Raises:
        ValueError: offsets and fields do not fit together.

    Example:
        >>> two = [{"item": [4, 7], "rating": [5.0, 1.0]}, {"item": [4], "rating": [3.0]}]
        >>> clients = ClientExamples.from_clients(two)
        >>> len(clients), clients.counts.tolist(), clients.fields["item"].tolist()
        (2, [2, 1], [4, 7, 4])
    """

    fields: Mapping[str, Tensor]
    offsets: Positions

    def __post_init__(self) -> None:
        if not len(self.offsets) or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must begin with 0 and never fall")
        for name, column in self.fields.items():
            if len(column) != self.offsets[-1]:
                raise ValueError(f"field {name!r} has {len(column)} examples, but the clients have {self.offsets[-1]}")

    @classmethod
    def from_clients(cls, clients: Sequence[Mapping[str, Any]]) -> ClientExamples:
        """Returns the examples of these clients, each a mapping of fields to `[examples, ...]`.

        Raises:
            ValueError: there are no clients, or one has columns of different lengths.
        """
        if not clients:
            raise ValueError("there are no clients")
        columns = {name: [torch.as_tensor(np.asarray(client[name])) for client in clients] for name in clients[0]}
        counts = [len(next(iter(client.values()))) for client in clients]
        for name, column in columns.items():
            for number, (part, count) in enumerate(zip(column, counts, strict=True)):
                if len(part) != count:
                    raise ValueError(f"client {number}: field {name!r} has {len(part)} examples, others {count}")
        fields = {name: torch.cat(parts) for name, parts in columns.items()}
        fields = {name: part.float() if part.dtype == torch.float64 else part for name, part in fields.items()}
        return cls(fields, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Positions:
        """Examples of every client, `[clients] int64`."""
        counts: Positions = np.diff(self.offsets)
        return counts

    def select(self, clients: Positions | Sequence[int]) -> ClientExamples:
        """Returns the examples of some clients, in the order given."""
        chosen = np.asarray(clients, dtype=np.int64)
        counts = self.counts[chosen]
        positions = torch.from_numpy(ragged(self.offsets[chosen], counts))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return ClientExamples({name: column[positions] for name, column in self.fields.items()}, offsets)

    def newest(self, most: int) -> ClientExamples:
        """Returns at most this many examples of every client, the newest."""
        counts = np.minimum(self.counts, most)
        positions = torch.from_numpy(ragged(self.offsets[1:] - counts, counts))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return ClientExamples({name: column[positions] for name, column in self.fields.items()}, offsets)

    def to(self, device: torch.device | str) -> ClientExamples:
        """Returns the same examples on a device."""
        return ClientExamples({name: column.to(device) for name, column in self.fields.items()}, self.offsets)


def ragged(starts: Positions, counts: Positions) -> Positions:
    """Returns start, start + 1, ... of every run, one run after the other.

    Example:
        >>> ragged(np.array([10, 3]), np.array([2, 3])).tolist()
        [10, 11, 3, 4, 5]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Positions = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
    return numbers
