"""What left the device, kept on disk: every departure before it happens, every participation when it has ended.

Departures go line by line into a file, so that those of a process that is killed are known to the next one. When a
participation has ended they become its receipt in the history, of which the newest entries are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrecon.device_sdk.files import PRIVATE, blaming_the_disk, remove, write_atomically
from fedrecon.device_sdk.participation import Fate, Outcome, Participation
from fedrecon.device_sdk.receipts import Departure, Receipt

HISTORY, LEAVING = "history.jsonl", "leaving.jsonl"
KEPT_PARTICIPATIONS = 100


class DepartureLog(list[Departure]):
    """Departures of a participation; begins with those of a process that died before it could tell of them.

    Args:
        folder: where they are written before they happen; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / LEAVING
        super().__init__([] if self._path is None else _read_lines(self._path, lambda told: Departure(**told)))

    def append(self, departure: Departure) -> None:
        """Writes a departure down.

        Raises:
            StorageFailedError: it cannot be written: then nothing may leave.
        """
        if self._path is not None:
            with blaming_the_disk(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
                with os.fdopen(handle, "w") as file:
                    file.write(json.dumps(asdict(departure)) + "\n")
        super().append(departure)

    def forget(self) -> None:
        """Removes the file: they are in the history."""
        if self._path is not None:
            remove(self._path)


class History:
    """The newest participations of one device.

    Args:
        folder: where they lie; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / HISTORY
        self._kept: tuple[Participation, ...] = ()

    def read(self) -> tuple[Participation, ...]:
        """Returns them, the newest last; lines that cannot be read are left out."""
        return self._kept if self._path is None else tuple(_read_lines(self._path, _participation_of))

    def add(self, participation: Participation) -> None:
        """Keeps one more; of a session that is there already, only the newer word."""
        others = [each for each in self.read() if not each.session or each.session != participation.session]
        self._kept = (*others, participation)[-KEPT_PARTICIPATIONS:]
        if self._path is not None:
            write_atomically(self._path, "".join(f"{_line_of(each)}\n" for each in self._kept).encode())

    def clear(self) -> None:
        """Forgets them."""
        self._kept = ()
        if self._path is not None:
            remove(self._path)


def _line_of(participation: Participation) -> str:
    told = asdict(participation)
    told["outcome"], told["fate"] = participation.outcome.value, participation.fate.value
    told["receipt"] = [asdict(departure) for departure in participation.receipt]
    return json.dumps(told)


def _participation_of(told: Mapping[str, Any]) -> Participation:
    receipt = Receipt(tuple(Departure(**departure) for departure in told["receipt"]))
    enums = {"outcome": Outcome(told["outcome"]), "fate": Fate(told["fate"])}
    return Participation(**{**told, **enums, "unknown_keys": tuple(told["unknown_keys"]), "receipt": receipt})


def _read_lines(path: Path, make: Any) -> Iterable[Any]:
    """Yields what the lines of a file say, but for those that were not written whole."""
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in lines:
        try:
            made = make(json.loads(line))
        except (KeyError, TypeError, ValueError):
            continue
        yield made
