"""The `fedrecon` command: what a person types.

Verbs of rooms come by the entry point group `fedrecon.commands` (name -> typer application or function). Only the verb
that was asked for is loaded: the list of verbs is read from the rooms' source, so that it comes at once, whatever they
import. A room whose extra is not installed is listed with what to install.

Exit codes: 0 done; 1 the work failed; 2 the person's mistake (arguments, settings); 3 a service cannot be reached or
has refused.

Rule: this module needs typer and rich alone, and every command imports what is heavy inside itself.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.mistakes import Unreachable, UserMistake

if TYPE_CHECKING:
    import grpc

__all__ = ["EXIT_FAILED", "EXIT_MISTAKE", "EXIT_UNREACHABLE", "UserMistake", "build_app", "main"]

ENTRY_POINT_GROUP = "fedrecon.commands"

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_UNREACHABLE = 3

_COMPLETION_VARIABLE = "_FEDRECON_COMPLETE"

_PROOF_OF_EXTRA = {"ops": "pydantic_settings", "inference": "onnx", "learning": "torch"}
"""A library that comes with a room's extra and with no other: where it is, the extra is installed."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in given if not word.startswith("-")), None)
    if _COMPLETION_VARIABLE in os.environ:
        verb = _completed_verb()
    try:
        with _explained(verb):
            build_app(verb)(args=given, prog_name="fedrecon", complete_var=_COMPLETION_VARIABLE)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        _say(str(ending.code))
        return EXIT_FAILED
    return 0


def _completed_verb() -> str | None:
    """The verb of the line that a shell completes: bash tells its words so, other shells so."""
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return next((word for word in words.split()[1:] if not word.startswith("-")), None)


def build_app(verb: str | None = None) -> typer.Typer:
    """Put the command together.

    Args:
        verb: The only verb of a room to load; all of them if it is None or no verb.

    Returns:
        The application.
    """
    app = typer.Typer(
        help="Train and serve models of which a part never leaves the device.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    app.command("settings")(_show_settings)
    app.command("doctor")(_doctor)
    points = _points()
    for name, point in points.items():
        if name == verb:
            _add(app, point)
        elif verb not in points:
            _list(app, point)
    return app


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name)}


def _list(app: typer.Typer, point: EntryPoint) -> None:
    """Show a verb that is not going to run."""
    room = _room_of(point)
    proof = _PROOF_OF_EXTRA.get(room)
    if proof is not None and find_spec(proof) is None:
        _add_unusable(app, point, _not_installed(point.name, proof))
        return
    summary = _summary_of(point)
    if summary is None:
        _add(app, point)
    else:
        app.command(point.name, help=summary)(_not_run)


def _not_run() -> None:
    raise AssertionError("a verb that runs is loaded")


def _summary_of(point: EntryPoint) -> str | None:
    """The help of a typer application or function, from its source: loading all rooms takes seconds.

    Returns:
        The text; None where the source is not here or says it in another way.
    """
    try:
        source = find_spec(point.module)
        tree = ast.parse(Path(source.origin or "").read_bytes()) if source else ast.Module([], [])
    except (ImportError, OSError):
        return None
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) if name == point.attr:
                return ast.get_docstring(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(keywords=keywords)) if name == point.attr:
                for keyword in keywords:
                    if keyword.arg == "help" and isinstance(keyword.value, ast.Constant):
                        return str(keyword.value.value)
    return None


def _add(app: typer.Typer, point: EntryPoint) -> None:
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        missing = error if _is_ours(error) else _not_installed(point.name, error.name)
        _add_unusable(app, point, missing)
        return
    except (ImportError, AttributeError) as error:  # one broken room does not take the others with it
        _add_unusable(app, point, error)
        return
    if isinstance(loaded, typer.Typer):
        app.add_typer(loaded, name=point.name)
    else:
        app.command(point.name)(loaded)


