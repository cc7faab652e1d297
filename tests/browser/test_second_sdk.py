"""A second device SDK, written from the protocol's page in another language, keeps every rule of the protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fedrecon.ops.command import main

WEB = Path(__file__).resolve().parents[2] / "device_sdk" / "web"
FEW_SCENES = ("a report", "a masked report", "a device that must enrol", "a fetch breaks")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def command() -> list[str]:
    """Starts the participant."""
    node = shutil.which("node")
    if node is None or not (WEB / "node_modules" / ".installed").exists():
        pytest.skip("there is no node, or its packages are not installed: make web")
    built = WEB / "node_modules" / ".participant" / "participant.mjs"  # beside the packages that it needs
    subprocess.run([node, "tests/participant/build.mjs", str(built)], cwd=WEB, check=True)
    return [node, str(built), "{order}"]


def complaints(
    capsys: pytest.CaptureFixture[str], command: list[str], *options: str
) -> dict[str, dict[str, list[str]]]:
    main(["conformance", "--target", "127.0.0.1:0", "--json", *options, "--", *command])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["rules"]) > 10
    return {rule["rule"]: rule["complaints"] for rule in report["rules"] if not rule["holds"]}


def test_a_second_sdk_reports_in_clear_and_masked(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    scenes = [word for scene in FEW_SCENES for word in ("--scene", scene)]
    assert complaints(capsys, command, *scenes) == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_sdk_keeps_every_rule(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert complaints(capsys, command) == {}
