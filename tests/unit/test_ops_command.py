"""The `fedrecon` command as a person types it, with rooms that are there and rooms that are not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from fedrecon.ops import command
from fedrecon.ops.boundary import ERROR_METADATA
from fedrecon.ops.command import UserMistake, main
from fedrecon.v1.common_pb2 import ErrorInfo

loaded: list[str] = []
films = typer.Typer(help="About films.", no_args_is_help=True)


class RefusedError(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> Any:
        explained = ErrorInfo(reason="UNKNOWN_TASK", message="There is no task films.", advice="List them.")
        return ((ERROR_METADATA, explained.SerializeToString()),)


class UnreachableError(RefusedError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def trailing_metadata(self) -> Any:
        return ()


@films.command("show")
def show_film(title: str) -> None:
    """Show one film."""
    match title:
        case "mistake":
            raise UserMistake("There is no film 'mistake'.", "`fedrecon films list` shows all [of them].")
        case "refused":
            raise RefusedError
        case "unreachable":
            raise UnreachableError
        case "failed":
            raise typer.Exit(1)
        case "needs":
            raise ModuleNotFoundError("No module named 'curtain'", name="curtain.rods")
        case "bug":
            raise ModuleNotFoundError("No module named 'fedrecon.rods'", name="fedrecon.rods")
    typer.echo(f"film {title}")


@films.command("list")
def list_films() -> None:
    """List all films."""


def greet(name: str = "you") -> None:
    """Greet somebody."""
    typer.echo(f"hello {name}")


class Recorded(EntryPoint):
    def load(self) -> Any:
        loaded.append(self.name)
        match self.name:
            case "films":
                return films
            case "greet":
                return greet
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


@pytest.fixture(autouse=True)
def rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.clear()
    points = [
        Recorded("films", "fedrecon.datasets.no_commands:films", "fedrecon.commands"),
        Recorded("greet", "fedrecon.learning.no_commands:greet", "fedrecon.commands"),
        Recorded("plan", "fedrecon.learning.no_commands:plan", "fedrecon.commands"),
    ]
    monkeypatch.setattr(command, "entry_points", lambda group: points if group == "fedrecon.commands" else [])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def test_alone_it_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for text in ("settings", "doctor", "films", "About films.", "greet", "Greet somebody.", "plan"):
        assert text in shown
    assert "pip install 'fedrecon[learning]'" in shown


SOURCE = """
import typer
import curtain

stage = typer.Typer(name="stage", help="About [the] stage.", no_args_is_help=True)
broken = stage.nothing

def play(name: str) -> None:
    \"\"\"Play a piece.

    More about it.
    \"\"\"
"""


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *points: EntryPoint) -> None:
    (tmp_path / "theatre_room.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "entry_points", lambda group: points if group == "fedrecon.commands" else [])


def test_the_list_is_read_without_loading_rooms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [EntryPoint(name, f"theatre_room:{name}", "fedrecon.commands") for name in ("stage", "play")]
    install(monkeypatch, tmp_path, *points)
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "Play a piece." in shown
    assert "About" in shown
    assert "theatre_room" not in sys.modules
    assert main(["play"]) == 2
    assert "curtain" in capsys.readouterr().err


def test_a_broken_room_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("ruin", "fedrecon.ops.no_such_module:ruin", "fedrecon.commands")
    install(
        monkeypatch, tmp_path, broken, Recorded("greet", "fedrecon.learning.no_commands:greet", "fedrecon.commands")
    )
    assert main([]) == 0
    assert "Cannot be loaded: No module named 'fedrecon.ops.no_such_module'" in capsys.readouterr().out
    assert main(["greet"]) == 0
    with pytest.raises(ModuleNotFoundError):
        main(["ruin"])


def test_an_extra_that_is_not_installed_shows_in_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_PROOF_OF_EXTRA", {"learning": "no_such_library"})
    assert main([]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "greet" in line]
    assert "Not installed: pip install 'fedrecon[learning]'" in line


def test_help_is_the_same_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.split() == alone.split()


def test_only_the_verb_asked_for_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show", "Heat"]) == 0
    assert capsys.readouterr().out == "film Heat\n"
    assert loaded == ["films"]


def test_a_function_is_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["greet", "--name", "Ada"]) == 0
    assert capsys.readouterr().out == "hello Ada\n"


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "compile", "--out", "x"], ["plan", "--help"]])
def test_a_room_that_is_not_installed_says_what_to_install(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "torch" in shown
    assert "pip install 'fedrecon[learning]'" in shown
    assert "Traceback" not in shown


def test_a_library_that_is_missed_in_the_middle_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show", "needs"]) == 2
    assert "curtain" in capsys.readouterr().err


def test_a_missing_module_of_ours_is_a_fault_and_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"fedrecon\.rods"):
        main(["films", "show", "bug"])


def test_a_mistake_is_shown_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show", "mistake"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "There is no film 'mistake'.\n  `fedrecon films list` shows all [of them].\n"
    assert not shown.out


def test_wrong_arguments_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show"]) == 2
    assert main(["no-such-verb"]) == 2
    assert "no-such-verb" in capsys.readouterr().err


def test_failed_work_ends_with_1() -> None:
    assert main(["films", "show", "failed"]) == 1


def test_a_refusal_is_shown_with_its_reason_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show", "refused"]) == 3
    assert capsys.readouterr().err == "There is no task films. (UNKNOWN_TASK)\n  List them.\n"


def test_an_unreachable_service_is_shown_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["films", "show", "unreachable"]) == 3
    shown = capsys.readouterr().err
    assert "UNAVAILABLE" in shown
    assert "fedrecon doctor" in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedrecon {version('fedrecon')}\n"


def test_completion_knows_the_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_FEDRECON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fedrecon fi")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert capsys.readouterr().out.split() == ["films"]


def test_settings_are_shown_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FEDRECON_SEAL_KEY", "ab" * 32)
    monkeypatch.setenv("FEDRECON_DRAIN_SECONDS", "3")
    assert main(["settings", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["FEDRECON_DRAIN_SECONDS"] == 3
    assert shown["FEDRECON_SEAL_KEY"] == "********"


def test_wrong_settings_are_listed_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDRECON_DRAIN_SECONDS", "soon")
    assert main(["settings"]) == 2
    shown = capsys.readouterr()
    assert "FEDRECON_REDIS_URL" in shown.out
    assert "FEDRECON_DRAIN_SECONDS is 'soon'" in shown.err


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from fedrecon.ops.command import main; main(['--help']);"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'pydantic', 'matplotlib'} & set(sys.modules);"
        "print(); print('loaded:', *sorted(heavy))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.splitlines()[-1].strip() == "loaded:"
