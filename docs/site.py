"""Gathers the pages of the documentation site: all of `docs/`, the rooms' own pages, and whatever they link to.

`python docs/site.py FOLDER` copies them as they lie in the repository, so that links between them stay as they are.
mkdocs makes the site of it, with the references of `docs/write_reference.py`, and refuses links that lead nowhere:
`make docs`.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_PAGES = ("README.md", "docs/*.md", "docs/decisions/*.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")


def main(folder: Path) -> None:
    """Gather the site in a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(gathered()):
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    (folder / "README.md").rename(folder / "index.md")


def gathered() -> set[Path]:
    """Return all files of the site: pages, and what pages link to, and what those link to."""
    found: set[Path] = set()
    waiting = [path for pattern in _PAGES for path in ROOT.glob(pattern)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += linked(path)
    return found


def linked(page: Path) -> Iterator[Path]:
    """Return the files of the repository that a page links to."""
    if page.suffix != ".md":
        return
    for target in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        if "://" not in target and path.is_file() and path.is_relative_to(ROOT):
            yield path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
