"""`load`: recognises what lies at a path and loads it."""

import csv
from pathlib import Path

from fedrecon.datasets.errors import UnknownDataset
from fedrecon.datasets.movielens import CSV, DAT, FORMATS, TABS, load_movielens
from fedrecon.datasets.named_columns import Names, load_csv
from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.text import BYTE_ORDER_MARK

LONGEST_FIRST_LINE = 4096
FIELDS_OF_A_RATING = 4


def load(path: Path | str) -> Ratings:
    """Load ratings from a folder or a file of a known format.

    Args:
        path: A folder that holds `ratings.dat`, `u.data` or `ratings.csv`, or a file in one of these formats under any
            name, or a CSV file with the columns `user`, `item` and `rating` (and, if there, `timestamp` and `title`).

    Returns:
        The ratings, in the order of the file, with titles if the file of titles lies beside it.

    Raises:
        UnknownDataset: The path does not exist or is of no known format.
        MalformedFile: A file does not hold what its format promises.
    """
    path = Path(path)
    if path.is_dir():
        for spelling in FORMATS:
            if (path / spelling.ratings).is_file():
                return load_movielens(path / spelling.ratings, spelling)
        looked_for = ", ".join(spelling.ratings for spelling in FORMATS)
        raise UnknownDataset(f"{path} holds no ratings: looked for {looked_for}; name a CSV file itself to load that")
    if not path.is_file():
        looked_for = ", ".join(spelling.ratings for spelling in FORMATS)
        raise UnknownDataset(f"{path} does not exist: looked for a file of that name, or a folder with {looked_for}")
    for spelling in FORMATS:
        if path.name == spelling.ratings:
            return load_movielens(path, spelling)
    return _load_by_first_line(path)


def _load_by_first_line(path: Path) -> Ratings:
    """Load a file whose name says nothing."""
    with path.open("rb") as file:
        first = file.readline(LONGEST_FIRST_LINE).removeprefix(BYTE_ORDER_MARK).decode("latin-1").rstrip("\r\n")
    if len(first.split("::")) == FIELDS_OF_A_RATING:
        return load_movielens(path, DAT)
    if len(first.split("\t")) == FIELDS_OF_A_RATING:
        return load_movielens(path, TABS)
    if first == CSV.header:
        return load_movielens(path, CSV)
    header = next(csv.reader([first]), [])
    if {"user", "item", "rating"} <= set(header):
        timestamp = "timestamp" if "timestamp" in header else None
        return load_csv(path, Names(timestamp=timestamp, title="title" if "title" in header else None))
    raise UnknownDataset(
        f"{path} is of no known format: looked for four fields separated by '::' ({DAT.ratings}) or tabs "
        f"({TABS.ratings}), for the first line {CSV.header!r} ({CSV.ratings}), and for columns named user, item and "
        f"rating; the first line is {first[:80]!r}"
    )
