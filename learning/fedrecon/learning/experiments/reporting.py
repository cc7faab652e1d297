"""What an experiment hands over: rows beside the paper's, as a table, a CSV file and JSON, and the folder they lie in.

Rules: a figure of the paper stands in a column of its own and is never mixed with ours; what differs from the paper is
said in a note under the table; standard output carries the table, or with `--json` one object and nothing else;
progress goes to standard error.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedrecon.ops.printing import print_json

Cell = str | int | float | None
OUTPUT_FOLDER = Path("experiments")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a report.

    Attributes:
        key: of its cells in the rows, in CSV and in JSON.
        title: above the column of the printed table; empty: the column is only in the CSV file and in JSON.
        form: how numbers are written in the table, such as `.4f`.
        in_json: whether `--json` has it.
    """

    key: str
    title: str = ""
    form: str = ""
    in_json: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A table of results.

    Attributes:
        title: of the printed table.
        columns: in order.
        rows: cells by key; a missing one, or None, is not known.
        notes: what differs from the paper and why, a sentence or more each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]
    notes: tuple[str, ...] = ()


def hand_over(report: Report, folder: Path, name: str, *, as_json: bool) -> None:
    """Write `NAME.csv` into the folder, and print the report.

    Args:
        report: the results.
        folder: of the output.
        name: of the file, without ending.
        as_json: print one object instead of the table.
    """
    write_csv(report, folder / f"{name}.csv")
    if as_json:
        print_json(as_object(report))
        return
    console = Console(highlight=False)
    console.print(as_table(report))
    for note in report.notes:
        console.print(note, style="dim")
    console.print(f"Written to {folder}", soft_wrap=True)


def as_table(report: Report) -> Table:
    """Give the report as a table; what is not known is a dash."""
    shown = [column for column in report.columns if column.title]
    table = Table(title=report.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(shown):
        table.add_column(column.title, justify="right" if number else "left", no_wrap=not number)
    for row in report.rows:
        table.add_row(*(_written(row.get(column.key), column.form) for column in shown))
    return table


def as_object(report: Report) -> dict[str, Any]:
    """Give the report as JSON has it: `{"rows": [{key: cell}]}`."""
    keys = [column.key for column in report.columns if column.in_json]
    return {"rows": [{key: row.get(key) for key in keys} for row in report.rows]}


def write_csv(report: Report, path: Path) -> None:
    """Write every column of every row; what is not known is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([column.key for column in report.columns])
        for row in report.rows:
            writer.writerow(["" if row.get(column.key) is None else row[column.key] for column in report.columns])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Give the mean over seeds, and their sample standard deviation; None for one seed, which shows none.

    Example:
        >>> mean_and_spread([0.75, 1.25])
        (1.0, 0.3535533905932738)
        >>> mean_and_spread([0.5])
        (0.5, None)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def output_folder(asked: Path | None, name: str) -> Path:
    """Give the folder that was asked for, or `experiments/NAME`, with a number where that is taken."""
    if asked is not None:
        return asked
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(OUTPUT_FOLDER / each for each in names if not (OUTPUT_FOLDER / each).exists())


def progress_bar() -> Progress:
    """Give a progress bar on standard error; it says nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _written(cell: Cell, form: str) -> str:
    match cell:
        case None:
            return "–"  # noqa: RUF001 - a dash is what tables have where nothing is known
        case str():
            return cell
        case _:
            return format(cell, form)
