"""Any CSV file whose first line names its columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedrecon.datasets.columns import Layout, assemble, read_exactly
from fedrecon.datasets.errors import MalformedFile
from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.text import read_text, split_rows


@dataclass(frozen=True, slots=True)
class Names:
    """What the columns of a CSV file are called in its first line.

    Attributes:
        user: Column of the user's key.
        item: Column of the item's key.
        rating: Column of the rating.
        timestamp: Column of the Unix seconds; `None` if there is none.
        title: Column of the item's title; `None` if there is none. Where rows disagree the first one counts.
    """

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    timestamp: str | None = None
    title: str | None = None


def load_csv(path: Path, names: Names, *, separator: str = ",", scale: tuple[float, float] | None = None) -> Ratings:
    """Load a CSV file: utf-8, quotes as in RFC 4180; keys may be any text.

    Args:
        path: The file.
        names: What the columns are called; others are ignored.
        separator: `,` or `;` or a tab (then nothing is quoted).
        scale: Smallest and largest rating allowed; without it, those found.

    Returns:
        The ratings, in the order of the file.

    Raises:
        MalformedFile: A named column is missing, or a row is malformed.
    """
    rows = split_rows(read_text(path, "utf-8"), separator, path)
    _, header = next(rows)
    wanted = [name for name in (names.user, names.item, names.rating, names.timestamp, names.title) if name is not None]
    missing = [name for name in wanted if name not in header]
    if missing:
        reason = f"no column is named {' or '.join(missing)}; the first line names {', '.join(header)}"
        raise MalformedFile(path, 1, reason)
    layout = Layout(
        width=len(header),
        user=header.index(names.user),
        item=header.index(names.item),
        rating=header.index(names.rating),
        timestamp=None if names.timestamp is None else header.index(names.timestamp),
        numbered=False,
        scale=scale,
    )
    titles: dict[str, str] = {}
    if names.title is not None:
        rows = _collect_titles(rows, layout, header.index(names.title), titles)
    columns = read_exactly(rows, layout, path)
    found = (float(columns.ratings.min()), float(columns.ratings.max()))
    return assemble(columns, titles, found if scale is None else scale)


def _collect_titles(
    rows: Iterator[tuple[int, list[str]]], layout: Layout, title: int, titles: dict[str, str]
) -> Iterator[tuple[int, list[str]]]:
    """Pass the rows on and note each item's first title by the way."""
    for line, fields in rows:
        if len(fields) == layout.width:
            titles.setdefault(fields[layout.item], fields[title])
        yield line, fields
