"""The console in headless Chromium: a live round, an abandoned one explained, a rollback, and ten thousand rounds."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fedrecon.coordinator.retention import Retention
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal.memory import MemoryJournal
from support.console_house import CALLERS, ConsoleHouse, console_of
from support.console_rounds import COHORT, GOAL, MINIMUM, Past
from support.coordinating import TASK, Coordinator, House, house, make_spec

BROWSER_TESTS = Path(__file__).resolve().parents[2] / "device_sdk" / "web" / "tests" / "browser"
LARGEST_PAGE_BYTES = 200_000
LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3."""

pytestmark = pytest.mark.browser


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[House]:
    if shutil.which("chromium") is None or shutil.which("node") is None:
        pytest.skip("there is no Chromium or no node: on Debian, apt-get install chromium nodejs")
    if not (BROWSER_TESTS.parents[1] / "node_modules").exists():
        pytest.skip("the browser's driver is not installed: make web")
    async with house(tmp_path, MemoryJournal()) as made:
        yield made


async def lived(built: House, rounds: int) -> Coordinator:
    """A coordinator whose task has a past and gathers devices."""
    spec = make_spec(
        built.plan, report_goal=GOAL, minimum_reports=MINIMUM, minimum_cohort=COHORT, reporting_milliseconds=600_000
    )
    spec.evaluation.every_rounds, spec.evaluation.held_out_share, spec.evaluation.report_goal = 5, 0.1, GOAL
    began = SystemClock().now_milliseconds() - rounds * 8_000
    past = Past(built.journal, built.blobs, TASK, began, real_from=max(rounds - 30, 1))
    book = await past.write(spec, rounds)
    await Retention(TASK, built.journal, 100, 20).tidy(book.task, book.version, 1 << 42)
    coordinator = await built.coordinator(callers=CALLERS)
    await coordinator.until_ready()
    return coordinator


async def use(
    scene: str, coordinator: Coordinator, folder: Path, then: Callable[[], Awaitable[None]] | None = None
) -> Any:
    """What somebody saw who did what a scene says; `then` happens when the scene says that it is ready."""
    screenshots = Path(os.environ.get("FEDRECON_SCREENSHOTS", folder))
    async with console_of(folder, coordinator.target) as (address, stopping):
        link = ConsoleHouse(None, coordinator.target, address, stopping).link()  # type: ignore[arg-type]  # not asked
        command = [str(shutil.which("node")), "use_console.mjs", str(shutil.which("chromium")), scene]
        running = await asyncio.create_subprocess_exec(
            *command,
            str(screenshots),
            link,
            cwd=BROWSER_TESTS,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        if then is not None:
            assert running.stderr is not None
            assert await running.stderr.readline() == b"ready\n"
            await then()
        printed, complained = await running.communicate()
        assert running.returncode == 0, complained.decode()
        seen = json.loads(printed)
        assert seen["complaints"] == []
        return seen


async def test_an_empty_stack_says_what_to_do_first(built: House, tmp_path: Path) -> None:
    seen = await use("empty", await built.coordinator(callers=CALLERS), tmp_path)
    for command in ("fedrecon plan compile", "fedrecon task create", "fedrecon fleet"):
        assert command in seen["told"]
    assert (seen["nameless"], seen["headings"], seen["landmarks"]) == ([], 1, ["header", "nav", "main"])


async def test_a_round_is_seen_live_in_light_in_the_dark_and_on_a_phone(built: House, tmp_path: Path) -> None:
    coordinator = await lived(built, 64)
    assigned = await coordinator.assign(*range(1, COHORT + 6))
    assert len(assigned) == COHORT
    await built.sums.report(assigned[0].round, 13)
    await asyncio.gather(*(coordinator.finish(each) for each in assigned[:11]))

    async def end_the_round() -> None:
        await built.sums.report(assigned[0].round, GOAL - 13)

    seen = await use("live", coordinator, tmp_path, end_the_round)
    assert "13 of 20 reports" in seen["tiles"]
    assert "Round 65" in seen["tiles"]
    assert "no guarantee" in seen["tiles"]
    waiting, *others = [int(line) for line in seen["funnel"].splitlines() if line.isdigit()]
    assert COHORT <= waiting <= COHORT + 5, "all that are not held out for evaluations"
    assert others == [COHORT, 13, 13, 0]
    assert seen["bytes"] < LARGEST_PAGE_BYTES
    assert (seen["nameless"], seen["headings"]) == ([], 1)
    for scheme in ("contrastLight", "contrastDark"):
        assert seen[scheme]["ratio"] >= LEAST_CONTRAST, seen[scheme]
    assert seen["isNarrow"], "a phone scrolls down only"
    assert "Round 65 was committed." in seen["said"], "those who do not see the page are told"
    before, earlier, oldest, newest = seen["focus"]
    assert before != earlier
    assert oldest.startswith("Round ")
    assert newest.startswith(("Round 65", "Round 66"))
    assert seen["elsewhere"] == 0


async def test_an_abandoned_round_is_found_by_keyboard_and_explained(built: House, tmp_path: Path) -> None:
    seen = await use("why", await lived(built, 30), tmp_path)
    assert seen["label"].startswith("Round 27, training: abandoned, the reporting window has ended with 9 of at least")
    assert seen["heading"].startswith("Round 27")
    assert "Abandoned because the reporting window has ended with 9 of at least 16 reports" in seen["story"]
    assert "Committed checkpoint" in seen["story"]
    assert seen["focused"] == "H1", "who reads by ear begins at the top of the new page"
    assert (seen["nameless"], seen["headings"]) == ([], 1)


async def test_a_task_is_rolled_back_and_cancelled_after_its_name_was_typed(built: House, tmp_path: Path) -> None:
    coordinator = await lived(built, 20)
    seen = await use("change", coordinator, tmp_path)
    task = await coordinator.task()
    assert task.live_round == int(seen["round"])
    assert f"round {seen['round']}" in seen["said"]
    assert seen["isGuarded"]
    assert seen["buttons"] == 0, "nothing can be done with a task that has ended"
    assert "worse on new users" in seen["audit"]
    assert "root@here" in seen["audit"]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_rounds_are_as_light_as_a_hundred(built: House, tmp_path: Path) -> None:
    seen = await use("many", await lived(built, 10_000), tmp_path)
    assert seen["bytes"] < LARGEST_PAGE_BYTES
    assert seen["elements"] < 4_000
    assert "Rounds 9" in seen["quality"] or "Round 10000" in seen["quality"]
    figures = {name: seen[name] for name in ("usable", "drawn", "bytes", "elements")}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
