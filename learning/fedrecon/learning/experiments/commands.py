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
    from fedrecon.datasets import Ratings, Texts

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
NEXT_WORD_TABLES, NEXT_WORD_FIGURES = (2, 4), (2, 3, 5, 6)
QUICK_USERS, QUICK_ITEMS, QUICK_WRITERS = 200, 120, 60


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


@experiment.command("next-word")
def next_word(
    table: Annotated[
        list[int] | None, typer.Option(help="2: accuracy of all methods; 4: bytes that a client communicates.")
    ] = None,
    figure: Annotated[
        list[int] | None,
        typer.Option(help="2: accuracy by vocabulary and by bytes; 5: OOV buckets; 6: reconstruction steps."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDRECON_DATA",
            help="Folder of Stack Exchange sites, each with Posts.xml, or the one that holds stackexchange/.",
        ),
    ] = None,
    seeds: Seeds = 1,
    out: Out = None,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="The paper's model, vocabularies, cohort and rounds: days on a CPU.")
    ] = False,
    choose_rates: Annotated[
        bool, typer.Option("--choose-rates", help="Choose learning rates anew on validation, from the paper's grids.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Made-up text and few rounds: shows in a minute that it works.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Next-word prediction with local embeddings of unusual words; tables and figures may be asked for together."""
    tables, figures = tuple(table or ()), tuple(figure or ())
    if not (tables or figures) or not (set(tables) <= {*NEXT_WORD_TABLES} and set(figures) <= {*NEXT_WORD_FIGURES}):
        raise UserMistake(
            "State what to run.",
            "Choose among --table 2, --table 4, --figure 2, --figure 3, --figure 5 and --figure 6.",
        )
    if quick and full_size:
        raise UserMistake("--quick and --full-size exclude each other.")
    texts = _made_up_texts() if quick else _stack_exchange_texts(data)

    from fedrecon.learning.experiments.next_word import run_next_word
    from fedrecon.learning.experiments.next_word_results import Setting
    from fedrecon.learning.experiments.next_word_rows import FULL, QUICK, SMALL
    from fedrecon.learning.experiments.protocol import ProtocolError
    from fedrecon.learning.experiments.reporting import output_folder

    source = "made-up text" if quick else "Stack Exchange text"
    size = QUICK if quick else FULL if full_size else SMALL
    setting = Setting(texts, source, output_folder(out, "next-word"), size, seeds, choose_rates, as_json)
    try:
        run_next_word(tables, figures, setting)
    except ProtocolError as error:
        raise UserMistake(str(error)) from error


def _made_up_texts() -> Texts:
    from fedrecon.datasets import generate_texts

    return generate_texts(users=QUICK_WRITERS, seed=1)


def _stack_exchange_texts(data: Path | None) -> Texts:
    """Returns the texts of a folder of sites or of the one that holds it.

    Raises:
        UserMistake: no folder is stated, or it holds no posts.
    """
    from fedrecon.datasets import MalformedFile, UnknownDataset, load_stack_exchange

    if data is None:
        raise UserMistake(
            "The experiment needs texts of Stack Exchange.",
            "State --data FOLDER or FEDRECON_DATA; --quick runs without it, on made-up text.",
        )
    inside = data / "stackexchange"
    try:
        return load_stack_exchange(inside if inside.is_dir() else data)
    except (MalformedFile, UnknownDataset, OSError) as error:
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
