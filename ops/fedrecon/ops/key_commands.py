"""`fedrecon keys`: the keys of a deployment, as files, and those of a stack on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

keys = typer.Typer(help="Make and replace keys.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Make and replace keys."""


@keys.command()
def new(
    folder: Annotated[Path, typer.Option("--out", help="folder of the files")] = Path("secrets"),
) -> None:
    """Make the keys of a deployment, one file each, for FEDRECON_SECRETS_FOLDER; run again, it keeps them."""
    from fedrecon.ops.local_keys import write_key_files

    made = write_key_files(folder)
    console = Console(soft_wrap=True, highlight=False)
    for path in made:
        console.print(f"made {path}", markup=False)
    if not made:
        console.print(f"{folder} has all keys: they stay as they are", markup=False)
    console.print(
        "All services need the same files. Keep a copy: without FEDRECON_SEAL_KEY sealed sums cannot be read.",
        markup=False,
    )


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
