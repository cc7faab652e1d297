"""All benchmarks in one JSON object, and the page of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedrecon.benchmarks import everything
from fedrecon.benchmarks.commands import bench
from fedrecon.benchmarks.everything import draw, names_of_all, page_of, run_all, shares_of_promises
from fedrecon.benchmarks.measures import Measure, result_of

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"


def a_run() -> dict[str, Any]:
    kept = Measure("wait", 1.5, "s", 3.0)
    broken = Measure("reports a second", 400.0, "1/s", 1000.0, "at least")
    free = Measure("bare server", 5000.0, "1/s")
    results = [
        result_of("check-in", [kept, free]) | {"seconds": 12.0},
        result_of("ingest", [broken]) | {"seconds": 3.0},
        {"name": "device", "measures": [], "failed": "no space left", "seconds": 1.0},
    ]
    return {"unix_seconds": 1_700_000_000, "seconds": 90.0, "load_before": 0.1, "results": results}


def test_every_benchmark_of_our_own_is_run() -> None:
    commands = [each.name or each.callback.__name__ for each in bench.registered_commands if each.callback is not None]
    names = names_of_all(commands)
    assert {"check-in", "device", "footprint", "ingest", "recommend", "secure-sum", "simulation"} <= set(names)
    assert not any(name.endswith("-peers") for name in names)


def test_the_page_says_what_was_kept_what_was_not_and_what_failed() -> None:
    page = page_of(a_run())
    assert "| wait | 1.5 | s | below 3 | yes |" in page
    assert "| reports a second | 400 | 1/s | at least 1000 | **no** |" in page
    assert "| bare server | 5,000 | 1/s |  |  |" in page
    assert "Failed: no space left" in page
    assert "2023-11-14" in page


def test_a_promise_uses_up_more_than_all_where_it_is_broken() -> None:
    assert shares_of_promises(a_run()) == [
        ("check-in: wait", 0.5, True),
        ("ingest: reports a second", 2.5, False),
    ]


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    draw(a_run(), tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text()
    assert text.startswith("<?xml")
    assert "ingest: reports a second" in text


def test_a_benchmark_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "_LONGEST_SECONDS", 60.0)
    told: list[str] = []
    run = run_all(["no-such-benchmark", "nor-this"], told.append)
    assert told == ["no-such-benchmark", "nor-this"]
    assert [bool(each["failed"]) for each in run["results"]] == [True, True]
    assert json.loads(json.dumps(run)) == run


@pytest.mark.skipif(not RESULTS.exists(), reason="`make bench` has not been run for this version")
def test_the_page_of_benchmarks_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page_of(json.loads(RESULTS.read_text()))
