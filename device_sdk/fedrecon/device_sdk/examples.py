"""The app's examples: a small SQLite store on the device.

Items are named by the app's own keys; they become row numbers only when a model's vocabulary is known. Examples are
kept in the order of their time, oldest first. Values are checked when they are added, so that a mistake shows in the
app's own code and not in a round, months later.

An example that is too old is not read from that moment on, and removed when the clock has said so for a day: a clock
that is wrong by a year and put right soon costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import DamagedExamplesError, InvalidExampleError, StorageFailedError
from fedrecon.device_sdk.example_fields import FieldKind, fields_of_plan
from fedrecon.device_sdk.files import PRIVATE
from fedrecon.wire.outcomes import MOST_SHOWN

DAMAGED_SUFFIX = ".damaged"
_MOST_OUTCOMES = 10_000
SURELY_EXPIRED_SECONDS = 86_400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, content TEXT NOT NULL, expired REAL
);
CREATE INDEX IF NOT EXISTS examples_at ON examples (at, id);
CREATE TABLE IF NOT EXISTS outcomes (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, version INTEGER NOT NULL, shown INTEGER NOT NULL, chosen INTEGER NOT NULL
);
"""


class ExampleSource(Protocol):
    """What a participation needs of examples; an app may bring its own."""

    def count(self) -> int:
        """Returns how many there are."""
        ...

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Returns the values by field, `[examples, ...]`, oldest first; keys as text."""
        ...


@runtime_checkable
class OutcomeSource(Protocol):
    """What else a source may keep: what became of recommendations, as numbers alone."""

    def add_outcome(self, version: int, shown: int, chosen: int) -> None:
        """Keeps that so many recommendations of a version were shown, and so many of these chosen."""
        ...

    def outcomes(self) -> Mapping[int, tuple[int, int]]:
        """Returns shown and chosen by version, of the newest that are told."""
        ...


class ExampleStore:
    """Examples in an SQLite file.

    Args:
        path: the file, or `":memory:"`.
        fields: what an example holds, by name: `str` for a key of an item, `float` for a number (or a list of
            numbers), `(minimum, maximum)` for a number within limits. Without it `plan` or the first example decides.
        plan: a plan's `manifest.json`, whose fields an example holds.
        maximum: most examples kept; the oldest make room. None: no limit.
        maximum_age_seconds: examples older than this are forgotten. None: no limit.
        clock: Unix seconds.

    Raises:
        DamagedExamplesError: the file is no database, or a damaged one. It was set aside under another name: opened
            again the store begins with no examples.
        StorageFailedError: the file cannot be opened or written.
        UnusablePlanError: the plan's manifest cannot be read.

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
        plan: Path | None = None,
        maximum: int | None = None,
        maximum_age_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if plan is not None:
            fields = {**fields_of_plan(plan.read_bytes()), **(fields or {})}
        self._fields = dict(fields) if fields is not None else None
        self._path = None if str(path) == ":memory:" else Path(path)
        self._maximum = maximum
        self._maximum_age = maximum_age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._connection, self._first = self._open()

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
        with self._lock, self._blaming_the_file():
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
        with self._lock, self._blaming_the_file():
            self._trim()
            (count,) = self._connection.execute("SELECT COUNT(*) FROM examples WHERE expired IS NULL").fetchone()
            return int(count)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the values by field, oldest first; empty if there are no examples."""
        with self._lock, self._blaming_the_file():
            self._trim()
            rows = self._connection.execute(
                "SELECT content FROM examples WHERE expired IS NULL ORDER BY at, id"
            ).fetchall()
        if not rows:
            return {}
        contents = [json.loads(content) for (content,) in rows]
        return {name: np.array([content[name] for content in contents]) for name in contents[0]}

    def add_outcome(self, version: int, shown: int, chosen: int) -> None:
        """Keeps that so many recommendations of a version were shown, and so many of these chosen.

        Raises:
            InvalidExampleError: there is no such outcome.
        """
        if version < 1 or not 0 <= chosen <= shown or not 1 <= shown <= MOST_SHOWN:
            raise InvalidExampleError(
                f"{chosen} chosen of {shown} shown, of version {version}",
                f"show 1 to {MOST_SHOWN}, and choose of these",
            )
        with self._lock, self._blaming_the_file():
            execute = self._connection.execute
            row = (self._clock(), version, shown, chosen)
            execute("INSERT INTO outcomes (at, version, shown, chosen) VALUES (?, ?, ?, ?)", row)
            execute(
                "DELETE FROM outcomes WHERE id NOT IN (SELECT id FROM outcomes ORDER BY id DESC LIMIT ?)",
                (_MOST_OUTCOMES,),
            )

    def outcomes(self) -> dict[int, tuple[int, int]]:
        """Returns shown and chosen by version: of the newest `MOST_SHOWN` that were shown, as far as they are kept."""
        with self._lock, self._blaming_the_file():
            oldest = -math.inf if self._maximum_age is None else self._clock() - self._maximum_age
            rows = self._connection.execute(
                "SELECT version, shown, chosen FROM outcomes WHERE at >= ? ORDER BY id DESC", (oldest,)
            ).fetchall()
        counted: dict[int, tuple[int, int]] = {}
        full: set[int] = set()
        for version, shown, chosen in rows:
            had_shown, had_chosen = counted.get(version, (0, 0))
            if version in full or had_shown + shown > MOST_SHOWN:
                full.add(version)
                continue
            counted[version] = had_shown + shown, had_chosen + chosen
        return counted

    def clear(self) -> None:
        """Forgets all examples and outcomes, also in the file's free pages, and also where the file is damaged."""
        with self._lock:
            try:
                with self._blaming_the_file():
                    self._connection.execute("PRAGMA secure_delete = ON")
                    self._connection.execute("DELETE FROM examples")
                    self._connection.execute("DELETE FROM outcomes")
                    self._connection.execute("VACUUM")
            except DamagedExamplesError:
                self._connection.close()
                self._connection, self._first = self._open()
            if self._path is not None:
                set_aside(self._path).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        """Opens the file, makes the table where there is none, and returns the connection and the first example."""
        with self._blaming_the_file(), contextlib.ExitStack() as stack:
            # Training reads from another thread; the lock keeps one at a time.
            connection = sqlite3.connect(self._path or ":memory:", check_same_thread=False, isolation_level=None)
            stack.callback(connection.close)
            if self._path is not None:
                self._path.chmod(PRIVATE)
            connection.executescript(_SCHEMA)
            if "expired" not in {column[1] for column in connection.execute("PRAGMA table_info(examples)")}:
                connection.execute("ALTER TABLE examples ADD COLUMN expired REAL")  # made by an older version
            (is_whole,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if is_whole != "ok":
                raise sqlite3.DatabaseError(is_whole)
            first = connection.execute("SELECT content FROM examples ORDER BY id LIMIT 1").fetchone()
            values: dict[str, Any] = json.loads(first[0]) if first else {}
            stack.pop_all()
        return connection, values

    @contextlib.contextmanager
    def _blaming_the_file(self) -> Iterator[None]:
        """Makes what SQLite and the operating system say a typed error, and sets a damaged file aside."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # full, read-only, or locked by another process
            raise StorageFailedError(f"the examples in {self._path} cannot be read or written: {error}") from error
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            if self._path is None:
                raise
            aside = set_aside(self._path)
            with contextlib.suppress(OSError):
                self._path.replace(aside)
            raise DamagedExamplesError(
                f"the examples in {self._path} are damaged ({error}); the file is now {aside}"
            ) from error

    def _trim(self) -> None:
        execute = self._connection.execute
        if self._maximum_age is not None:
            now = self._clock()
            oldest = now - self._maximum_age
            execute("UPDATE examples SET expired = NULL WHERE expired IS NOT NULL AND at >= ?", (oldest,))
            execute("UPDATE examples SET expired = ? WHERE expired IS NULL AND at < ?", (now, oldest))
            execute("DELETE FROM examples WHERE expired < ?", (now - SURELY_EXPIRED_SECONDS,))
            execute("DELETE FROM outcomes WHERE at < ?", (oldest - SURELY_EXPIRED_SECONDS,))
        if self._maximum is not None:
            execute(
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


def set_aside(path: Path) -> Path:
    """Returns where a damaged file of examples is kept, until the user's examples are forgotten."""
    return path.with_name(path.name + DAMAGED_SUFFIX)


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
