"""The app's examples: a small SQLite store on the device.

Items are named by the app's own keys; they become row numbers only when a model's vocabulary is known. Examples are
kept in the order of their time, oldest first. Values are checked when they are added, so that a mistake shows in the
app's own code and not in a round, months later.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import InvalidExampleError

FieldKind = type[str] | type[float] | tuple[float, float]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (id INTEGER PRIMARY KEY, at REAL NOT NULL, content TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS examples_at ON examples (at, id);
"""


class ExampleSource(Protocol):
    """What a participation needs of examples; an app may bring its own."""

    def count(self) -> int:
        """Returns how many there are."""
        ...

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Returns the values by field, `[examples, ...]`, oldest first; keys as text."""
        ...


class ExampleStore:
    """Examples in an SQLite file.

    Args:
        path: the file, or `":memory:"`.
        fields: what an example holds, by name: `str` for a key of an item, `float` for a number (or a list of
            numbers), `(minimum, maximum)` for a number within limits. Without it the first example decides.
        maximum: most examples kept; the oldest make room. None: no limit.
        maximum_age_seconds: examples older than this are forgotten. None: no limit.
        clock: Unix seconds.

    Example:
        >>> with ExampleStore(":memory:", fields={"item": str, "rating": (0.5, 5.0)}) as store:
        ...     store.add(item="1193", rating=5.0, when=978300760)
        ...     store.count()
        1
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, FieldKind] | None = None,
        maximum: int | None = None,
        maximum_age_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fields = dict(fields) if fields is not None else None
        self._maximum = maximum
        self._maximum_age = maximum_age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # Training reads from another thread; the lock keeps one at a time.
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        if str(path) != ":memory:":
            Path(path).chmod(0o600)
        self._connection.executescript(_SCHEMA)
        first = self._connection.execute("SELECT content FROM examples ORDER BY id LIMIT 1").fetchone()
        self._first: dict[str, Any] = json.loads(first[0]) if first else {}

    def add(self, *, when: float | None = None, **values: Any) -> None:
        """Adds an example.

        Args:
            when: its moment, Unix seconds; now if not given.
            values: a value for every field.

        Raises:
            InvalidExampleError: a field is missing, unknown, of the wrong kind or beyond its limits.
        """
        self.extend([{**values, "when": when}])

    def extend(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Adds many examples, all or none; each has the fields and may have `when`.

        Raises:
            InvalidExampleError: one of them does not fit.
        """
        with self._lock:
            rows = [self._row(dict(example)) for example in examples]
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT INTO examples (at, content) VALUES (?, ?)", rows)
                self._trim()
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def count(self) -> int:
        """Returns how many examples there are."""
        with self._lock:
            self._trim()
            (count,) = self._connection.execute("SELECT COUNT(*) FROM examples").fetchone()
            return int(count)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the values by field, oldest first; empty if there are no examples."""
        with self._lock:
            self._trim()
            rows = self._connection.execute("SELECT content FROM examples ORDER BY at, id").fetchall()
        if not rows:
            return {}
        contents = [json.loads(content) for (content,) in rows]
        return {name: np.array([content[name] for content in contents]) for name in contents[0]}

    def clear(self) -> None:
        """Forgets all examples, also in the file's free pages."""
        with self._lock:
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.execute("DELETE FROM examples")
            self._connection.execute("VACUUM")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _trim(self) -> None:
        if self._maximum_age is not None:
            self._connection.execute("DELETE FROM examples WHERE at < ?", (self._clock() - self._maximum_age,))
        if self._maximum is not None:
            self._connection.execute(
                "DELETE FROM examples WHERE id NOT IN (SELECT id FROM examples ORDER BY at DESC, id DESC LIMIT ?)",
                (self._maximum,),
            )

    def _row(self, example: dict[str, Any]) -> tuple[float, str]:
        when = example.pop("when", None)
        moment = self._clock() if when is None else float(when)
        if not math.isfinite(moment):
            raise InvalidExampleError(f"when is {when!r}", "give Unix seconds")
        fields = self._known_fields(example)
        if example.keys() != fields.keys():
            raise InvalidExampleError(
                f"an example with the fields {sorted(example)}; this store holds {sorted(fields)}",
                "give a value for each field and no other",
            )
        values = {name: _checked(name, example[name], kind) for name, kind in fields.items()}
        self._first = self._first or values
        for name, value in values.items():
            if _length(value) != _length(self._first[name]):
                raise InvalidExampleError(
                    f"{name} is {value!r}; in the first example it was {self._first[name]!r}",
                    "give as many numbers in every example",
                )
        return moment, json.dumps(values)

    def _known_fields(self, example: Mapping[str, Any]) -> Mapping[str, FieldKind]:
        """Returns the fields: declared, or those of the first example ever added."""
        if self._fields is None:
            pattern = self._first or example
            if not pattern:
                raise InvalidExampleError("an example without fields", "name at least one: add(item=..., rating=...)")
            self._fields = {name: str if isinstance(value, str) else float for name, value in pattern.items()}
        return self._fields


def _length(value: Any) -> int | None:
    """Returns how many numbers a value holds; None for a single one and for a key."""
    return len(value) if isinstance(value, list) else None


def _checked(name: str, value: Any, kind: FieldKind) -> str | float | list[float]:
    """Returns a value as it is stored."""
    if kind is str:
        if not isinstance(value, str) or not value:
            raise InvalidExampleError(f"{name} is {value!r}, not a key", f'give the item\'s key as text: {name}="..."')
        return value
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return [_number(name, element, kind) for element in value]
    return _number(name, value, kind)


def _number(name: str, value: Any, kind: FieldKind) -> float:
    if isinstance(value, str) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InvalidExampleError(f"{name} is {value!r}, not a finite number", f"give a number: {name}=1.0")
    if isinstance(kind, tuple) and not kind[0] <= value <= kind[1]:
        raise InvalidExampleError(f"{name} is {value!r}, beyond its limits {kind[0]} to {kind[1]}", "correct the value")
    return float(value)
