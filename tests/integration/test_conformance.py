"""The conformance suite: the Python SDK keeps every rule, and a device that breaks one is found out."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops.command import main
from fedrecon.ops.conformance.judging import ALWAYS
from fedrecon.ops.conformance.rules import RULES, SCENES
from fedrecon.ops.conformance.running import ROUNDING, Verdict, judge_device
from support.tested_devices import TestedDevice
from support.wrong_devices import WRONG

ROOT = Path(__file__).resolve().parents[2]


async def verdicts(device: TestedDevice, *rules: str) -> dict[str, Verdict]:
    """What the scenes of some rules tell of a device; all scenes without a rule."""
    scenes = [scene for scene in SCENES if not rules or scene.rule in rules]
    found = await judge_device(scenes, device, "127.0.0.1:0", clock=device.clock)
    return {verdict.rule.name: verdict for verdict in found}


async def test_the_python_sdk_keeps_every_rule() -> None:
    found = await verdicts(TestedDevice())
    assert {name: verdict.complaints for name, verdict in found.items() if not verdict.holds} == {}
    assert set(found) == {rule.name for rule in RULES}


SCENES_OF_OTHER_RULES = {
    "readable": ["report"],
    "deadlines": ["report"],
    "check-in": ["report"],
    "session-end": ["report"],
    "shape": ["report"],
    "signatures": ["enrolment"],
    "session-proofs": ["report"],
    "round-token": ["report"],
    "rounding": [
        "report",
        "void",
        "ticket",
        "unknown-fields",
        "locate",
        "same-bytes",
        "upload-status",
        "fetch-resumes",
    ],
}


@pytest.mark.parametrize("rule", WRONG)
async def test_a_device_that_breaks_a_rule_is_found_out(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await verdicts(WRONG[rule](monkeypatch), *SCENES_OF_OTHER_RULES.get(rule, [rule]))
    assert not found[rule].holds, found


def test_every_rule_has_a_wrong_device() -> None:
    assert set(WRONG) == {rule.name for rule in RULES}


def test_every_scene_and_every_common_rule_is_one_of_the_rules() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert len({scene.name for scene in SCENES}) == len(SCENES)
    assert {scene.rule for scene in SCENES} | set(ALWAYS) | {"readable", ROUNDING} == set(names)


def test_the_protocol_has_the_section_of_every_rule() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE)
    assert {rule.section for rule in RULES} <= set(headings)


@pytest.fixture
def device_of_the_page(tmp_path: Path) -> Path:
    """The script that the protocol's page shows."""
    section = (ROOT / "docs" / "protocol.md").read_text().partition("## Is my SDK right?\n")[2]
    script = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]
    file = tmp_path / "device.py"
    file.write_text(script)
    return file


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["conformance", "--target", "127.0.0.1:0", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_page_shows_a_device_that_passes(device_of_the_page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(device_of_the_page), "{order}"]
    code, report = run("--scene", "a masked report", "--", *command, capsys=capsys)
    assert (code, report["holds"]) == (0, True), report
    assert {"masked-report", "deadlines"} <= {each["rule"] for each in report["rules"]}


def test_a_process_that_is_no_device_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(
        "--scene", "a report", "--", sys.executable, "-c", "raise SystemExit('no device')", capsys=capsys
    )
    assert code == 1
    (rule,) = [each for each in report["rules"] if not each["holds"]]
    assert rule["complaints"] == {"a report": ["the device ended with code 1: no device", "it did not check in"]}
    assert rule["advice"]


def test_a_scene_that_is_not_there_is_a_mistake_of_the_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--target", "127.0.0.1:0", "--scene", "no scene"]) == 2
    assert "There is no scene 'no scene'" in capsys.readouterr().err


def test_without_a_command_the_person_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["conformance", "--target", "127.0.0.1:0", "--scene", "a report"]) == 1
    shown = capsys.readouterr().out
    assert '"population": "conformance"' in shown
    assert "it did not check in" in shown
    assert "compare with training.json" in shown, "what to do about it"
