"""`fedrecon blobs`: see and remove what nothing needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrecon.ops.admin_client import BULK_SECONDS, open_admin
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Server
from fedrecon.v1 import admin_pb2 as admin

_EXIT_BLOCKED = 1

blobs = typer.Typer(help="See and remove blobs that nothing needs any more.", no_args_is_help=True)


@blobs.callback()
def _blobs() -> None:
    """See and remove blobs that nothing needs any more."""


@blobs.command()
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="remove nothing, only tell what would go")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Remove blobs that no task names and that are old enough; coordinators do this once an hour by themselves."""
    with open_admin(server) as stub:
        found = stub.CollectBlobs(admin.CollectBlobsRequest(dry_run=dry_run), timeout=BULK_SECONDS)
    if as_json:
        print_json(as_dict(found))
    else:
        typer.echo(_told(found, dry_run=dry_run))
    if found.blocked:
        raise typer.Exit(_EXIT_BLOCKED)


def _told(found: admin.CollectBlobsResponse, *, dry_run: bool) -> str:
    if found.blocked:
        return f"Nothing was removed: {found.blocked}."
    return (
        f"{'Would remove' if dry_run else 'Removed'} {found.removed:,} blobs ({found.removed_bytes:,} bytes); "
        f"{found.needed:,} are needed ({found.needed_bytes:,} bytes), {found.young:,} are too young to go "
        f"({found.young_bytes:,} bytes)."
    )
