"""Every command of the README does what a stranger is promised."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops.stack import read_stack_file

ROOT = Path(__file__).resolve().parent.parent.parent
LIVE = "fedrecon up"


def commands_of(page: str, section: str) -> list[str]:
    """The commands of a section's code blocks, in order."""
    text = (ROOT / page).read_text()
    part = text[text.index(f"## {section}") :].split("\n## ")[0]
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def shell() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDRECON_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["COLUMNS"] = "200"
    return environment


def test_the_five_minutes_by_hand_end_with_recommendations(tmp_path: Path, shell: dict[str, str]) -> None:
    commands = commands_of("README.md", "Five minutes by hand")
    assert len(commands) >= 8
    printed = run_all(commands, tmp_path, shell)
    assert printed.count("committed") >= 5
    assert (tmp_path / "recommender.onnx").exists()
    (link,) = re.findall(r"http://\S+/sign-in#\S+", (tmp_path / "up.log").read_text())
    assert link, "whoever starts a stack is told where its console is"


@pytest.mark.slow
def test_a_newcomer_comes_from_a_clone_to_a_failed_round_explained(tmp_path: Path, shell: dict[str, str]) -> None:
    seen: list[Any] = []

    def look(command: str, told: str) -> None:
        if command == "fedrecon console --link":
            seen.extend(look_at_console(told.strip()))

    section = "From a fresh clone to a failed round explained"
    printed = run_all(commands_of("docs/quickstart-operator.md", section), tmp_path, shell, look)
    assert "nothing to look into" in printed
    assert "It paused itself" in printed
    assert "something is wrong" in printed
    assert re.search(r"Abandoned because .* with \d+ of at least 20 reports", printed), printed
    assert {each["name"]: (each["state"], each["committed"]) for each in seen[0]["tasks"]} == {
        "films": ("completed", 3),
        "night": ("completed", 1),
    }
    assert [each["phase"] for each in seen[1]["attempts"]] == ["abandoned", "abandoned", "committed"]


def look_at_console(link: str) -> list[Any]:
    """What the console of a stack shows to somebody who opens a link: all tasks, and the round that failed."""
    address, _, code = link.partition("/sign-in#")
    jar = urllib.request.HTTPCookieProcessor()
    browser = urllib.request.build_opener(jar)
    body = json.dumps({"code": code}).encode()
    browser.open(
        urllib.request.Request(f"{address}/api/sign-in", body, {"content-type": "application/json"}),  # noqa: S310 - http
        timeout=30,
    )
    paths = ("/api/tasks", "/api/tasks/night/rounds/1")
    return [json.loads(browser.open(address + path, timeout=30).read()) for path in paths]


def run_all(
    commands: list[str], folder: Path, shell: dict[str, str], look: Callable[[str, str], None] = lambda *_: None
) -> str:
    """Runs commands one after the other, the stack beside the others; returns what they printed."""
    assert LIVE in commands
    stack: subprocess.Popen[bytes] | None = None
    printed = ""
    try:
        for command in commands:
            if command.startswith("source "):
                continue
            if command == LIVE:
                with (folder / "up.log").open("w") as log:
                    stack = subprocess.Popen(command.split(), cwd=folder, env=shell, stdout=log, stderr=log)
                wait_for_stack(folder / ".fedrecon", stack)
                continue
            ended = subprocess.run(
                ["/bin/bash", "-c", command], cwd=folder, env=shell, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
            printed += ended.stdout
            look(command, ended.stdout)
    finally:
        if stack is not None:
            stack.send_signal(signal.SIGINT)
            assert stack.wait(30) == 0
    assert not (folder / ".fedrecon" / "stack.json").exists()
    return printed


def wait_for_stack(home: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while read_stack_file(home) is None:
        assert process.poll() is None, "the stack ended"
        assert time.monotonic() < deadline, f"no stack on {home}"
        time.sleep(0.1)


def test_make_without_a_verb_lists_the_verbs_of_the_readme() -> None:
    printed = subprocess.run(
        ["/usr/bin/env", "make", "-C", str(ROOT)], check=True, capture_output=True, text=True
    ).stdout
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named
    for verb in named:
        assert f"make {verb}" in printed
