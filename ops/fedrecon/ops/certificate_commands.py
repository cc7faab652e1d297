"""`fedrecon certs`: an authority of one's own, and certificates of services, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedrecon.ops.printing import print_json


def certs(
    folder: Annotated[Path, typer.Option("--out", help="folder of the files")] = Path("certs"),
    names: Annotated[
        list[str] | None, typer.Option("--name", help="host or address of the services, again for more")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Make a certificate authority and a certificate for services; run again, it keeps the authority and renews."""
    from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates

    files = keep_certificates(folder, names or LOCAL_NAMES)
    variables = {
        "FEDRECON_TLS_CERTIFICATE": str(files.certificate.absolute()),
        "FEDRECON_TLS_KEY": str(files.key.absolute()),
        "FEDRECON_TLS_SERVER_AUTHORITY": str(files.authority.absolute()),
    }
    if as_json:
        print_json(variables)
        return
    console = Console(soft_wrap=True, highlight=False)
    for variable, value in variables.items():
        console.print(f"{variable}={value}", markup=False)
    console.print(
        f"Services take these settings; apps trust {files.authority} (`authority=`). Keep {folder / 'authority.key'} "
        "offline: who has it can pretend to be a service.",
        markup=False,
    )
