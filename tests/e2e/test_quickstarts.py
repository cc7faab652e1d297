"""What the quickstarts show runs as written: shell commands offline, and every block of Python.

The commands of the modeller's page make the plan and the recommender that the app's page uses. Commands that need a
stack are only asked whether they are understood: without a stack they say so. A whole stack is `test_readme.py`'s.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fedrecon.device_sdk import Outcome
from fedrecon.device_sdk.calling import Patience
from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates
from fedrecon.ops.command import main
from fedrecon.ops.task_specs import build_spec

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
NOT_RUN = {"fedrecon up", "pip install fedrecon-device"}
"""`test_readme.py` runs the first, `test_packaging.py` installs the wheel."""


NO_STACK = re.compile(
    r"No (stack|console) runs on|There are no logs in|There is no stack on|neither a folder nor a tar"
)


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page in one language; without one, those for a shell."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for written_in, text in fenced if written_in == language]


def commands(page: str) -> list[str]:
    found = [line for block in blocks(page) for line in block.splitlines() if line.strip()]
    assert found
    return [command for command in found if command not in NOT_RUN]


def needs_stack(command: str) -> bool:
    return bool(
        re.match(
            r"fedrecon (task|rounds|checkpoints|blobs|aggregators|fleet|devices|backup|restore|logs|console) "
            r"|fedrecon status|fedrecon export (?!--)",
            command,
        )
    )


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    printed: str
    complained: str


def run(command: str, folder: Path) -> Ended:
    """Runs a command line of `fedrecon` in this process: torch and ONNX Runtime are loaded once for all of them."""
    program, *arguments = shlex.split(command)
    assert program == "fedrecon", command
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDRECON_")}
    printed, complained = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, environment, clear=True),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(complained),
    ):
        code = main(arguments)
    return Ended(code, printed.getvalue(), complained.getvalue())


def execute(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "quickstart"}
    exec(compile(block, "quickstart", "exec"), names)  # noqa: S102 - the page's own code is what is tested
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a reader has typed the modeller's page from its start to its end."""
    folder = tmp_path_factory.mktemp("reader")
    (items,) = blocks("quickstart-modeller.md", "csv")
    (folder / "items.csv").write_text(items)
    for command in commands("quickstart-modeller.md"):
        if not needs_stack(command):
            ended = run(command, folder)
            assert ended.code == 0, f"{command}\n{ended.printed}\n{ended.complained}"
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_the_modellers_commands_make_a_plan_and_a_recommender(folder: Path) -> None:
    assert {"publisher.pem", "plan", "recommender.onnx", "recommender.items"} <= {
        each.name for each in folder.iterdir()
    }


def test_the_modellers_python_compiles_a_model_of_ones_own(here: Path) -> None:
    declaring, recommending = blocks("quickstart-modeller.md", "python")
    compiled = execute(declaring)["compiled"]
    assert compiled.path == Path("affine-plan")
    assert run("fedrecon plan verify affine-plan", here).code == 0
    execute(recommending)


def test_the_apps_python_recommends_offline(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here
    execute(blocks("quickstart-app.md", "python")[0])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3  # five films less the two that were rated
    assert not any(line.startswith(("Alien", "Heat")) for line in printed)


def test_the_apps_participation_says_that_nobody_answers(
    here: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedrecon.device_sdk.device.Patience", lambda: Patience(attempts=2, first_seconds=0.01))
    block = blocks("quickstart-app.md", "python")[1]
    assert "localhost:7001" in block
    keep_certificates(here / "certs", LOCAL_NAMES)  # the operator's page makes them
    names = execute(block.replace("localhost:7001", f"127.0.0.1:{closed_port}"))
    assert names["participation"].outcome is Outcome.UNREACHABLE
    assert [each.message for each in names["device"].receipt()] == ["CheckIn", "CheckIn"]
    assert "CheckIn" in capsys.readouterr().out
    in_background = blocks("quickstart-app.md", "python")[2]
    exec(compile(in_background, "quickstart", "exec"), names)  # noqa: S102 - the page's own code is what is tested
    assert names["turn"].outcome is Outcome.NOT_NOW
    names["examples"].close()


def test_the_apps_own_tests_and_what_it_shows_the_user_run() -> None:
    names = execute(blocks("quickstart-app.md", "python")[4])
    device = names["device"]
    for_the_user = blocks("quickstart-app.md", "python")[3].replace('"1"', '"film-1"')
    exec(compile(for_the_user, "quickstart", "exec"), names)  # noqa: S102 - the page's own code is what is tested
    assert device.is_opted_out
    assert (names["examples"].count(), device.history()) == (0, ())


def test_the_example_app_rates_recommends_takes_part_and_forgets(tmp_path: Path) -> None:
    typed = [
        "rate film-1 5",
        "rate film-2 1",
        "rate film-3",
        "recommend",
        "take-part",
        "take-part",
        "recommend 2",
        "history",
        "opt-out",
        "forget",
        "recommend",
        "quit",
    ]
    app = DOCS.parent / "device_sdk" / "examples" / "films.py"
    run = [sys.executable, str(app), "--demo", "--home", str(tmp_path)]
    ended = subprocess.run(run, input="\n".join(typed), capture_output=True, text=True, check=True)
    shown = ended.stdout.splitlines()
    assert shown[:2] == ["1 ratings", "2 ratings"]
    assert "take part once" in shown[3]
    assert shown[4] == "uploaded"
    assert shown[5].startswith("not now: it is to rest")
    assert [line.split()[-1] for line in shown[6:8]] == ["Film-0", "Film-3"]
    assert "uploaded: " in shown[8]
    assert shown[-2] == "forgotten"
    assert "take part once" in shown[-1]


@pytest.mark.parametrize("page", ["quickstart-operator.md", "quickstart-modeller.md"])
def test_commands_that_need_a_stack_say_that_there_is_none(page: str, folder: Path) -> None:
    asked = [command for command in commands(page) if needs_stack(command)]
    assert asked
    (folder / "films.toml").write_text(blocks("quickstart-operator.md", "toml")[0])
    for command in asked:
        ended = run(command, folder)
        assert NO_STACK.search(ended.complained), f"{command}\n{ended.printed}\n{ended.complained}"


def test_the_operators_other_commands_run(folder: Path) -> None:
    for command in commands("quickstart-operator.md"):
        if not needs_stack(command):
            ended = run(command, folder)
            assert ended.printed
            # A machine may have something to mend: then the doctor says so with exit code 1.
            assert ended.code in ({0, 1} if command == "fedrecon doctor" else {0}), ended.complained


def test_the_operators_task_file_is_a_whole_specification(tmp_path: Path) -> None:
    (text,) = blocks("quickstart-operator.md", "toml")
    (tmp_path / "films.toml").write_text(text)
    spec = build_spec("films", tmp_path / "films.toml", ["rounds.maximum_rounds=5"])
    assert (spec.rounds.report_goal, spec.rounds.minimum_reports, spec.rounds.minimum_cohort) == (100, 80, 130)
    assert spec.optimizer.rate == pytest.approx(0.1)


def test_the_readme_of_learning_compiles_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("../learning/README.md", "python")
    assert execute(block)["compiled"].largest_difference < 1e-5


def test_the_readme_of_the_device_recommends(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix, source in ((".onnx", "recommender.onnx"), (".items", "recommender.items")):
        (here / "films").with_suffix(suffix).write_bytes((here / source).read_bytes())
    execute(blocks("../device_sdk/README.md", "python")[0])
    assert "('1193', '661', '914')" in capsys.readouterr().out  # films that this plan does not know
