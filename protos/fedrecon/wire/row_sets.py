"""Public row sets: which rows of a vocabulary reports hold.

An update of matrix factorisation has a row for every item that the user rated, each a multiple of the user vector; a
row of a sum with a single contributor is that user's alone. Devices therefore leave out, before they mask, all rows but
those of a set that everybody knows and that was chosen by public popularity. All reports of a round hold the same rows,
touched or not, in the order of the set, so none of them tells which rows a device touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedrecon.v1 import plan_pb2


class MalformedRowSetError(ValueError):
    """Bytes are not a row set, or it contradicts itself."""


@dataclass(frozen=True, slots=True, eq=False)
class RowSet:
    """A row set ready for use.

    Attributes:
        rows: `[rows] int64`, ascending.
        contributors: devices of a sum that are expected to update each row, at least.
        cohort_size: devices in the sum that this is stated for.
    """

    rows: NDArray[np.int64] = field(repr=False)
    contributors: int
    cohort_size: int

    @property
    def contributing_share(self) -> float:
        """Share of the devices in a sum that are expected to update each row, at least: popularity, not a number."""
        return self.contributors / self.cohort_size


def read_row_set(content: bytes) -> RowSet:
    """Returns the row set of its stored bytes.

    Raises:
        MalformedRowSetError: the bytes are damaged, its rows do not ascend, or its numbers make no sense.
    """
    try:
        message = plan_pb2.RowSet.FromString(content)
    except DecodeError as error:
        raise MalformedRowSetError("the row set cannot be read: its bytes are damaged") from error
    if not message.rows or max(message.rows) > np.iinfo(np.int64).max:
        raise MalformedRowSetError("the row set has no rows, or a row that no vocabulary has")
    rows = np.array(message.rows, dtype=np.int64)
    if (np.diff(rows) <= 0).any():
        raise MalformedRowSetError("the rows of a row set ascend, each of them once; these do not")
    if not 1 <= message.contributors <= message.cohort_size:
        raise MalformedRowSetError(
            f"the row set states {message.contributors} contributors in a sum of {message.cohort_size} devices"
        )
    return RowSet(rows, message.contributors, message.cohort_size)


def write_row_set(rows: NDArray[np.int64], contributors: int, cohort_size: int) -> bytes:
    """Returns the stored bytes of a row set.

    Args:
        rows: `[rows]`, ascending.
        contributors: devices of a sum that are expected to update each row, at least.
        cohort_size: devices in the sum that this is stated for.

    Raises:
        MalformedRowSetError: nobody could read it.
    """
    message = plan_pb2.RowSet(rows=rows.tolist(), contributors=contributors, cohort_size=cohort_size)
    content = message.SerializeToString(deterministic=True)
    read_row_set(content)
    return content
