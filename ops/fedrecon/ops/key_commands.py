"""`fedrecon keys`: the keys of a stack on this machine."""

from __future__ import annotations

import typer
from rich.console import Console

keys = typer.Typer(help="Replace the keys of a stack on this machine.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Replace the keys of a stack on this machine."""


@keys.command()
def rotate() -> None:
    """Make a new key of tokens and proofs; what the one before made stays good. Start `fedrecon up` again to use it."""
    from fedrecon.ops.local_keys import rotate_keys
    from fedrecon.ops.settings import Settings, load_settings

    home = load_settings(Settings).home.absolute()
    rotate_keys(home)
    Console(soft_wrap=True).print(
        f"{home / 'keys.json'} has a new key. Start `fedrecon up` again to use it: rounds under way go on.",
        markup=False,
    )
