"""Every command of the README does what a stranger is promised."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedrecon.ops.stack import read_stack_file

ROOT = Path(__file__).resolve().parent.parent.parent
LIVE = "fedrecon up"


def commands_of(page: str, section: str) -> list[str]:
    """The commands of a section's code blocks, in order."""
    text = (ROOT / page).read_text()
    part = text[text.index(f"## {section}") :].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def shell() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDRECON_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["COLUMNS"] = "200"
    return environment


def test_the_five_minutes_by_hand_end_with_recommendations(tmp_path: Path, shell: dict[str, str]) -> None:
    commands = [line for line in commands_of("README.md", "Five minutes by hand") if not line.startswith("source ")]
    assert LIVE in commands
    assert len(commands) >= 8
    stack: subprocess.Popen[bytes] | None = None
    printed = ""
    try:
        for command in commands:
            if command == LIVE:
                with (tmp_path / "up.log").open("w") as log:
                    stack = subprocess.Popen(command.split(), cwd=tmp_path, env=shell, stdout=log, stderr=log)
                wait_for_stack(tmp_path / ".fedrecon", stack)
                continue
            ended = subprocess.run(
                ["/bin/bash", "-c", command], cwd=tmp_path, env=shell, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
            printed += ended.stdout
    finally:
        if stack is not None:
            stack.send_signal(signal.SIGINT)
            assert stack.wait(30) == 0
    assert printed.count("committed") >= 5
    assert (tmp_path / "recommender.onnx").exists()
    assert not (tmp_path / ".fedrecon" / "stack.json").exists()


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
