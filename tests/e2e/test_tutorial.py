"""The tutorial runs as written: every block of the page, and the script that holds the same code as cells."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecon.datasets import Ratings, generate
from fedrecon.learning.planning import verify_plan

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE, SCRIPT = DOCS / "tutorial.md", DOCS / "tutorial.py"
GENRES = ("Comedy", "Drama", "Drama|War")


def blocks() -> list[str]:
    """The page's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def cells() -> list[str]:
    """The script's cells, without their titles."""
    _, *found = re.split(r"^# %%.*\n", SCRIPT.read_text(), flags=re.MULTILINE)
    return found


def execute(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "tutorial", "exec"), names)  # noqa: S102 - the page's own code is what is tested


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All names after a reader has run the page from its start to its end, on generated ratings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        patch.delenv("FEDRECON_DATA", raising=False)
        patch.setattr("sys.argv", ["tutorial.py", "--quick"])
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("plans")))
        names: dict[str, Any] = {"__name__": "tutorial"}
        for block in blocks():
            execute(block, names)
        yield names | {"read_in": Path.cwd()}


def write_movielens(ratings: Ratings, folder: Path) -> None:
    """Made-up ratings in MovieLens 1M's format, with genres."""
    folder.mkdir()
    columns = zip(ratings.users, ratings.items, ratings.ratings, ratings.timestamps, strict=True)
    (folder / "ratings.dat").write_text(
        "".join(f"{user + 1}::{item + 1}::{stars:g}::{when}\n" for user, item, stars, when in columns)
    )
    (folder / "movies.dat").write_text(
        "".join(f"{1 + item}::Film {item}::{GENRES[item % len(GENRES)]}\n" for item in range(len(ratings.item_keys)))
    )


def test_the_page_and_the_script_hold_the_same_code() -> None:
    assert [cell.strip() for cell in cells()] == [block.strip() for block in blocks()]


def test_every_run_of_the_tutorial_learns(read: dict[str, Any]) -> None:
    runs = [*read["runs"].values(), read["trained_mixed"]]
    assert len(runs) == 5
    for run in runs:
        losses = [point.loss for point in run.history]
        assert losses[-1] < losses[0] < math.inf
        assert run.dropped == 0


def test_the_tutorials_figures_are_drawn(read: dict[str, Any]) -> None:
    drawn = {path.name for path in (read["read_in"] / "tutorial-figures").iterdir()}
    shown = set(re.findall(r"\(images/(tutorial-.*?)\)", PAGE.read_text()))
    assert drawn == shown == {path.name for path in (DOCS / "images").glob("tutorial-*.png")}


def test_fitted_vectors_are_better_on_what_they_were_fitted_to(read: dict[str, Any]) -> None:
    memory, service = (
        read["rmse"](
            read["measure"](
                read["simulator"],
                read["trained"].global_parameters,
                read["user_vectors"],
                read["unseen_users"],
                read[half],
            )
        )
        for half in ("support", "query")
    )
    assert memory < service
    assert not set(read["support"].positions) & set(read["query"].positions)


def test_the_tutorials_own_model_is_a_plan_that_starts_where_training_ended(read: dict[str, Any]) -> None:
    compiled = read["compiled"]
    assert verify_plan(compiled.path).largest_difference < 1e-5
    trained, start = read["trained_mixed"].global_parameters, read["mixed"].global_parameters
    assert all(np.array_equal(start[name], value) for name, value in trained.items())


def test_the_tutorial_reads_movielens_and_draws_its_genres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_movielens(generate(users=60, items=50, seed=3), tmp_path / "ml-1m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tutorial.py", "--data", str(tmp_path)])
    until_genres = next(number for number, block in enumerate(blocks()) if "genres_of" in block)
    names: dict[str, Any] = {"__name__": "tutorial"}
    for block in blocks()[: until_genres + 1]:
        execute(block, names)
    rated = names["ratings"].ratings_per_item()
    of_drama = [count for key, count in zip(names["ratings"].item_keys, rated, strict=True) if (int(key) - 1) % 3]
    assert names["rated"]["Drama"] == sum(of_drama)
    assert names["rated"]["Comedy"] == len(names["ratings"]) - sum(of_drama)
    assert (tmp_path / "tutorial-figures" / "tutorial-genres.png").exists()
