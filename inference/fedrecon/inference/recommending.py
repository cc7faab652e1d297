"""One recommender, opened: the app's keys and numbers in, the app's keys and titles out.

Rules: examples with keys that the vocabulary does not know are left out and named. Values that no example may have
are refused, never mended. Nothing is kept between two users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.stepwise import open_session
from fedrecon.inference.taken_fields import FIELDS_KEY, TakenField, read_fields
from fedrecon.wire.vocabularies import Items


class UnusableExamplesError(ValueError):
    """Examples that a recommender cannot take.

    Attributes:
        reason: stable word for programs.
        advice: what to do about it.
    """

    def __init__(self, reason: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.advice = advice


class DivergedError(ArithmeticError):
    """The reconstruction of this user gave scores that are not finite."""


@dataclass(frozen=True, slots=True)
class KeysOrNumbers:
    """One column of a user's examples.

    Attributes:
        keys: the app's keys, for a field with a vocabulary.
        numbers: numbers, for one without.
    """

    keys: Sequence[str] = ()
    numbers: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is recommended.

    Attributes:
        rows: best first.
        scores: of each row.
        unknown_keys: keys of examples that were left out, each once.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    unknown_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenRecommender:
    """A recommender that answers; safe to use from many threads.

    Attributes:
        session: the file, opened.
        items: its vocabulary.
        fields: what it takes.
    """

    session: onnxruntime.InferenceSession
    items: Items
    fields: tuple[TakenField, ...]

    @classmethod
    def open(cls, content: bytes, items: Items) -> OpenRecommender:
        """Opens a recommender's file."""
        session = open_session(content)
        fields = read_fields(session.get_modelmeta().custom_metadata_map[FIELDS_KEY])
        return cls(session, items, fields)

    def recommend(
        self, columns: Mapping[str, KeysOrNumbers], count: int, *, exclude_seen: bool, excluded_keys: Sequence[str] = ()
    ) -> Ranking:
        """Returns the best items for a user with these examples.

        Args:
            columns: the examples by field; none for a user without examples.
            count: recommendations wanted, at least 1; there are fewer where fewer are left.
            exclude_seen: whether items of the examples are left out.
            excluded_keys: keys left out besides; unknown ones are left out anyway.

        Raises:
            UnusableExamplesError: a column is missing, too many, of another length, or holds a wrong value.
            DivergedError: the scores are not finite.
        """
        if count < 1:
            raise UnusableExamplesError("BAD_COUNT", f"{count} recommendations are wanted.", "Ask for at least 1.")
        inputs, unknown = self._inputs(columns)
        excluded = self.items.rows_of(excluded_keys)
        excluded = excluded[excluded >= 0]
        if exclude_seen:
            seen = [inputs[field.name] for field in self.fields if field.vocabulary]
            excluded = np.concatenate([excluded, *seen])
        inputs[EXCLUDED] = excluded.astype(np.int64, copy=False)
        inputs[COUNT] = np.array([min(count, len(self.items.keys))], dtype=np.int64)
        rows, scores = self.session.run([ROWS, SCORES], inputs)
        if not np.isfinite(scores).all():
            raise DivergedError("the scores are not finite")
        return Ranking(rows, scores, unknown)

    def _inputs(self, columns: Mapping[str, KeysOrNumbers]) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
        """Returns the examples as the file takes them, and the keys of those that were left out."""
        names = [field.name for field in self.fields]
        if not columns:
            columns = dict.fromkeys(names, KeysOrNumbers())
        if set(columns) != set(names):
            raise UnusableExamplesError(
                "WRONG_FIELDS",
                f"The examples have the columns {', '.join(sorted(columns))}; the model takes {', '.join(names)}.",
                "Give one column for each field, or none at all for a user without examples.",
            )
        lengths = {field.name: _length(field, columns[field.name]) for field in self.fields}
        if len(set(lengths.values())) > 1:
            raise UnusableExamplesError(
                "UNEQUAL_COLUMNS",
                "The columns differ in length: "
                + ", ".join(f"{name} {length}" for name, length in lengths.items())
                + ".",
                "Give every column one value for each example.",
            )
        known = np.ones(next(iter(lengths.values())), dtype=bool)
        mapped: dict[str, NDArray[Any]] = {}
        unknown: dict[str, None] = {}
        for field in self.fields:
            column = columns[field.name]
            if not field.vocabulary:
                mapped[field.name] = _checked_numbers(field, column.numbers)
                continue
            rows = self.items.rows_of(column.keys)
            unknown.update((key, None) for key, row in zip(column.keys, rows.tolist(), strict=True) if row < 0)
            known &= rows >= 0
            mapped[field.name] = rows
        return {name: values[known] for name, values in mapped.items()}, tuple(unknown)


def _length(field: TakenField, column: KeysOrNumbers) -> int:
    """Returns the length of a column; refuses keys for numbers, and numbers for keys."""
    if field.vocabulary and column.numbers:
        raise UnusableExamplesError(
            "WRONG_COLUMN",
            f"The column {field.name} has numbers, but holds keys of {field.vocabulary}.",
            "Send `keys`.",
        )
    if not field.vocabulary and column.keys:
        raise UnusableExamplesError(
            "WRONG_COLUMN", f"The column {field.name} has keys, but holds numbers.", "Send `values`."
        )
    return len(column.keys) if field.vocabulary else len(column.numbers)


def _checked_numbers(field: TakenField, numbers: Sequence[float]) -> NDArray[np.float32]:
    """Returns the numbers of a column; refuses what no example may have."""
    for number in numbers:
        if not math.isfinite(number):
            raise UnusableExamplesError(
                "NOT_FINITE", f"The column {field.name} holds {number}.", "Send numbers that are finite."
            )
        if not field.allows(number):
            raise UnusableExamplesError(
                "OUT_OF_SCALE",
                f"The column {field.name} holds {number:g}; its scale is {field.minimum:g} to {field.maximum:g}.",
                "Send values within the scale that the model was trained with.",
            )
    return np.asarray(numbers, dtype=np.float32)
