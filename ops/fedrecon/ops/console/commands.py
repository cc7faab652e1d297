"""`fedrecon console`: run the console, or get a link that signs in to the one of this machine."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated

import typer
from rich.console import Console

from fedrecon.ops.printing import print_json
from fedrecon.ops.settings import Settings, load_settings


def console(
    link: Annotated[
        bool, typer.Option("--link", help="print a link that signs in, once, to the console of the stack here")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the link as one JSON object")] = False,
) -> None:
    """Serve the web console of a deployment until SIGTERM, or print a link to the one of the stack here."""
    if not link:
        from fedrecon.ops.console.__main__ import start
        from fedrecon.ops.console.settings import ConsoleSettings
        from fedrecon.ops.lifecycle import run_service

        raise typer.Exit(run_service("console", start, ConsoleSettings, "console_port", []))
    from fedrecon.ops.mistakes import UserMistake
    from fedrecon.ops.stack import CONSOLE, read_stack_file

    settings = load_settings(Settings)
    running = read_stack_file(settings.home.absolute())
    address = "" if running is None else running["http"].get(CONSOLE, "")
    if not address:
        raise UserMistake(f"No console runs on {settings.home.absolute()}.", "Start a stack with `fedrecon up`.")
    made = sign_in_link(settings, address)
    if as_json:
        print_json({"link": made})
    else:
        Console(soft_wrap=True, highlight=False).print(made, markup=False)


def sign_in_link(settings: Settings, address: str) -> str:
    """Return a link that signs in, once, whoever opens it within a quarter of an hour.

    Args:
        settings: Of the local stack.
        address: Where its console answers.
    """
    from fedrecon.ops.clock import SystemClock
    from fedrecon.ops.console.links import make_code
    from fedrecon.ops.local_keys import with_keys

    scheme = "http" if settings.is_on_loopback or settings.tls == "off" else "https"
    keys = with_keys(settings, settings.home.absolute()).round_token_keys
    if keys is None:
        return f"{scheme}://{address}/sign-in"
    name = f"{getpass.getuser()}@{socket.gethostname()}"
    return f"{scheme}://{address}/sign-in#{make_code(keys.newest, name, SystemClock().now_milliseconds())}"
