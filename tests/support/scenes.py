"""Scenes: files of commands at the start of a line, each followed by what it must lead to, indented."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Scene(Protocol):
    """Plays the commands of a file, from its beginning."""

    def play(self, command: str) -> list[str]:
        """Returns what a command leads to."""
        ...


def played(text: str, scene: Scene) -> str:
    """Returns a file with the outcomes that its commands lead to now."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("    "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += [f"    {outcome}" for outcome in scene.play(line)]
    return "\n".join(lines) + "\n"


def rewrite(paths: Iterable[Path], scene_of: type[Scene]) -> None:
    """Writes the outcomes of all files anew, if that is what the command line asks for."""
    if sys.argv[1:] != ["--rewrite"]:
        raise SystemExit("only --rewrite is known; run the scenes with pytest")
    for path in paths:
        path.write_text(played(path.read_text(), scene_of()))
