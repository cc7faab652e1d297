"""`fedrecon checkpoints`: list a task's checkpoints, and make an older one live again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Limit, Name, Reason, Server
from fedrecon.v1 import admin_pb2 as admin

checkpoints = typer.Typer(help="See checkpoints, and roll back to one.", no_args_is_help=True)


@checkpoints.command(name="list")
def list_checkpoints(
    name: Name,
    limit: Limit = 20,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List the newest checkpoints of a task; the live one is marked."""
    with open_admin(server) as stub:
        request = admin.ListCheckpointsRequest(task=name, limit=limit)
        found = stub.ListCheckpoints(request, timeout=CALL_SECONDS).checkpoints
    if as_json:
        print_json({"checkpoints": [as_dict(each) for each in found]})
        return
    table = Table("round", "", "committed", "bytes", "digest", box=SIMPLE_HEAD)
    for each in reversed(found):
        moment = datetime.fromtimestamp(each.committed_unix_milliseconds / 1000, UTC)
        live = "[green]live[/]" if each.live else ""
        when = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        table.add_row(str(each.round), live, when, f"{each.blob.size:,}", each.blob.digest.hex()[:16])
    Console().print(table)


@checkpoints.command()
def rollback(
    name: Name,
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=0, help="round that made it; 0: the plan's own")],
    reason: Reason = "",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make an older checkpoint, with its optimizer state, the live one; a round under way is given up."""
    with open_admin(server) as stub:
        request = admin.RollBackRequest(task=name, round=round_number, reason=reason)
        task = stub.RollBack(request, timeout=CALL_SECONDS).task
    if as_json:
        print_json(as_dict(task))
        return
    live = task.checkpoint.digest.hex()[:16]
    Console().print(f"Live is the checkpoint of round {round_number} again: {live}. The next round starts from it.")
