"""Columns of a ratings file: read exactly, and read fast.

`read_exactly` is what a file means: it goes row by row and says of the first bad row what is wrong. `read_numbers` is a
vectorised shortcut for files of plain numbers; it answers only what `read_exactly` would answer, and otherwise `None`,
so it never has to explain anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets.errors import MalformedFile
from fedrecon.datasets.ratings import Ratings

PLAIN = b"0123456789.\t\n"
TAB, NEWLINE, POINT, ZERO, NINE = b"\t\n.09"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of a ratings file are.

    Attributes:
        width: Fields in every row.
        user: Position of the user's key.
        item: Position of the item's key.
        rating: Position of the rating.
        timestamp: Position of the Unix seconds; `None` where there are none.
        numbered: Whether the keys are whole numbers, so that `07` and `7` are one.
        scale: Smallest and largest rating allowed; `None` where the file itself sets it.
    """

    width: int
    user: int
    item: int
    rating: int
    timestamp: int | None
    numbered: bool
    scale: tuple[float, float] | None


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What a ratings file says, with keys already turned into indices.

    Attributes:
        users: `[ratings] int64`, index into `user_keys`.
        items: `[ratings] int64`, index into `item_keys`.
        ratings: `[ratings] float32`.
        timestamps: `[ratings] int64`, Unix seconds; 0 where the file has none.
        user_keys: In the order of their numbers if all are whole numbers, else in the order of their letters.
        item_keys: The same.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    user_keys: tuple[str, ...]
    item_keys: tuple[str, ...]


def assemble(columns: Columns, titles: dict[str, str], scale: tuple[float, float]) -> Ratings:
    """Make ratings of columns.

    Args:
        columns: What the file of ratings says.
        titles: Title by item key; an item that is left out is called by its key. Empty: no titles at all.
        scale: Smallest and largest rating.

    Returns:
        The ratings.
    """
    return Ratings(
        users=columns.users,
        items=columns.items,
        ratings=columns.ratings,
        timestamps=columns.timestamps,
        user_keys=columns.user_keys,
        item_keys=columns.item_keys,
        titles=tuple(titles.get(key, key) for key in columns.item_keys) if titles else (),
        scale=scale,
    )


def read_numbers(body: bytes, layout: Layout) -> Columns | None:
    r"""Read a file of plain decimal numbers in one vectorised pass.

    Args:
        body: Rows ending in `\n`, fields separated by one tab.
        layout: Where the columns are; `numbered`, with a scale.

    Returns:
        The columns, or `None` if anything at all is unusual.
    """
    if not layout.numbered or layout.scale is None or body.translate(None, PLAIN):
        return None
    values = _numbers_of_a_table(body, layout.width)
    if values is None:
        return None
    ratings = values[:, layout.rating].astype(np.float32)
    whole = [values[:, layout.user], values[:, layout.item]]
    if layout.timestamp is not None:
        whole.append(values[:, layout.timestamp])
    # Above 2^53 a float64 no longer tells neighbouring whole numbers apart.
    if any((column >= 2**53).any() or (column % 1).any() for column in whole):
        return None
    minimum, maximum = layout.scale
    if ratings.min() < minimum or ratings.max() > maximum:
        return None
    user_numbers, users = np.unique(whole[0].astype(np.int64), return_inverse=True)
    item_numbers, items = np.unique(whole[1].astype(np.int64), return_inverse=True)
    pairs = np.sort(users * len(item_numbers) + items)
    if (pairs[1:] == pairs[:-1]).any():
        return None
    return Columns(
        users=users.astype(np.int64),
        items=items.astype(np.int64),
        ratings=ratings,
        timestamps=(np.zeros(len(users)) if layout.timestamp is None else whole[2]).astype(np.int64),
        user_keys=tuple(map(str, user_numbers.tolist())),
        item_keys=tuple(map(str, item_numbers.tolist())),
    )


def _numbers_of_a_table(body: bytes, width: int) -> NDArray[np.float64] | None:
    """Parse `[rows, width]` numbers, or give `None` if a row has another width or a field is empty or no number."""
    characters = np.frombuffer(body, np.uint8)
    breaks = np.flatnonzero((characters == TAB) | (characters == NEWLINE))
    if len(breaks) == 0 or len(breaks) % width or breaks[-1] != len(characters) - 1:
        return None
    ends_row = (characters[breaks] == NEWLINE).reshape(-1, width)
    empty = np.diff(breaks, prepend=-1) == 1
    if ends_row[:, :-1].any() or not ends_row[:, -1].all() or empty.any():
        return None
    points = np.flatnonzero(characters == POINT)
    beside = characters[np.concatenate([points - 1, points + 1])]
    if ((beside < ZERO) | (beside > NINE)).any():
        return None
    if (np.diff(np.searchsorted(breaks, points)) == 0).any():
        return None
    # Every field is now digits with at most one point between them.
    return np.fromstring(body, sep=" ").reshape(-1, width)


