"""The three spellings of MovieLens.

The numbers are parsed in one vectorised pass; only if that meets something unusual are the rows read one by one, which
either succeeds or says line and reason. An item is in the result if somebody rated it.

| release | ratings | titles | encoding | scale |
|---|---|---|---|---|
| 1M, 10M | `ratings.dat`, `::` between fields | `movies.dat` | latin-1 | 1 to 5; 0.5 to 5 with half stars |
| 100K | `u.data`, tabs | `u.item`, bars | latin-1 | 1 to 5 |
| since 2014 | `ratings.csv`, commas | `movies.csv` | utf-8 | 1 to 5; 0.5 to 5 with half stars |

Source: the READMEs of https://grouplens.org/datasets/movielens/ (Harper and Konstan 2015).
"""

from dataclasses import dataclass
from pathlib import Path

from fedrecon.datasets.columns import Layout, assemble, read_exactly, read_numbers
from fedrecon.datasets.errors import MalformedFile
from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.text import read_text, split_rows

HALF_STARS = (0.5, 5.0)
WHOLE_STARS = (1.0, 5.0)
FIELDS_OF_A_TITLE = 2


@dataclass(frozen=True, slots=True)
class Format:
    """One spelling of MovieLens.

    Attributes:
        ratings: Name of the file of ratings.
        titles: Name of the file of titles beside it.
        encoding: Of both.
        separator: Between the fields of a rating.
        title_separator: Between the fields of a title.
        header: First line of the ratings; `None` if there is none. With one, the titles have one too.
        scale: Smallest and largest rating.
    """

    ratings: str
    titles: str
    encoding: str
    separator: str
    title_separator: str
    header: str | None
    scale: tuple[float, float]


DAT = Format("ratings.dat", "movies.dat", "latin-1", "::", "::", None, HALF_STARS)
TABS = Format("u.data", "u.item", "latin-1", "\t", "|", None, WHOLE_STARS)
CSV = Format("ratings.csv", "movies.csv", "utf-8", ",", ",", "userId,movieId,rating,timestamp", HALF_STARS)
FORMATS = (DAT, TABS, CSV)


def load_movielens(path: Path, spelling: Format) -> Ratings:
    """Load a file of MovieLens ratings, and the titles if they lie beside it.

    Args:
        path: The file of ratings.
        spelling: Its format.

    Returns:
        The ratings, in the order of the file. Their scale is 1 to 5 if no rating has a half star.

    Raises:
        MalformedFile: One of the two files does not hold what the format promises.
    """
    text = read_text(path, spelling.encoding)
    body = text
    if spelling.header is not None:
        first, _, body = text.partition("\n")
        if first != spelling.header:
            raise MalformedFile(path, 1, f"the first line must be {spelling.header!r}; it is {first[:80]!r}")
    layout = Layout(width=4, user=0, item=1, rating=2, timestamp=3, numbered=True, scale=spelling.scale)
    columns = None
    if spelling.separator == "\t" or "\t" not in body:
        columns = read_numbers(body.replace(spelling.separator, "\t").encode(), layout)
    if columns is None:
        rows = split_rows(text, spelling.separator, path)
        if spelling.header is not None:
            next(rows)
        columns = read_exactly(rows, layout, path)
    has_half_stars = bool((columns.ratings % 1).any())
    beside = path.with_name(spelling.titles)
    titles = _read_titles(beside, spelling) if beside.is_file() else {}
    return assemble(columns, titles, spelling.scale if has_half_stars else WHOLE_STARS)


def _read_titles(path: Path, spelling: Format) -> dict[str, str]:
    """Read item key and title, the first two fields of every row."""
    rows = split_rows(read_text(path, spelling.encoding), spelling.title_separator, path)
    if spelling.header is not None:
        next(rows)
    titles: dict[str, str] = {}
    for line, row in rows:
        if len(row) < FIELDS_OF_A_TITLE:
            raise MalformedFile(path, line, f"wrong number of columns: {len(row)} instead of at least 2")
        if not row[0].isdecimal():
            raise MalformedFile(path, line, f"the item {row[0]!r} is not a whole number")
        key = str(int(row[0]))
        if key in titles:
            raise MalformedFile(path, line, f"item {key} has the title {titles[key]!r} already")
        titles[key] = row[1]
    return titles
