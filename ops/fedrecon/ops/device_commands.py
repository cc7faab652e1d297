"""`fedrecon devices`: how devices fared, from what the journal tells of their sessions; never one device."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin
from fedrecon.ops.printing import print_json
from fedrecon.ops.task_commands import AsJson, Name, Server
from fedrecon.v1 import admin_pb2 as admin

devices = typer.Typer(help="See how devices fared.", no_args_is_help=True)

_OVER = (admin.ROUND_PHASE_COMMITTED, admin.ROUND_PHASE_ABANDONED)


@devices.callback()
def _devices() -> None:
    """See how devices fared."""


@devices.command()
def stats(
    name: Name,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="newest attempts to look at")] = 100,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Count how sessions ended, by outcome and by shape, and how many were assigned, reported and counted."""
    with open_admin(server) as stub:
        request = admin.ListRoundsRequest(task=name, limit=rounds)
        found = [each for each in stub.ListRounds(request, timeout=CALL_SECONDS).rounds if each.phase in _OVER]
    assigned, reported, counted = (
        sum(getattr(each, field) for each in found) for field in ("assigned", "reported", "counted")
    )
    outcomes, shapes = Counter[str](), Counter[str]()
    for each in found:
        outcomes.update(dict(each.outcomes))
        shapes.update(dict(each.shapes))
    silent = max(assigned - sum(outcomes.values()), 0)
    told = {
        "attempts": len(found),
        "waited": sum(each.waiting for each in found),
        "assigned": assigned,
        "reported": reported,
        "counted": counted,
        "silent": silent,
        "outcomes": dict(outcomes.most_common()),
        "shapes": dict(shapes.most_common()),
    }
    if as_json:
        print_json(told)
        return
    console = Console()
    console.print(
        f"{len(found)} attempts: {assigned} devices assigned of {told['waited']} that waited, {reported} reports, "
        f"{counted} of them in checkpoints; {silent} sessions never said how they ended"
    )
    for heading, counts in (("outcome", outcomes), ("shape", shapes)):
        table = Table(heading, "sessions", "share", box=SIMPLE_HEAD)
        for kind, number in counts.most_common():
            table.add_row(kind.lower() if heading == "outcome" else kind, str(number), f"{number / counts.total():.1%}")
        console.print(table)
