"""`fedrecon export` and `fedrecon recommend`: a recommender as a file, and what it recommends.

Rules: mistakes of the person are said with what to do (exit code 2). Files appear whole or not at all; the vocabulary
is written before the recommender that needs it. `recommend` needs no server and sends nothing anywhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrecon.ops.mistakes import UserMistake

if TYPE_CHECKING:
    from fedrecon.inference.lightening import Lightened
    from fedrecon.inference.taken_fields import TakenField
    from fedrecon.inference.verifying import Exported
    from fedrecon.wire.vocabularies import Items

ITEMS_SUFFIX = ".items"
_FIELDS_RATED = 2  # the item and its number

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]


def export(
    task: Annotated[str, typer.Argument(help="Task whose live checkpoint is exported; not with --plan.")] = "",
    server: Annotated[str | None, typer.Option(help="Coordinator, host:port; the local stack by default.")] = None,
    blobs: Annotated[str | None, typer.Option(help="Where blobs are fetched, host:port; beside --server.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Folder of a compiled plan: export without any server.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint for --plan; its initial one if none.")] = None,
    out: Annotated[Path, typer.Option(help="File to write; its items go beside it.")] = Path("recommender.onnx"),
    precision: Annotated[
        str, typer.Option(help="float32, float16 or int8: of its tables; it computes alike.")
    ] = "float32",
    users: Annotated[
        Path | None, typer.Option(help="Folder of ratings on which the loss of --precision is measured.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint to one ONNX file that recommends anywhere, proved equal to its plan."""
    from fedrecon.device_sdk.recommender import BUNDLE_SUFFIX
    from fedrecon.inference.bundles import NotExportableError
    from fedrecon.inference.collecting import export_from_folder, export_from_server
    from fedrecon.inference.lightening import describe_bundle
    from fedrecon.ops.durable_files import write_durably
    from fedrecon.ops.printing import print_json

    if bool(task) == (plan is not None):
        raise UserMistake("Name either a task or a plan.", "`fedrecon export TASK`, or `fedrecon export --plan DIR`.")
    if checkpoint is not None and plan is None:
        raise UserMistake("--checkpoint belongs to --plan.", "A task's live checkpoint is fetched from its server.")
    if out.suffix == ITEMS_SUFFIX:
        raise UserMistake(f"{out} would be overwritten by its own items.", "Call the file, for example, movies.onnx.")
    try:
        exported: Exported = (
            export_from_server(task, server, blobs) if plan is None else export_from_folder(plan, checkpoint)
        )
    except NotExportableError as error:
        raise UserMistake(f"This cannot become a recommender: {error}.", "See the plan of the task.") from error
    light = _lighten(exported, precision, users)
    items_file = out.with_suffix(ITEMS_SUFFIX)
    for each in (items_file, out):
        if each.is_dir():
            raise UserMistake(f"{each} is a folder.", "Name a file: --out movies.onnx.")
    try:
        write_durably(items_file, [exported.items])
        write_durably(out, [light.recommender])
        write_durably(out.with_suffix(BUNDLE_SUFFIX), [describe_bundle(out, light, exported)])
    except OSError as error:
        raise UserMistake(f"{out} cannot be written: {error.strerror or error}.", "Choose another --out.") from error
    if as_json:
        print_json(
            {
                "recommender": str(out),
                "items": str(items_file),
                "task": task,
                "round": exported.round,
                "bytes": len(light.recommender),
                "largest_difference": exported.largest_difference,
                "precision": light.precision,
                "precision_difference": light.difference,
                "precision_rmse": light.rmse,
            }
        )
        return
    typer.echo(
        f"{out} ({len(light.recommender):,} bytes, round {exported.round}) and {items_file}; "
        f"its scores differ from the plan's own by at most {exported.largest_difference:.1e}."
    )
    if light.precision != "float32":
        typer.echo(
            f"Its tables are {light.precision}: made-up users' scores differ from float32's by {light.difference:.1e} "
            f"of the largest{_loss(light)}."
        )


def _lighten(exported: Exported, precision: str, users: Path | None) -> Lightened:
    """Returns an export with tables of a precision."""
    import numpy as np

    from fedrecon.inference.bundles import NotExportableError
    from fedrecon.inference.judging import UnjudgeableError, raters_of
    from fedrecon.inference.lightening import PRECISIONS, lighten
    from fedrecon.ops.rating_files import load_ratings
    from fedrecon.wire.vocabularies import read_vocabulary

    found = next((each for each in PRECISIONS if each == precision), None)
    if found is None:
        raise UserMistake(f"--precision {precision!r} is none.", f"It is one of {', '.join(PRECISIONS)}.")
    if users is not None and found == "float32":
        raise UserMistake("--users tells the loss of a lower --precision; float32 has none.", "Leave it out.")
    raters = []
    if users is not None:
        ratings = load_ratings(users)
        raters = raters_of(ratings, np.arange(len(ratings.user_keys)))
    try:
        return lighten(exported.recommender, read_vocabulary(exported.items), found, raters)
    except (NotExportableError, UnjudgeableError) as error:
        raise UserMistake(f"It cannot be made {precision}: {error}.", "Export it as float32.") from error


def _loss(light: Lightened) -> str:
    if light.rmse is None:
        return ""
    full, own = light.rmse
    return f"; RMSE on the users' ratings is {own:.4f}, with float32 {full:.4f} ({own / full - 1:+.2%})"


