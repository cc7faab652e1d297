"""`fedrecon conformance`: plays a server against a device SDK, and reports which rules of the protocol it keeps.

The device is any process that is told an address. With a command, it is started anew for each scene; without one, the
person starts it, as often as there are scenes. What it is told is one JSON file, its order: how its app would set it
up, and one user's examples.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.printing import print_json

if TYPE_CHECKING:
    from fedrecon.ops.conformance.running import Order, Verdict

ORDER, TARGET = "{order}", "{target}"
_EXIT_FAILED = 1


def conformance(
    target: Annotated[str, typer.Option(help="Where to listen for the device, host:port; port 0 takes a free one.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(help=f"Starts the device once, after `--`; {ORDER} and {TARGET} stand for file and address."),
    ] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Play only this scene; may be said again.")] = None,
    wait_seconds: Annotated[float, typer.Option(min=1, help="How long a device may take for one scene.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")] = False,
) -> None:
    """Play a server against a device SDK, and report which rules of the protocol it keeps."""
    import asyncio

    from fedrecon.ops.conformance.rules import SCENES
    from fedrecon.ops.conformance.running import judge_device

    console = Console(stderr=as_json)
    names = [each.name for each in SCENES]
    unknown = sorted(set(scene or ()) - set(names))
    if unknown:
        raise UserMistake(f"There is no scene {unknown[0]!r}.", f"The scenes are: {'; '.join(names)}.")
    chosen = [each for each in SCENES if not scene or each.name in scene]
    with tempfile.TemporaryDirectory(prefix="fedrecon-conformance-") as folder:
        device = _Device(Path(folder), command or [], wait_seconds, console)
        try:
            verdicts = asyncio.run(
                judge_device(
                    chosen, device.start, target, listening=lambda bound: console.print(f"Listening at {bound}.")
                )
            )
        except (OSError, RuntimeError) as error:
            raise UserMistake(
                f"{target} cannot be listened at: {error}.", "Name a free port of this machine."
            ) from error
    holds = all(verdict.holds for verdict in verdicts)
    if as_json:
        print_json({"holds": holds, "rules": [_as_dict(verdict) for verdict in verdicts]})
    else:
        _print_report(console, verdicts)
    if not holds:
        raise typer.Exit(_EXIT_FAILED)


class _Device:
    """A device under test, for all scenes."""

    def __init__(self, folder: Path, command: Sequence[str], wait_seconds: float, console: Console) -> None:
        self._folder = folder
        self._command = command
        self._wait_seconds = wait_seconds
        self._console = console
        self._scenes = 0

    def start(self, order: Order) -> None:
        """Lets the device take part once: as a process, or started by the person."""
        self._scenes += 1
        file = self._folder / f"order-{self._scenes}.json"
        file.write_text(json.dumps(asdict(order), indent=1))
        if self._command:
            self._run([word.replace(ORDER, str(file)).replace(TARGET, order.target) for word in self._command])
        else:
            self._ask(order, file)

    def _run(self, command: list[str]) -> None:
        from fedrecon.ops.conformance.running import DeviceFailedError

        try:
            ended = subprocess.run(command, timeout=self._wait_seconds, check=False, capture_output=True, text=True)
        except subprocess.TimeoutExpired as error:
            raise DeviceFailedError(f"the device did not end within {self._wait_seconds:.0f} s") from error
        except OSError as error:
            raise UserMistake(f"{command[0]} cannot be started: {error.strerror}.", "Check the command.") from error
        if ended.returncode:
            last = (ended.stderr.strip() or ended.stdout.strip() or "it printed nothing").splitlines()[-1]
            raise DeviceFailedError(f"the device ended with code {ended.returncode}: {last}")

    def _ask(self, order: Order, file: Path) -> None:
        """Asks the person to start the device, and waits until they say that it is done."""
        self._console.print(f"\n[bold]{self._scenes}. {order.scene}[/]: let the device take part once, as {file} says:")
        self._console.print_json(json.dumps(asdict(order)))
        done = threading.Event()
        threading.Thread(target=_read_line, args=(done,), daemon=True).start()
        self._console.print("Press Enter when it is done.")
        done.wait(self._wait_seconds)


def _read_line(done: threading.Event) -> None:
    sys.stdin.readline()
    done.set()


def _as_dict(verdict: Verdict) -> dict[str, object]:
    return {
        "rule": verdict.rule.name,
        "section": verdict.rule.section,
        "says": verdict.rule.says,
        "holds": verdict.holds,
        "scenes": len(verdict.scenes),
        "complaints": verdict.complaints,
        "advice": "" if verdict.holds else verdict.rule.advice,
    }


def _print_report(console: Console, verdicts: Sequence[Verdict]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "rule", "what a device does", "section of the protocol"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        mark = "[green]pass[/]" if verdict.holds else "[red]FAIL[/]"
        table.add_row(mark, verdict.rule.name, verdict.rule.says, verdict.rule.section)
    console.print(table)
    for verdict in verdicts:
        for scene, complaints in verdict.complaints.items():
            console.print(f"\n[red]{verdict.rule.name}[/], {scene}:")
            for complaint in complaints:
                console.print(f"  {complaint}", markup=False, highlight=False)
        if not verdict.holds:
            console.print(f"  -> {verdict.rule.advice}", markup=False, highlight=False)
    kept = sum(verdict.holds for verdict in verdicts)
    console.print(f"\n{kept} of {len(verdicts)} rules hold.")
