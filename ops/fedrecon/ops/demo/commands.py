"""The `fedrecon demo` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedrecon.ops.printing import print_json


def demo(
    place: Annotated[Path | None, typer.Option("--data", help="MovieLens folder; default: made-up ratings")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="rounds to commit")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="have a web console, and leave it and the stack running until Ctrl-C")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Train, export and recommend on this machine, from ratings to ten titles, and leave nothing running."""
    from fedrecon.ops.demo.running import demo_run
    from fedrecon.ops.up import console_link, look_after, stop_on_signals

    console = Console(stderr=as_json)
    with demo_run(place, rounds, console, watched=keep) as result:
        summary = result.as_dict()
        console.print(
            f"\n[bold green]{summary['committed']} rounds committed[/], {summary['abandoned']} abandoned, in "
            f"{summary['seconds']:.0f} s: RMSE on unseen users {summary['rmse_first']:.4f} -> "
            f"[bold]{summary['rmse_last']:.4f}[/] (each user's own mean: {summary['rmse_user_mean']:.4f})"
        )
        console.print(
            f"The recommender is [bold]{result.recommender}[/]. Next:\n"
            f'  fedrecon recommend {result.recommender} --rate "TITLE=5"   recommendations for your own ratings\n'
            "  fedrecon up                                 a stack of your own; docs/quickstart-operator.md\n"
            "  docs/quickstart-app.md                      take part from an app\n"
            "  docs/quickstart-modeller.md                 train a model of your own"
        )
        if as_json:
            print_json(summary)
        if keep:
            link = console_link(result.stack)
            console.print(f"The console stays, signed in by {link} until Ctrl-C.", soft_wrap=True, highlight=False)
            look_after(result.stack, stop_on_signals(), console)
