"""Item vocabularies: the app's own keys as rows of row-sparse parameters.

Items are appended and retired, never renumbered, so a newer vocabulary is an older one with more rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedrecon.v1.plan_pb2 import Vocabulary


class MalformedVocabularyError(ValueError):
    """Bytes are not a vocabulary, or it contradicts itself."""


@dataclass(frozen=True, slots=True)
class Items:
    """A vocabulary ready for look-ups.

    Attributes:
        name: name of the vocabulary.
        version: grows with every change.
        keys: the app's key of every row.
        titles: title of every row, or empty.
        retired: rows that are not recommended any more, sorted.
        rows: row of every key.
    """

    name: str
    version: int
    keys: tuple[str, ...]
    titles: tuple[str, ...]
    retired: tuple[int, ...]
    rows: dict[str, int] = field(repr=False)

    def rows_of(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Returns the row of each key, -1 where the vocabulary does not know it."""
        return np.fromiter((self.rows.get(key, -1) for key in keys), dtype=np.int64)

    def title_of(self, row: int) -> str:
        """Returns the title of a row, or its key if there are no titles."""
        return self.titles[row] if self.titles else self.keys[row]


def read_vocabulary(content: bytes) -> Items:
    """Returns the vocabulary of its stored bytes.

    Raises:
        MalformedVocabularyError: the bytes are damaged, keys repeat, or titles and keys differ in number.
    """
    try:
        message = Vocabulary.FromString(content)
    except DecodeError as error:
        raise MalformedVocabularyError("the vocabulary cannot be read: its bytes are damaged") from error
    rows = {key: row for row, key in enumerate(message.keys)}
    if len(rows) != len(message.keys):
        raise MalformedVocabularyError(f"vocabulary {message.name!r}: a key stands on two rows")
    if message.titles and len(message.titles) != len(message.keys):
        raise MalformedVocabularyError(
            f"vocabulary {message.name!r}: {len(message.titles)} titles for {len(message.keys)} keys"
        )
    if any(row >= len(message.keys) for row in message.retired_rows):
        raise MalformedVocabularyError(f"vocabulary {message.name!r}: a retired row is beyond its {len(rows)} rows")
    return Items(
        name=message.name,
        version=message.version,
        keys=tuple(message.keys),
        titles=tuple(message.titles),
        retired=tuple(sorted(message.retired_rows)),
        rows=rows,
    )


def write_vocabulary(name: str, version: int, keys: Iterable[str], titles: Iterable[str] = ()) -> bytes:
    """Returns the stored bytes of a vocabulary without retired rows."""
    message = Vocabulary(name=name, version=version, keys=keys, titles=titles)
    return message.SerializeToString(deterministic=True)
