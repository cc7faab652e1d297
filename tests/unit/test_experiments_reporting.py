"""Results are handed over whole: what is printed, written and drawn is what was measured."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest

from fedrecon.learning.experiments.charts import (
    Compared,
    Comparison,
    Line,
    Panel,
    apart,
    draw_comparison,
    draw_lines,
)
from fedrecon.learning.experiments.reporting import Column, Report, hand_over, output_folder

REPORT = Report(
    title="Table 1",
    columns=(Column("row", "row"), Column("rmse", "RMSE", ".3f"), Column("bytes", in_json=False)),
    rows=({"row": "one", "rmse": 0.90714, "bytes": 5}, {"row": "two", "rmse": None, "bytes": 6}),
    notes=("Other users.",),
)


def test_json_is_one_object_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_over(REPORT, tmp_path, "table", as_json=True)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == {"rows": [{"row": "one", "rmse": 0.90714}, {"row": "two", "rmse": None}]}


def test_the_table_rounds_and_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_over(REPORT, tmp_path, "table", as_json=False)
    printed = capsys.readouterr().out
    assert "0.907" in printed
    assert "Other users." in printed
    assert "bytes" not in printed


def test_csv_has_every_column_unrounded(tmp_path: Path) -> None:
    hand_over(REPORT, tmp_path, "table", as_json=True)
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["row", "rmse", "bytes"], ["one", "0.90714", "5"], ["two", "", "6"]]


def test_a_folder_is_never_used_twice_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_folder(Path("mine"), "table") == Path("mine")
    for expected in ("table", "table-2", "table-3"):
        folder = output_folder(None, "table")
        assert folder == Path("experiments") / expected
        folder.mkdir(parents=True)


@pytest.mark.parametrize("places", [[0.5] * 5, [0.1, 0.9, 0.11, 0.5], [0.0, 0.05, 0.1, 0.15, 0.9], [0.3], []])
def test_labels_keep_their_order_and_distance(places: list[float]) -> None:
    moved = apart(places, 0.06)
    by_place = [moved[number] for number in sorted(range(len(places)), key=places.__getitem__)]
    assert all(after - before >= 0.06 - 1e-9 for before, after in pairwise(by_place))
    assert sum(moved) == pytest.approx(sum(places))


def test_charts_are_png_files(tmp_path: Path) -> None:
    line = Line("one", [0, 1, 2], [3.7, 1.0, 0.9])
    draw_lines(
        [
            Panel("RMSE", "steps", (line,), limits=(0.8, 1.2), x_ticks=(0, 1, 2)),
            Panel("accuracy", "steps", (line,), percent=True),
        ],
        "Lines",
        "made up",
        tmp_path / "lines.png",
    )
    rows = (Compared("one", 0.9, 0.01, 0.91), Compared("two", None, None, 1.2), Compared("three", 0.8))
    draw_comparison([Comparison("RMSE", rows)], "Rows", "made up", tmp_path / "rows.png")
    for name in ("lines", "rows"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
