"""`fedrecon experiment`: run the paper's experiments again, ours beside its own figures.

Rules: heavy libraries are imported when an experiment runs, so that `--help` is instant; what a person got wrong is a
`UserMistake`; with `--json` standard output ends with one object.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrecon.ops.mistakes import UserMistake

if TYPE_CHECKING:
    from fedrecon.datasets import Ratings

experiment = typer.Typer(no_args_is_help=True, help="Run the paper's experiments again, ours beside its figures.")

AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object instead of a table.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for tables, charts and the split; as a rule a new one in experiments/.", file_okay=False),
]
Seeds = Annotated[int, typer.Option(help="Runs of every row, with seeds 0, 1, ...", min=1)]
Quick = Annotated[bool, typer.Option("--quick", help="Made-up ratings and few rounds: shows in seconds that it works.")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="FEDRECON_DATA", help="Folder of MovieLens 1M, or the one that holds ml-1m/."),
]

TABLES, FIGURES = (1, 3), (3, 4)
QUICK_USERS, QUICK_ITEMS = 200, 120


@experiment.callback()
def _experiment() -> None:
    """Run the paper's experiments again, ours beside its figures."""


@experiment.command()
def movielens(
    table: Annotated[int | None, typer.Option(help="1: the rows of the paper's table; 3: with more baselines.")] = None,
    figure: Annotated[int | None, typer.Option(help="3: reconstruction steps; 4: rounds of the variants.")] = None,
    data: Data = None,
    seeds: Seeds = 1,
    out: Out = None,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Matrix factorisation of ratings, judged on users that were never trained on."""
    if (table is None) == (figure is None) or table not in {None, *TABLES} or figure not in {None, *FIGURES}:
        raise UserMistake(
            "State one experiment.", "Choose --table 1, --table 3, --figure 3 or --figure 4; --help says what they are."
        )
    ratings = _made_up_ratings() if quick else _movielens_ratings(data)

    from fedrecon.learning.experiments import movielens as experiments
    from fedrecon.learning.experiments.movielens_results import Setting
    from fedrecon.learning.experiments.protocol import ProtocolError
    from fedrecon.learning.experiments.reporting import output_folder

    name = f"movielens-table-{table}" if figure is None else f"movielens-figure-{figure}"
    setting = Setting(ratings, output_folder(out, name), seeds, quick, as_json)
    try:
        match table, figure:
            case int(), _:
                experiments.run_table(table, setting)
            case _, 3:
                experiments.run_figure_3(setting)
            case _:
                experiments.run_figure_4(setting)
    except ProtocolError as error:
        raise UserMistake(str(error)) from error


@experiment.command()
def ranking(
    data: Data = None, seeds: Seeds = 1, out: Out = None, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Ten recommendations for users that were never trained on: the implicit-feedback model beside its baselines."""
    ratings = _made_up_ratings() if quick else _movielens_ratings(data)

    from fedrecon.learning.experiments.protocol import ProtocolError
    from fedrecon.learning.experiments.ranking import run_ranking
    from fedrecon.learning.experiments.reporting import output_folder

    try:
        run_ranking(ratings, output_folder(out, "ranking"), seeds, quick=quick, as_json=as_json)
    except ProtocolError as error:
        raise UserMistake(str(error)) from error


def _made_up_ratings() -> Ratings:
    from fedrecon.datasets import generate

    return generate(users=QUICK_USERS, items=QUICK_ITEMS, seed=1)


def _movielens_ratings(data: Path | None) -> Ratings:
    """Returns MovieLens 1M from its own folder or from the one that holds it.

    Raises:
        UserMistake: no folder is stated, or it holds no ratings.
    """
    from fedrecon.ops.rating_files import load_ratings

    if data is None:
        raise UserMistake(
            "The experiment needs MovieLens 1M.",
            "State --data FOLDER or FEDRECON_DATA; --quick runs without it, on made-up ratings.",
        )
    inside = data / "ml-1m"
    return load_ratings(inside if inside.is_dir() else data)
