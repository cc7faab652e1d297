"""`fedrecon logs`: what the services of the stack on this machine wrote, in order of time, and as it comes."""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

LEVELS = ("debug", "info", "warning", "error")
_LOOK_SECONDS = 0.2
_TAIL_BYTES = 1 << 20
"""Of each file, from its end: no command reads months of logs to show fifty lines."""

_TOLD_APART = {"timestamp", "level", "service", "event", "logger"}


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """A line of a log.

    Attributes:
        at: Its moment, as it is written: ISO 8601 sorts by time; empty for what is no JSON.
        service: Who wrote it.
        text: The line itself.
        level: Its level; what is no JSON (a crash in the making) is an error.
    """

    at: str
    service: str = field(compare=False)
    text: str = field(compare=False)
    level: str = field(compare=False)

    def told(self) -> str:
        """Return the line for people."""
        try:
            values = json.loads(self.text)
        except ValueError:
            return f"{self.service:<11} {self.text}"
        rest = " ".join(f"{key}={value}" for key, value in values.items() if key not in _TOLD_APART)
        return f"{self.at[:23]} {self.service:<11} {self.level:<7} {values.get('event', '')}  {rest}".rstrip()


class LogFile:
    """Reads the log of one service, from near its end, and on.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = max(self._size() - _TAIL_BYTES, 0)
        self._skips_part = self._place > 0
        self._last = ""

    def more(self) -> Iterator[Line]:
        """Yield lines that came since the last call. A last line that is not whole waits."""
        if self._size() < self._place:  # the file was begun anew
            self._place = 0
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        if self._skips_part:
            lines, self._skips_part = lines[1:], False
        for text in lines:
            line = read_line(text, self._path.stem, self._last)
            self._last = line.at
            yield line

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0


def read_line(text: str, service: str, before: str) -> Line:
    """Return a line.

    Args:
        text: As it was written.
        service: Who wrote it.
        before: Moment of the line before, which a line without one shares.
    """
    try:
        values = json.loads(text)
        return Line(str(values["timestamp"]), service, text, str(values["level"]))
    except (ValueError, KeyError, TypeError):
        return Line(before, service, text, "error")


def newest(files: Iterable[LogFile], level: str, count: int) -> list[Line]:
    """Return the newest lines of all files that have at least a level, oldest first."""
    least = LEVELS.index(level)
    kept = (line for line in heapq.merge(*(list(file.more()) for file in files)) if _rank(line.level) >= least)
    return list(kept)[-count:]


def logs(
    services: Annotated[list[str] | None, typer.Argument(help="services whose lines are shown; default: all")] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--level", help="least level that is shown")
    ] = "info",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=100_000, help="newest lines to begin with")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as lines come, until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print lines as they were written")] = False,
) -> None:
    """Show what the services of the stack here have logged."""
    from fedrecon.ops.mistakes import UserMistake
    from fedrecon.ops.settings import Settings, load_settings

    folder = load_settings(Settings).home.absolute() / "logs"
    known = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not known:
        raise UserMistake(f"There are no logs in {folder}.", "`fedrecon up` writes them; name its home: FEDRECON_HOME.")
    unknown = [name for name in services or () if name not in known]
    if unknown:
        raise UserMistake(f"There is no log of {', '.join(unknown)}.", f"There are those of {', '.join(known)}.")
    files = [LogFile(known[name]) for name in services or known]
    _print(newest(files, level, lines), as_json=as_json)
    while follow:
        time.sleep(_LOOK_SECONDS)
        _print(newest(files, level, sys.maxsize), as_json=as_json)


def _rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _print(lines: list[Line], *, as_json: bool) -> None:
    for line in lines:
        sys.stdout.write((line.text if as_json else line.told()) + "\n")
    sys.stdout.flush()