def _add_unusable(app: typer.Typer, point: EntryPoint, reason: Exception) -> None:
    """List a verb that cannot be loaded: it says why, and raises the reason when it is asked for."""
    from rich.markup import escape

    def unusable() -> None:
        raise reason

    said = f"Not installed: {reason.advice}" if isinstance(reason, UserMistake) else f"Cannot be loaded: {reason}"
    app.command(
        point.name,
        help=escape(said),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(unusable)


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] == "fedrecon"


def _room_of(point: EntryPoint) -> str:
    return point.module.removeprefix("fedrecon.").partition(".")[0]


def _not_installed(verb: str | None, library: str | None) -> UserMistake:
    """What to install for a verb: the extra of its room is called like the room."""
    point = _points().get(verb or "")
    room = _room_of(point) if point else "ops"
    extras = metadata("fedrecon").get_all("Provides-Extra") or []
    extra = room if room in extras else "all"
    return UserMistake(
        f"`fedrecon {verb}` needs {library}, which is not installed.", f"pip install 'fedrecon[{extra}]'"
    )


@contextmanager
def _explained(verb: str | None) -> Iterator[None]:
    """Turn what a command raises into text and an exit code; faults of the program keep their traceback."""
    try:
        yield
    except UserMistake as mistake:
        _say(mistake.message, mistake.advice)
        raise SystemExit(EXIT_UNREACHABLE if isinstance(mistake, Unreachable) else EXIT_MISTAKE) from None
    except StorageFull as error:
        _say(f"The disk is full: {error.strerror} ({error.filename}).", "Free space, then try again.")
        raise SystemExit(EXIT_FAILED) from None
    except ModuleNotFoundError as error:
        if _is_ours(error):
            raise
        needed = _not_installed(verb, error.name)
        _say(needed.message, needed.advice)
        raise SystemExit(EXIT_MISTAKE) from None
    except Exception as error:
        if "grpc" not in sys.modules or not isinstance(error, sys.modules["grpc"].RpcError):
            raise
        _say(*_explain_call(error))
        raise SystemExit(EXIT_UNREACHABLE) from None


def _explain_call(error: grpc.RpcError) -> tuple[str, str]:
    from fedrecon.ops.boundary import refusal_of

    explained = refusal_of(error)
    if explained is not None:
        return f"{explained.message} ({explained.reason})", explained.advice
    call: Any = error
    return (
        f"The service did not answer: {call.code().name}, {call.details()}",
        "See that it runs and that its address is right; `fedrecon doctor` checks this machine.",
    )


def _say(message: str, advice: str = "") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(message, style="red"))
    if advice:
        console.print(Text(f"  {advice}"))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedrecon {version('fedrecon')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Train and serve models of which a part never leaves the device."""
    del show_version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _show_settings(as_json: AsJson = False) -> None:
    """Show every setting: its variable, value and meaning; secrets are masked."""
    from rich.console import Console
    from rich.table import Table

    from fedrecon.ops.settings import Settings, read_settings, room_settings, settings_json
    from fedrecon.ops.settings import settings_table as rows_of

    problems: dict[str, None] = {}
    rows: dict[str, tuple[str, str, str, str]] = {}
    values: dict[str, object] = {}
    everyone: tuple[type[Settings], ...] = (Settings, *room_settings()[0].values())
    for one in everyone:
        settings, wrong = read_settings(one)
        problems.update(dict.fromkeys(wrong))
        rows = {row[0]: row for row in rows_of(settings)} | rows
        values = settings_json(settings) | values
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("Variable", "Value", "Origin", "Meaning"):
            table.add_column(heading, overflow="fold")
        for variable, value, origin, meaning in rows.values():
            table.add_row(variable, value, origin, meaning)
        Console(markup=False, highlight=False).print(table)
    if problems:
        raise UserMistake("\n".join(problems), "The defaults are shown in their place.")


def _doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, settings, ports, storage, limits; exit code 1 if anything is wrong."""
    from fedrecon.ops.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=as_json)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