def recommend(
    file: Annotated[Path, typer.Argument(help="A recommender that `fedrecon export` wrote.")],
    rate: Annotated[list[str] | None, typer.Option(help='"TITLE OR KEY=5"; once for each item that was rated.')] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="How many are wanted.")] = 10,
    users: Annotated[
        Path | None, typer.Option(help="Ratings of many users instead: a MovieLens folder, or a CSV file; with --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where those of --users go: .csv or .jsonl; it can go on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend to a user whom nobody has seen, from a few ratings, or to all users of a file; offline."""
    from fedrecon.device_sdk import FedreconError, Recommender
    from fedrecon.device_sdk.graphs import runnable_graph
    from fedrecon.inference.taken_fields import FIELDS_KEY, read_fields
    from fedrecon.ops.printing import print_json

    if (users is None) != (out is None) or (users is not None and rate):
        raise UserMistake(
            "--users and --out belong together, and --rate is for one user.",
            "`fedrecon recommend movies.onnx --users ratings.csv --out recommended.jsonl`",
        )
    try:
        content = file.read_bytes()
        recommender = Recommender(file)
    except OSError as error:
        raise UserMistake(
            f"{error.filename} cannot be read: {error.strerror}.", "`fedrecon export` writes a file and its items."
        ) from error
    except FedreconError as error:
        raise UserMistake(f"{file} is no recommender for this version: {error}.", "Export it again.") from error
    fields = read_fields(runnable_graph(content, str(file)).metadata[FIELDS_KEY])
    if users is not None and out is not None:
        _recommend_to_all(content, recommender.items, users, out, count, as_json=as_json)
        return
    columns = _read_ratings(rate or [], fields, recommender.items)
    found = recommender.recommend(columns, count)
    if as_json:
        print_json({"recommendations": [{"key": one.key, "title": one.title, "score": one.score} for one in found]})
        return
    _print_table([(one.title, one.score) for one in found])


def _recommend_to_all(content: bytes, items: Items, users: Path, out: Path, count: int, *, as_json: bool) -> None:
    """Writes what all users of some ratings get, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from fedrecon.inference.backfilling import CSV_SUFFIX, LINES_SUFFIX, Request, asked_of, back_fill, digest_of_ratings
    from fedrecon.inference.judging import UnjudgeableError
    from fedrecon.inference.recommending import OpenRecommender
    from fedrecon.ops.printing import print_json
    from fedrecon.ops.rating_files import load_ratings
    from fedrecon.wire.digests import digest_of

    if out.suffix not in {CSV_SUFFIX, LINES_SUFFIX}:
        raise UserMistake(f"{out} is neither .csv nor .jsonl.", "Name it, for example, recommended.jsonl.")
    ratings = load_ratings(users)
    opened = OpenRecommender.open(content, items)
    request = Request(digest_of(content).hex(), digest_of_ratings(ratings), count)
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("recommending", total=len(ratings.user_keys))
            asked = asked_of(opened, ratings, count)
            refused = back_fill(opened, asked, out, request, lambda more: bar.advance(task, more))
    except UnjudgeableError as error:
        raise UserMistake(f"This recommender does not take ratings: {error}.", "Use it from a program.") from error
    except OSError as error:
        raise UserMistake(f"{out} cannot be written: {error.strerror or error}.", "Choose another --out.") from error
    if as_json:
        print_json({"out": str(out), "users": len(ratings.user_keys), "refused": refused})
        return
    said = f"; {refused:,} were refused, and have a line that says why" if refused else ""
    typer.echo(f"{out}: {len(ratings.user_keys):,} users{said}.")


def _read_ratings(
    ratings: list[str], fields: tuple[TakenField, ...], items: Items
) -> dict[str, list[str] | list[float]]:
    """Returns the columns of what a person rated."""
    from fedrecon.inference.matching import UnclearItemError, find_item

    rated = [field for field in fields if not field.vocabulary]
    if len(fields) != _FIELDS_RATED or len(rated) != 1:
        names = ", ".join(field.name for field in fields)
        raise UserMistake(
            f"This recommender takes {names}; --rate gives an item and one number.",
            "Use it from a program: fedrecon.device_sdk.Recommender.",
        )
    number_field, item_field = rated[0], next(field for field in fields if field.vocabulary)
    keys: list[str] = []
    numbers: list[float] = []
    for rating in ratings:
        words, equals, text = rating.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise UserMistake(f"--rate {rating!r} has no number.", 'Write it as --rate "TITLE OR KEY=5".')
        if not number_field.allows(number):
            raise UserMistake(
                f"--rate {rating!r}: {number:g} is not on the scale of {number_field.name}.",
                f"It goes from {number_field.minimum:g} to {number_field.maximum:g}.",
            )
        try:
            key = items.keys[find_item(items, words)]
        except UnclearItemError as error:
            raise UserMistake(f"--rate {rating!r}: {error}.", "Give more of the title, or the key.") from error
        if key in keys:
            raise UserMistake(f"--rate {rating!r}: this item (key {key}) is rated already.", "Rate each item once.")
        keys.append(key)
        numbers.append(number)
    return {item_field.name: keys, number_field.name: numbers}


def _print_table(rows: list[tuple[str, float]]) -> None:
    """Prints titles and scores, best first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("title", overflow="fold")
    table.add_column("score", justify="right")
    for place, (title, score) in enumerate(rows, start=1):
        table.add_row(str(place), title, f"{score:.2f}")
    Console(markup=False, highlight=False).print(table)
