"""A stack that was killed leaves nothing behind that the next one does not find and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops import stack
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import ROLES, STACK_FILE, Role, Stack, read_stack_file, started_of

STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a service, and does not end when it is asked to."""
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, "fedrecon"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def _file(folder: Path, pid: int, started: float | None, **processes: dict[str, Any]) -> Path:
    path = folder / STACK_FILE
    path.write_text(json.dumps({"pid": pid, "started": started, "processes": processes}))
    return path


@pytest.mark.parametrize(
    "pid", [2**22 - 1, os.getpid()], ids=["a number that nobody has", "a number that is used again"]
)
def test_a_left_over_service_is_stopped_even_if_it_does_not_want_to(
    tmp_path: Path, stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, pid: int
) -> None:
    monkeypatch.setattr(stack, "_STOP_SECONDS", 0.1)
    path = _file(tmp_path, pid, 1.0, aggregator={"pid": stubborn.pid, "started": started_of(stubborn.pid)})
    stack._stop_leftovers(path)
    assert stubborn.poll() is not None
    assert not path.exists()


def test_a_process_that_only_has_a_services_number_is_left_alone(
    tmp_path: Path, stubborn: subprocess.Popen[bytes]
) -> None:
    path = _file(tmp_path, 2**22 - 1, None, aggregator={"pid": stubborn.pid, "started": 1.0})
    stack._stop_leftovers(path)
    assert stubborn.poll() is None
    assert not path.exists()


def test_a_service_is_written_down_before_it_is_ready(
    tmp_path: Path, stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = Stack(Settings(home=tmp_path))
    (tmp_path / "logs").mkdir()
    written: list[dict[str, Any]] = []

    def wait(self: Stack, role: Role, ready_file: Path) -> dict[str, str]:
        del role, ready_file
        written.append(json.loads((self.home / STACK_FILE).read_text()))
        assert read_stack_file(self.home) is None, "nobody is sent to services that are just starting"
        return {"address": "127.0.0.1:1", "metrics_address": ""}

    monkeypatch.setattr(Stack, "_wait_until_ready", wait)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: stubborn)
    for name in ROLES:
        starting._start_role(starting.roles[name])
    assert [set(each["processes"]) for each in written] == [set(ROLES[: count + 1]) for count in range(len(ROLES))]
