"""`fedrecon experiment`: run the paper's experiments again, ours beside its own figures.

Rules: heavy libraries are imported when an experiment runs, so that `--help` is instant; what a person got wrong is a
`UserMistake`; with `--json` standard output ends with one object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


@experiment.callback()
def _experiment() -> None:
    """Run the paper's experiments again, ours beside its figures."""
