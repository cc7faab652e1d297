"""One recommender, opened: the app's keys and numbers in, the app's keys and titles out.

Rules: examples with keys that the vocabulary does not know are left out and named. Values that no example may have
are refused, never mended. Nothing is kept between two users.

What speaks for a recommendation is told by leaving each example out: its effect is the score less what the score would
be without it, whatever the model. That is one more run of the file for each example.
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


MOST_EXPLAINED = 200
"""Examples of a user up to which a recommendation is explained: each is one more run."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one user asks for.

    Attributes:
        columns: the examples by field; none for a user without examples.
        count: recommendations wanted, at least 1; there are fewer where fewer are left.
        exclude_seen: whether items of the examples are left out.
        excluded_keys: keys left out besides; unknown ones are left out anyway.
        allowed_keys: if there are any, only these are recommended.
        reasons: examples told of each recommendation that speak most for it.
    """

    columns: Mapping[str, KeysOrNumbers]
    count: int
    exclude_seen: bool = True
    excluded_keys: Sequence[str] = ()
    allowed_keys: Sequence[str] = ()
    reasons: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one user asks for, checked, and in rows.

    Attributes:
        examples: by field, as the file takes them.
        excluded: rows left out.
        count: wanted, at most the number of rows.
        known: positions of the examples in the columns that came.
        unknown_keys: keys of examples that were left out, each once.
        reasons: told of each recommendation.
    """

    examples: Mapping[str, NDArray[Any]]
    excluded: NDArray[np.int64]
    count: int
    known: NDArray[np.int64]
    unknown_keys: tuple[str, ...]
    reasons: int


@dataclass(frozen=True, slots=True)
class Reason:
    """An example that speaks for a recommendation.

    Attributes:
        example: its position in the columns.
        effect: the item's score less what it would be without this example; above 0.
    """

    example: int
    effect: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is recommended.

    Attributes:
        rows: best first.
        scores: of each row.
        unknown_keys: keys of examples that were left out, each once.
        reasons: what speaks for each row, the strongest first; empty if nobody asked.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    unknown_keys: tuple[str, ...]
    reasons: tuple[tuple[Reason, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class OpenRecommender:
    """A recommender that answers; safe to use from many threads.

    Attributes:
        session: the file, opened.
        items: its vocabulary.
        fields: what it takes.
        together: the graph for many users at once, opened; None for a model that has none.
    """

    session: onnxruntime.InferenceSession
    items: Items
    fields: tuple[TakenField, ...]
    together: onnxruntime.InferenceSession | None = None

    @classmethod
    def open(cls, content: bytes, items: Items, together: bytes | None = None) -> OpenRecommender:
        """Opens a recommender's file.

        Args:
            content: the file.
            items: its vocabulary.
            together: the graph for many users at once, if there is one.
        """
        session = open_session(content)
        fields = read_fields(session.get_modelmeta().custom_metadata_map[FIELDS_KEY])
        return cls(session, items, fields, None if together is None else open_session(together))

    def recommend(self, asked: Asked) -> Ranking:
        """Returns the best items for a user.

        Raises:
            UnusableExamplesError: see `prepare`.
            DivergedError: the scores are not finite.
        """
        return self.answer(self.prepare(asked))

    def prepare(self, asked: Asked) -> Prepared:
        """Returns what a user asks for, checked.

        Raises:
            UnusableExamplesError: a column is missing, too many, of another length, or holds a wrong value; or what is
                allowed and what is left out leave nothing.
        """
        if asked.count < 1:
            raise UnusableExamplesError(
                "BAD_COUNT", f"{asked.count} recommendations are wanted.", "Ask for at least 1."
            )
        examples, known, unknown = self._examples(asked.columns)
        if asked.reasons and len(known) > MOST_EXPLAINED:
            raise UnusableExamplesError(
                "TOO_MANY_EXAMPLES",
                f"{len(known)} examples are too many to be explained: it takes a run for each.",
                f"Send at most {MOST_EXPLAINED}, or ask for no reasons.",
            )
        excluded = self.items.rows_of(asked.excluded_keys)
        excluded = excluded[excluded >= 0]
        if asked.exclude_seen:
            seen = [examples[field.name] for field in self.fields if field.vocabulary]
            excluded = np.concatenate([excluded, *seen])
        if asked.allowed_keys:
            allowed = self.items.rows_of(asked.allowed_keys)
            excluded = self._all_but(np.setdiff1d(allowed, [*excluded, *self.items.retired]))
        count = min(asked.count, len(self.items.keys))
        return Prepared(examples, excluded.astype(np.int64, copy=False), count, known, unknown, asked.reasons)

    def answer(self, prepared: Prepared) -> Ranking:
        """Returns the best items for a user.

        Raises:
            DivergedError: the scores are not finite.
        """
        rows, scores = self._run(prepared.examples, prepared.excluded, prepared.count)
        told = self._reasons(prepared, rows, scores) if prepared.reasons and rows.size else ()
        return Ranking(rows, scores, prepared.unknown_keys, told)

    def _all_but(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns all rows but these; of those that are given, -1 stands for none."""
        is_left = np.zeros(len(self.items.keys), dtype=bool)
        is_left[rows[rows >= 0]] = True
        if not is_left.any():
            raise UnusableExamplesError(
                "NOTHING_ALLOWED",
                "Of the allowed keys none is left: they are unknown, retired, seen or excluded.",
                "Allow other keys, or leave out fewer.",
            )
        return np.flatnonzero(~is_left)

    def _run(
        self, examples: Mapping[str, NDArray[Any]], excluded: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        wanted = {EXCLUDED: excluded, COUNT: np.array([count], dtype=np.int64)}
        rows, scores = self.session.run([ROWS, SCORES], {**examples, **wanted})
        self.check(scores, excluded, count)
        return rows, scores

    def check(self, scores: NDArray[np.float32], excluded: NDArray[np.int64], count: int) -> None:
        """Refuses scores of a reconstruction that diverged: some are not finite, or fell out as minus infinity.

        Raises:
            DivergedError: they are none to show.
        """
        if not np.isfinite(scores).all():
            raise DivergedError("the scores are not finite")
        if scores.size < count:
            left = len(self.items.keys) - len({*excluded.tolist(), *self.items.retired})
            if scores.size < min(count, left):
                raise DivergedError("scores are minus infinity")

    def _reasons(
        self, prepared: Prepared, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[tuple[Reason, ...], ...]:
        """Returns what speaks for each of some rows; `scores` are those with all examples."""
        known = prepared.known
        others = np.setdiff1d(np.arange(len(self.items.keys)), rows)
        sorted_rows = np.argsort(rows)
        effects = np.empty((len(known), rows.size), dtype=np.float32)
        for place in range(len(known)):
            without = {name: np.delete(values, place) for name, values in prepared.examples.items()}
            found, changed = self._run(without, others, rows.size)
            effects[place, sorted_rows] = scores[sorted_rows] - changed[np.argsort(found)]
        return tuple(
            tuple(
                Reason(int(known[place]), float(effects[place, column]))
                for place in np.argsort(-effects[:, column], kind="stable")[: prepared.reasons]
                if effects[place, column] > 0
            )
            for column in range(rows.size)
        )

    def _examples(
        self, columns: Mapping[str, KeysOrNumbers]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64], tuple[str, ...]]:
        """Returns the examples as the file takes them, where they stood, and the keys of those that were left out."""
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
        return {name: values[known] for name, values in mapped.items()}, np.flatnonzero(known), tuple(unknown)


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
