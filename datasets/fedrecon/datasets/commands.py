"""`fedrecon data`: make ratings up, look at a dataset, and choose the items that are popular enough to be summed."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from fedrecon.datasets.errors import MalformedFile, UnknownDataset
from fedrecon.datasets.generation import generate
from fedrecon.datasets.loading import load
from fedrecon.datasets.popularity import UPDATED, rows_with_contributors
from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.writing import write_csv
from fedrecon.wire.row_sets import MalformedRowSetError, write_row_set
from fedrecon.wire.vocabularies import MalformedVocabularyError, read_vocabulary

data = typer.Typer(help="Make ratings up, look at a dataset, choose popular rows.", no_args_is_help=True)


@data.command("generate")
def write_generated(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it is not there.", file_okay=False)],
    users: Annotated[int, typer.Option(min=1, help="How many users.")] = 1000,
    items: Annotated[int, typer.Option(min=1, help="How many items.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same ratings.")] = 1,
) -> None:
    """Write made-up ratings and titles as ratings.csv and movies.csv, in MovieLens's format."""
    try:
        ratings = generate(users=users, items=items, seed=seed)
        write_csv(ratings, out)
    except (ValueError, OSError) as error:
        raise _refusal(error) from None
    typer.echo(f"{len(ratings):,} ratings of {items:,} items by {users:,} users are in {out}")


@data.command("rows")
def write_rows(
    ratings: Annotated[Path, typer.Option(help="Public ratings: a folder or file of MovieLens, or a CSV file.")],
    cohort: Annotated[int, typer.Option(min=1, help="Devices whose reports are summed.")],
    contributors: Annotated[int, typer.Option(min=1, help="Least devices expected to update a row; 5 hides most.")],
    out: Annotated[Path, typer.Option(help="File to write to, for `fedrecon task create --rows`.", dir_okay=False)],
    vocabulary: Annotated[
        Path | None, typer.Option(help="Vocabulary that rows are numbered by; else by the ratings, as plans from them.")
    ] = None,
    updated: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a user's ratings that a device updates: 1 without a split.")
    ] = UPDATED,
) -> None:
    """Write a public row set: the items that are popular enough for a cohort."""
    try:
        loaded = load(ratings)
        chosen = rows_with_contributors(loaded, cohort, contributors, updated)
        keys = [loaded.item_keys[row] for row in chosen.tolist()]
        rows = chosen if vocabulary is None else read_vocabulary(vocabulary.read_bytes()).rows_of(keys)
        rows = np.sort(rows[rows >= 0])
        out.write_bytes(write_row_set(rows, contributors, cohort))
    except (MalformedFile, MalformedRowSetError, MalformedVocabularyError, UnknownDataset, OSError) as error:
        raise _refusal(error) from None
    kept = float(loaded.ratings_per_item()[chosen].sum()) / len(loaded)
    typer.echo(
        f"{len(rows):,} of {len(loaded.item_keys):,} items, with {kept:.1%} of all ratings, are in {out}: at least "
        f"{contributors} contributors of each are expected in a sum of {cohort:,} devices"
    )


@data.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="A folder or file of MovieLens, or a CSV file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a dataset holds."""
    try:
        summary = summarise(load(path))
    except (MalformedFile, UnknownDataset, OSError) as error:
        raise _refusal(error) from None
    if as_json:
        typer.echo(json.dumps(summary))
        return
    table = Table(title=str(path), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in summary.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}".rstrip("0").rstrip(".")
        table.add_row(name.replace("_", " "), text)
    Console().print(table)


def summarise(ratings: Ratings) -> dict[str, int | float]:
    """Count what a dataset holds.

    Args:
        ratings: At least one.

    Returns:
        Users, items, ratings, their mean, the share of all pairs that is rated (`density`), and the smallest, median
        and largest number of ratings a user has.
    """
    per_user = ratings.ratings_per_user()
    return {
        "users": len(ratings.user_keys),
        "items": len(ratings.item_keys),
        "ratings": len(ratings),
        "mean": round(float(ratings.ratings.mean(dtype=np.float64)), 6),
        "density": round(len(ratings) / (len(ratings.user_keys) * len(ratings.item_keys)), 6),
        "min_per_user": int(per_user.min()),
        "median_per_user": float(np.median(per_user)),
        "max_per_user": int(per_user.max()),
    }


def _refusal(error: Exception) -> typer.Exit:
    """Say on standard error what the person has to mend; the exit code is 2, as for every mistake of theirs."""
    typer.echo(f"Error: {error}", err=True)
    return typer.Exit(2)
