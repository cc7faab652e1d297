"""The items of a plan may come from the ratings themselves."""

from __future__ import annotations

from pathlib import Path

from fedrecon.datasets import generate, load, write_csv
from fedrecon.learning.commands import _read_items


def test_a_folder_of_ratings_gives_its_items_and_titles(tmp_path: Path) -> None:
    write_csv(generate(users=30, items=60, seed=1), tmp_path)
    ratings = load(tmp_path)
    vocabulary = _read_items(tmp_path, "items")
    assert tuple(vocabulary.keys) == ratings.item_keys
    assert tuple(vocabulary.titles) == ratings.titles
