"""`fedrecon plan`: make a publisher key, compile a model into a signed plan, look at a plan, check one.

Rules: what a person got wrong is a `UserMistake`; with `--json` a command prints exactly one object. Torch is
imported only where a plan is compiled or run, so that `--help` is instant.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedrecon.learning.plan_tables import tables_of
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.printing import print_json
from fedrecon.v1 import plan_pb2

if TYPE_CHECKING:
    from fedrecon.learning.reconstruction import Reconstruction

plan = typer.Typer(no_args_is_help=True, help="Compile models into signed training plans, and check plans.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PlanFolder = Annotated[Path, typer.Argument(help="Folder of the plan.", metavar="DIR")]

CSV_HEADER = ["key", "title"]


class ModelName(Enum):
    """Models that can be compiled from the command line."""

    MATRIX_FACTORIZATION = "matrix-factorization"


class ReconstructionName(Enum):
    """How local parameters are found."""

    GRADIENT = "gradient"
    RIDGE = "ridge"


@plan.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="File for the private key; must not exist.")], as_json: AsJson = False
) -> None:
    """Make a publisher key and print its public half, which apps trust."""
    from fedrecon.learning.planning.keys import generate_key

    with _mistakes():
        public = generate_key(path)
    if as_json:
        print_json({"path": str(path), "publisher_key": public})
    else:
        typer.echo(public)


@plan.command(name="compile")
def compile_command(
    items: Annotated[Path, typer.Option(help="Folder of ratings, or a CSV file with the columns key,title.")],
    key: Annotated[Path, typer.Option(help="The publisher's private key, from `fedrecon plan keygen`.")],
    out: Annotated[Path, typer.Option(help="Folder for the plan; must not exist.")],
    model: Annotated[ModelName, typer.Option(help="What to compile.")] = ModelName.MATRIX_FACTORIZATION,
    factors: Annotated[int, typer.Option(help="Length of item and user vectors.", min=1)] = 20,
    mean: Annotated[float, typer.Option(help="Constant part of every prediction.")] = 3.5,
    bias: Annotated[bool, typer.Option(help="Whether items and users have a bias.")] = True,
    minimum: Annotated[float, typer.Option(help="Smallest rating.")] = 0.5,
    maximum: Annotated[float, typer.Option(help="Largest rating.")] = 5.0,
    reconstruction: Annotated[
        ReconstructionName, typer.Option(help="How a device finds its user vector.")
    ] = ReconstructionName.RIDGE,
    ridge: Annotated[float, typer.Option(help="Default ridge, for --reconstruction ridge.")] = 5.0,
    rate: Annotated[float, typer.Option(help="Default rate, for --reconstruction gradient.")] = 0.1,
    update_rate: Annotated[float, typer.Option(help="Default rate of the update.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of initial item vectors and of the verification.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Compile a model, compare it with torch, sign it, and write it."""
    from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
    from fedrecon.learning.planning import compile_plan, read_key

    del model  # there is one; the option keeps scripts unchanged when there are more
    vocabulary = _read_items(items, ITEMS)
    with _mistakes():
        private = read_key(key)
        declared = matrix_factorization(
            len(vocabulary.keys),
            factors,
            mean=mean,
            bias=bias,
            reconstruction=_reconstruction(reconstruction, ridge, rate),
            update_rate=update_rate,
            rating_limits=(minimum, maximum),
            seed=seed,
        )
        compiled = compile_plan(declared, {ITEMS: vocabulary}, private, out, seed)
    if as_json:
        print_json(
            {
                "digest": compiled.digest.hex(),
                "path": str(compiled.path),
                "largest_difference": compiled.largest_difference,
            }
        )
    else:
        typer.echo(f"plan {compiled.digest.hex()}")
        typer.echo(f"in {compiled.path}; largest difference from torch {compiled.largest_difference:.1e}")


@plan.command()
def show(directory: PlanFolder, as_json: AsJson = False) -> None:
    """Show what a plan holds, after checking its digests and signature."""
    from google.protobuf import json_format

    from fedrecon.learning.planning import read_bundle

    with _mistakes():
        bundle = read_bundle(directory)
    if as_json:
        described = {
            "digest": bundle.digest.hex(),
            "publisher_key": bundle.signature.publisher_key.hex(),
            "manifest": json_format.MessageToDict(bundle.manifest, preserving_proto_field_name=True),
        }
        print_json(described)
        return
    console = Console(markup=False, highlight=False)
    for table in tables_of(bundle):
        console.print(table)


@plan.command()
def verify(directory: PlanFolder, as_json: AsJson = False) -> None:
    """Check digests and signature, and run the recorded answers through ONNX Runtime."""
    from fedrecon.learning.planning import verify_plan

    with _mistakes():
        result = verify_plan(directory)
    if as_json:
        print_json(
            {
                "digest": result.bundle.digest.hex(),
                "publisher_key": result.bundle.signature.publisher_key.hex(),
                "answers": result.answers,
                "largest_difference": result.largest_difference,
            }
        )
    else:
        typer.echo(
            f"plan {result.bundle.digest.hex()} is whole, signed by {result.bundle.signature.publisher_key.hex()}, and "
            f"gives {result.answers} recorded answers within {result.largest_difference:.1e}"
        )


@contextmanager
def _mistakes() -> Iterator[None]:
    """Shows what a person got wrong without a traceback."""
    from fedrecon.learning.model import ModelError
    from fedrecon.learning.planning.values import PlanError

    try:
        yield
    except (ModelError, PlanError) as error:
        raise UserMistake(str(error)) from error


def _reconstruction(name: ReconstructionName, ridge: float, rate: float) -> Reconstruction:
    """Returns the algorithm asked for; its limits reach to the default where that lies beyond the usual ones."""
    from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Ridge

    try:
        if name is ReconstructionName.RIDGE:
            return Ridge("rating", Hyperparameter(ridge, min(1.0, ridge), max(1000.0, ridge)))
        return GradientSteps(Hyperparameter(rate, 0.0, max(0.25, rate)))
    except ValueError as error:
        raise UserMistake(str(error), "Choose a --ridge above 0 and a --rate of at least 0.") from error


def _read_items(path: Path, name: str) -> plan_pb2.Vocabulary:
    """Returns the items of a folder of ratings, or of a CSV file, as version 1 of a vocabulary.

    Raises:
        UserMistake: the folder or file cannot be read, has other columns, is empty, or names a key twice.
    """
    if path.is_dir():
        return _rated_items(path, name)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        raise UserMistake(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserMistake(f"{path} is no CSV file in UTF-8: {error}") from error
    if not rows or rows[0] != CSV_HEADER:
        raise UserMistake(f"{path} does not start with the header line key,title")
    vocabulary = plan_pb2.Vocabulary(name=name, version=1)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(CSV_HEADER) or not row[0]:
            raise UserMistake(f"{path}, row {number}: expected a key and a title, found {row!r}")
        if row[0] in seen:
            raise UserMistake(f"{path}, row {number}: the key {row[0]!r} is already in row {seen[row[0]]}")
        seen[row[0]] = number
        vocabulary.keys.append(row[0])
        vocabulary.titles.append(row[1])
    if not seen:
        raise UserMistake(f"{path} names no item")
    return vocabulary


def _rated_items(folder: Path, name: str) -> plan_pb2.Vocabulary:
    """Returns the items that a folder of ratings names, as version 1 of a vocabulary."""
    from fedrecon.ops.rating_files import load_ratings

    ratings = load_ratings(folder)
    return plan_pb2.Vocabulary(name=name, version=1, keys=ratings.item_keys, titles=ratings.titles)