def read_exactly(rows: Iterable[tuple[int, list[str]]], layout: Layout, path: Path) -> Columns:
    """Read a file row by row.

    Args:
        rows: Line number, from 1, and fields of every row.
        layout: Where the columns are.
        path: The file, for errors.

    Returns:
        The columns.

    Raises:
        MalformedFile: There is no row, or one has the wrong number of columns, an empty key, something that is not a
            number, a rating outside the scale, or a pair of user and item that was there before.
    """
    user_of_key: dict[str, int] = {}
    item_of_key: dict[str, int] = {}
    first_line: dict[tuple[int, int], int] = {}
    ratings: list[float] = []
    timestamps: list[int] = []
    for line, fields in rows:
        try:
            user_key, item_key, rating, timestamp = _read_row(fields, layout)
        except ValueError as error:
            raise MalformedFile(path, line, str(error)) from None
        pair = (
            user_of_key.setdefault(user_key, len(user_of_key)),
            item_of_key.setdefault(item_key, len(item_of_key)),
        )
        if first_line.setdefault(pair, line) != line:
            reason = f"user {user_key} has rated item {item_key} already, in line {first_line[pair]}"
            raise MalformedFile(path, line, reason)
        ratings.append(rating)
        timestamps.append(timestamp)
    if not ratings:
        raise MalformedFile(path, None, "the file is empty: it holds no rating")
    pairs = np.array(list(first_line), dtype=np.int64)
    users, user_keys = _in_order_of_keys(pairs[:, 0], user_of_key)
    items, item_keys = _in_order_of_keys(pairs[:, 1], item_of_key)
    return Columns(
        users=users,
        items=items,
        ratings=np.array(ratings, dtype=np.float32),
        timestamps=np.array(timestamps, dtype=np.int64),
        user_keys=user_keys,
        item_keys=item_keys,
    )


def _read_row(fields: list[str], layout: Layout) -> tuple[str, str, float, int]:
    """Read user key, item key, rating and timestamp of one row; a `ValueError` says what is wrong with it."""
    if len(fields) != layout.width:
        raise ValueError(f"wrong number of columns: {len(fields)} instead of {layout.width}")
    user_key = _read_key(fields[layout.user], "user", numbered=layout.numbered)
    item_key = _read_key(fields[layout.item], "item", numbered=layout.numbered)
    try:
        rating = float(fields[layout.rating])
    except ValueError:
        raise ValueError(f"the rating {fields[layout.rating]!r} is not a number") from None
    if not isfinite(rating):
        raise ValueError(f"the rating {fields[layout.rating]!r} is not a finite number")
    if layout.scale is not None and not layout.scale[0] <= rating <= layout.scale[1]:
        minimum, maximum = layout.scale
        raise ValueError(f"the rating {rating:g} lies outside the scale {minimum:g} to {maximum:g}")
    if layout.timestamp is None:
        return user_key, item_key, rating, 0
    timestamp = _whole_number(fields[layout.timestamp], "timestamp")
    return user_key, item_key, rating, timestamp


def _read_key(text: str, what: str, *, numbered: bool) -> str:
    if numbered:
        return str(_whole_number(text, what))
    if not text:
        raise ValueError(f"the {what} is empty")
    return text


def _whole_number(text: str, what: str) -> int:
    """Read `12`, and `12.0` as some tools write it."""
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"the {what} {text!r} is not a whole number") from None
    if not (0 <= value < 2**63 and value % 1 == 0):
        raise ValueError(f"the {what} {text!r} is not a whole number from 0 to 2^63 - 1")
    return int(value)


def _in_order_of_keys(column: NDArray[np.int64], index: dict[str, int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Renumber a column whose keys are numbered by first appearance so that they are numbered by key."""
    if all(key.isdecimal() and key.isascii() and key == str(int(key)) for key in index):
        keys = tuple(sorted(index, key=int))
    else:
        keys = tuple(sorted(index))
    place = np.empty(len(keys), dtype=np.int64)
    place[[index[key] for key in keys]] = np.arange(len(keys))
    return place[column], keys
