"""`fedrecon up`: the whole stack on this machine, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedrecon.ops.console.commands import sign_in_link
from fedrecon.ops.embedded_valkey import ValkeyError
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.printing import print_json
from fedrecon.ops.settings import Settings, load_settings
from fedrecon.ops.stack import CONSOLE, Stack

_LOOK_SECONDS = 0.2


def up(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object when everything is ready")] = False,
) -> None:
    """Start Valkey, aggregator, coordinator, inference and console here, and start again what dies, until Ctrl-C."""
    stopping = stop_on_signals()
    console = Console(stderr=as_json)
    stack = Stack.with_console(load_settings(Settings))
    with console.status("starting the stack"):
        try:
            stack.start()
        except ValkeyError as error:
            raise UserMistake(str(error)) from error
    try:
        if as_json:
            print_json({**addresses_of(stack), "console_link": console_link(stack)})
        else:
            console.print(_table(stack))
            console.print(
                f"The console, signed in (once, for a quarter of an hour): {console_link(stack)}", soft_wrap=True
            )
            console.print("Ctrl-C stops everything. Next: [bold]fedrecon task create[/], [bold]fedrecon fleet[/].")
        look_after(stack, stopping, console)
    finally:
        with console.status("stopping the stack"):
            stack.stop()


def look_after(stack: Stack, stopping: threading.Event, console: Console) -> None:
    """Start again what dies, and say so, until told to stop."""
    told = ""
    while not stopping.wait(_LOOK_SECONDS):
        try:
            for name in stack.mend():
                console.print(f"[yellow]{name} had died and was started again[/]")
                told = ""
        except (OSError, ValkeyError) as error:  # somebody frees space, and all goes on
            if str(error) != told:
                told = str(error)
                console.print(f"{told}; it is tried again until it works", style="red", markup=False)


def stop_on_signals() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; a second Ctrl-C interrupts at once."""
    stopping = threading.Event()

    def stop(number: int, _: object) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping


def addresses_of(stack: Stack) -> dict[str, str]:
    """Return where each service answers, by name."""
    return {role.name: role.address for role in stack.roles.values()}


def console_link(stack: Stack) -> str:
    """Return a link that signs in to the console of a stack that has one."""
    return sign_in_link(stack.settings, stack.roles[CONSOLE].http_address)


def _table(stack: Stack) -> Table:
    table = Table(title=f"fedrecon on {stack.home}", box=SIMPLE_HEAD)
    for heading in ("service", "address", "metrics"):
        table.add_column(heading, overflow="fold")
    if stack.valkey is not None:
        table.add_row("valkey", stack.valkey.url, "")
    for role in stack.roles.values():
        table.add_row(role.name, role.address, f"http://{role.metrics_address}/metrics" if role.metrics_address else "")
        if role.http_address:
            is_plain = stack.settings.tls_certificate is None or (
                role.name == CONSOLE and stack.settings.is_on_loopback  # its pages stay on this machine
            )
            scheme = "http" if is_plain else "https"
            table.add_row(f"{role.name}, HTTP", f"{scheme}://{role.http_address}", "")
    return table
