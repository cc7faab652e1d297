"""Ratings written as a folder in MovieLens's CSV format, such that `load` gives them back."""

import csv
from pathlib import Path

from fedrecon.datasets.movielens import CSV
from fedrecon.datasets.ratings import Ratings

NO_GENRES = "(no genres listed)"


def write_csv(ratings: Ratings, folder: Path) -> None:
    """Write `ratings.csv`, and `movies.csv` if there are titles.

    Args:
        ratings: What to write; its keys must be whole numbers, as the format wants.
        folder: Where to; made if it is not there. Files of these names in it are replaced.

    Raises:
        ValueError: A key is not a whole number.
    """
    for key in (*ratings.user_keys, *ratings.item_keys):
        if not key.isdecimal():
            raise ValueError(f"the key {key!r} is not a whole number, and this format knows no other")
    folder.mkdir(parents=True, exist_ok=True)
    columns = zip(
        ratings.users.tolist(),
        ratings.items.tolist(),
        ratings.ratings.tolist(),
        ratings.timestamps.tolist(),
        strict=True,
    )
    with (folder / CSV.ratings).open("w", encoding=CSV.encoding, newline="") as file:
        file.write(f"{CSV.header}\n")
        file.writelines(
            f"{ratings.user_keys[user]},{ratings.item_keys[item]},{rating},{timestamp}\n"
            for user, item, rating, timestamp in columns
        )
    if ratings.titles:
        with (folder / CSV.titles).open("w", encoding=CSV.encoding, newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["movieId", "title", "genres"])
            rows.writerows(
                [key, title, NO_GENRES] for key, title in zip(ratings.item_keys, ratings.titles, strict=True)
            )
