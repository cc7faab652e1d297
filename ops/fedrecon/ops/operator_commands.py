"""`fedrecon operators`: tokens by which people and tools are known to the Admin service."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

import typer
from rich.console import Console

from fedrecon.ops.printing import print_json

_TOKEN_BYTES = 32

operators = typer.Typer(help="Make tokens of operators.", no_args_is_help=True)


@operators.callback()
def _operators() -> None:
    """Make tokens of operators."""


@operators.command()
def new(
    name: Annotated[str, typer.Argument(help="who it is for, as the audit log will say")],
    role: Annotated[
        Literal["viewer", "operator", "admin"], typer.Option("--role", help="looks; runs tasks; ends them, too")
    ] = "viewer",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Make a token. It is shown once; services are told only its SHA-256."""
    from fedrecon.ops.mistakes import UserMistake
    from fedrecon.ops.operators import digest_of_token, read_operators

    token = secrets.token_urlsafe(_TOKEN_BYTES)
    entry = f"{name}:{role}:{digest_of_token(token)}"
    try:
        read_operators(entry)
    except ValueError as error:
        raise UserMistake(
            f"{name!r} cannot be an operator's name.", "Use up to 64 letters, digits and any of . _ @ -"
        ) from error
    if as_json:
        print_json({"FEDRECON_OPERATOR_TOKEN": token, "FEDRECON_OPERATORS": entry})
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"For {name} alone, shown once:\n  FEDRECON_OPERATOR_TOKEN={token}", markup=False)
    console.print(f"For the coordinators, beside others with commas:\n  FEDRECON_OPERATORS={entry}", markup=False)
