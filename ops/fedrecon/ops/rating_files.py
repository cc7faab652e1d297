"""Ratings that a person names on the command line: what cannot be read is their mistake, said without a traceback."""

from __future__ import annotations

from pathlib import Path

from fedrecon.datasets import MalformedFile, Ratings, UnknownDataset, load
from fedrecon.ops.mistakes import UserMistake


def load_ratings(place: Path) -> Ratings:
    """Return the ratings of a folder or file.

    Raises:
        UserMistake: nothing known is there, or it is malformed or cannot be opened.
    """
    try:
        return load(place)
    except (MalformedFile, UnknownDataset, OSError) as error:
        raise UserMistake(str(error)) from error
