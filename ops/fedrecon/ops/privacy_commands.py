"""`fedrecon privacy`: what is truthfully claimed of a task's privacy, with all it rests on."""

from __future__ import annotations

import typer
from rich.console import Console

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Name, Server
from fedrecon.v1 import admin_pb2 as admin

privacy = typer.Typer(help="See what is claimed of a task's privacy.", no_args_is_help=True)


@privacy.callback()
def _group() -> None:
    """A group of verbs, even while it has one."""


@privacy.command()
def show(name: Name, server: Server = None, as_json: AsJson = False) -> None:
    """Tell the guarantee with all its assumptions, or that there is none and what is missing."""
    with open_admin(server) as stub:
        told = stub.GetPrivacy(admin.GetPrivacyRequest(task=name), timeout=CALL_SECONDS)
    if as_json:
        print_json(as_dict(told))
        return
    console = Console()
    console.print(f"{told.statement}.", highlight=False)
    for line in told.assumptions:
        console.print(f"- {line}", highlight=False)
