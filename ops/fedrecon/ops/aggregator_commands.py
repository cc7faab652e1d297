"""`fedrecon aggregators`: list them, and drain one before it is stopped."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Reason, Server
from fedrecon.v1 import admin_pb2 as admin

aggregators = typer.Typer(help="See aggregators, and drain one before it is stopped.", no_args_is_help=True)

Target = Annotated[str, typer.Argument(help="the aggregator, as `fedrecon aggregators list` names it")]


@aggregators.command("list")
def list_aggregators(server: Server = None, as_json: AsJson = False) -> None:
    """List the aggregators, and how many sum groups are at work at each."""
    with open_admin(server) as stub:
        found = stub.ListAggregators(admin.ListAggregatorsRequest(), timeout=CALL_SECONDS)
    if as_json:
        print_json(as_dict(found))
        return
    table = Table(box=SIMPLE_HEAD)
    for heading in ("aggregator", "groups at work", "state"):
        table.add_column(heading, overflow="fold")
    for each in found.aggregators:
        table.add_row(each.target, str(each.open_groups) if each.answers else "", _state_of(each))
    Console().print(table)


@aggregators.command()
def drain(target: Target, reason: Reason = "", server: Server = None, as_json: AsJson = False) -> None:
    """Give an aggregator no new groups; those it has end there. It can be stopped when it is empty."""
    with open_admin(server) as stub:
        request = admin.DrainAggregatorRequest(target=target, reason=reason)
        found = stub.DrainAggregator(request, timeout=CALL_SECONDS).aggregator
    _show(found, as_json=as_json)


@aggregators.command()
def undrain(target: Target, server: Server = None, as_json: AsJson = False) -> None:
    """Give an aggregator groups again."""
    with open_admin(server) as stub:
        request = admin.UndrainAggregatorRequest(target=target)
        found = stub.UndrainAggregator(request, timeout=CALL_SECONDS).aggregator
    _show(found, as_json=as_json)


def _show(found: admin.AggregatorState, *, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(found))
    else:
        typer.echo(f"{found.target}: {_state_of(found)}")


def _state_of(found: admin.AggregatorState) -> str:
    if not found.answers:
        return "drained; does not answer" if found.drained else "does not answer"
    if not found.drained:
        return "takes groups"
    return (
        f"drained; {found.open_groups} groups at work" if found.open_groups else "drained and empty: it can be stopped"
    )
