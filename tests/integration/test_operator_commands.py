"""What operators type, against a real coordinator: status, rounds, devices, completion, and the logs of a home."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from fedrecon.ops.clock import SystemClock
from fedrecon.ops.command import main
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.standing import warnings_of
from fedrecon.ops.status import found_wrong
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.task_pb2 import Privacy, RoundSpec, TaskSpec
from support.console_rounds import COHORT, Past
from support.coordinating import TASK, Coordinator, House, house, make_spec

NOW = 1_700_000_000_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The coordinator in this process logs nothing: what commands print is looked at."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, MemoryJournal()) as made:
        yield made


@pytest.fixture
async def lived(built: House) -> Coordinator:
    began = SystemClock().now_milliseconds() - 85_000
    await Past(built.journal, built.blobs, TASK, began).write(make_spec(built.plan), 8)
    coordinator = await built.coordinator()
    await coordinator.until_ready()
    return coordinator


async def typed(capsys: pytest.CaptureFixture[str], coordinator: Coordinator, *arguments: str) -> tuple[int, str]:
    """The exit code of a command and what it printed."""
    capsys.readouterr()
    code = await asyncio.to_thread(main, [*arguments, "--server", coordinator.target])
    return code, capsys.readouterr().out


async def told(capsys: pytest.CaptureFixture[str], coordinator: Coordinator, *arguments: str) -> Any:
    code, printed = await typed(capsys, coordinator, *arguments, "--json")
    assert code == 0
    return json.loads(printed)


async def test_the_status_of_a_healthy_deployment_is_one_screen_and_code_0(
    lived: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await told(capsys, lived, "status")
    assert found["fine"]
    (task,) = found["tasks"]
    assert (task["name"], task["state"], task["committed"], task["abandoned"]) == (TASK, "running", 8, 1)
    assert task["last_commit_milliseconds_ago"] > 0
    code, printed = await typed(capsys, lived, "status")
    assert (code, "nothing to look into" in printed) == (0, True)
    assert len(printed.splitlines()) < 20


async def test_the_status_is_code_1_when_something_is_wrong(
    built: House, lived: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    await built.kill_aggregator()
    code, printed = await typed(capsys, lived, "status", "--json")
    found = json.loads(printed)
    assert (code, found["fine"]) == (1, False)
    assert "does not answer" in found["warnings"][0]["what"]
    await lived.stop()
    code, _ = await typed(capsys, lived, "status")
    assert code == 3
    await built.open_aggregator()


async def test_a_round_is_shown_and_devices_are_counted(lived: Coordinator, capsys: pytest.CaptureFixture[str]) -> None:
    shown = await told(capsys, lived, "rounds", "show", TASK, "7")
    assert [each["phase"] for each in shown["attempts"]] == ["ROUND_PHASE_ABANDONED", "ROUND_PHASE_COMMITTED"]
    _, printed = await typed(capsys, lived, "rounds", "show", TASK, "7")
    assert "9 UPLOADED" in printed
    assert "-v[]+^" in printed, "a shape is no markup"
    stats = await told(capsys, lived, "devices", "stats", TASK)
    assert (stats["attempts"], stats["assigned"]) == (9, 9 * COHORT)
    assert sum(stats["outcomes"].values()) + stats["silent"] == stats["assigned"]
    assert stats["shapes"]["-v[]+^"] == stats["outcomes"]["UPLOADED"] == stats["reported"]


@pytest.mark.parametrize("line", ["fedrecon rounds why --server {target} fi", "fedrecon status --server {target} --js"])
async def test_a_shell_completes_names_of_tasks_and_options(
    lived: Coordinator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    written = line.format(target=lived.target)
    monkeypatch.setenv("_FEDRECON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", written)
    monkeypatch.setenv("COMP_CWORD", str(len(written.split()) - 1))
    capsys.readouterr()
    assert await asyncio.to_thread(main, []) == 0
    assert capsys.readouterr().out.split() == [TASK if line.endswith("fi") else "--json"]


def test_completion_without_a_deployment_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path))
    monkeypatch.setenv("_FEDRECON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fedrecon task show fi")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert main([]) == 0
    told = capsys.readouterr()
    assert (told.out.strip(), told.err) == ("", "")


def write(home: Path, service: str, *lines: tuple[str, str, str]) -> None:
    folder = home / "logs"
    folder.mkdir(exist_ok=True)
    with (folder / f"{service}.log").open("a") as file:
        for at, level, event in lines:
            file.write(json.dumps({"timestamp": at, "level": level, "service": service, "event": event, "n": 1}) + "\n")


def test_logs_of_all_services_are_shown_in_order_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path))
    assert main(["logs"]) == 2
    write(tmp_path, "coordinator", ("2026-01-01T00:00:01Z", "info", "one"), ("2026-01-01T00:00:03Z", "error", "three"))
    write(tmp_path, "aggregator", ("2026-01-01T00:00:02Z", "warning", "two"), ("2026-01-01T00:00:04Z", "debug", "no"))
    with (tmp_path / "logs" / "aggregator.log").open("a") as file:
        file.write("Segmentation fault\nhalf a li")
    capsys.readouterr()
    assert main(["logs"]) == 0
    printed = capsys.readouterr().out
    assert [word for word in printed.split() if word in {"one", "two", "three", "Segmentation"}] == [
        "one",
        "two",
        "three",
        "Segmentation",
    ]
    assert "half" not in printed
    assert main(["logs", "coordinator", "--level", "error", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "three"
    assert main(["logs", "-n", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("Segmentation fault")
    assert main(["logs", "nobody"]) == 2
    assert "aggregator, coordinator" in capsys.readouterr().err


def task(**fields: Any) -> admin.Task:
    spec = TaskSpec(
        name=TASK,
        rounds=RoundSpec(selection_milliseconds=1_000, reporting_milliseconds=120_000, aggregating_milliseconds=60_000),
        privacy=Privacy(epsilon_budget=8.0),
    )
    calm = {"state": admin.TASK_STATE_RUNNING, "created_unix_milliseconds": NOW - 60_000}
    return admin.Task(**{"spec": spec, **calm, **fields})


@pytest.mark.parametrize(
    ("fields", "epsilon", "expected"),
    [
        ({}, 1.0, ""),
        ({"created_unix_milliseconds": NOW - 3_600_000}, 1.0, "No commit for 1 h"),
        (
            {"created_unix_milliseconds": NOW - 3_600_000, "committed_unix_milliseconds": NOW - 9_000},
            1.0,
            "",
        ),
        (
            {
                "created_unix_milliseconds": NOW - 3_600_000,
                "round": admin.Round(phase=admin.ROUND_PHASE_SELECTING, waiting=3),
            },
            1.0,
            "3 of at least 1 devices wait",
        ),
        ({"abandoned_in_a_row": 2}, 1.0, "2 attempts in a row"),
        ({"abandoned_in_a_row": 1}, 1.0, ""),
        ({"state": admin.TASK_STATE_PAUSED, "reason": "lunch"}, 1.0, ""),
        ({"state": admin.TASK_STATE_PAUSED, "reason": "5 attempts", "abandoned_in_a_row": 5}, 1.0, "It paused itself"),
        ({"state": admin.TASK_STATE_PAUSED, "reason": "the journal went back"}, 1.0, "went back"),
        ({"state": admin.TASK_STATE_COMPLETED, "created_unix_milliseconds": 0}, 1.0, ""),
        ({}, 7.3, "91% of the privacy budget"),
    ],
)
def test_what_should_be_looked_into_is_told_and_what_somebody_wanted_is_not(
    fields: dict[str, Any], epsilon: float, expected: str
) -> None:
    found = warnings_of(task(**fields), admin.GetPrivacyResponse(epsilon=epsilon), NOW)
    assert bool(found) == bool(expected), found
    assert expected in " ".join(each.what for each in found)
    assert all(each.advice for each in found)


def test_a_service_that_is_away_is_wrong_and_says_where_its_log_is() -> None:
    services = [{"name": "inference", "address": "here", "state": "away"}]
    ((of, warned),) = found_wrong(services, [], [], {}, NOW)
    assert (of, "fedrecon logs inference" in warned.advice) == ("inference", True)
