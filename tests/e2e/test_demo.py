"""The demo does the main job and leaves nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedrecon.device_sdk import Recommender

PROMISED = {
    "rounds",
    "committed",
    "abandoned",
    "devices",
    "dropped",
    "rmse_first",
    "rmse_last",
    "seconds",
    "recommender",
}


def run_demo(folder: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDRECON_")} | variables
    ended = subprocess.run(
        [sys.executable, "-m", "fedrecon.ops", "demo", "--json", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return summary


@pytest.mark.slow  # CI runs `make demo` beside the tests
def test_the_demo_ends_with_a_recommender_and_nothing_running(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs elsewhere"
    summary = run_demo(tmp_path, "--rounds", "3", FEDRECON_BLOBS_URL=str(blobs))
    assert any(blobs.iterdir())
    assert set(summary) >= PROMISED
    assert summary["committed"] == summary["rounds"] == 3
    assert summary["dropped"] > 0
    assert summary["rmse_last"] < summary["rmse_user_mean"]
    recommender = Recommender(summary["recommender"])
    assert len(recommender.recommend({}, 10)) == 10
    left = [
        each.info for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())
    ]
    assert left == []


@pytest.mark.slow
@pytest.mark.data
def test_real_ratings_are_learned(tmp_path: Path) -> None:
    data = os.environ.get("FEDRECON_DATA")
    if not data:
        pytest.skip("FEDRECON_DATA does not name a folder that holds ml-1m/")
    summary = run_demo(tmp_path, "--data", str(Path(data) / "ml-1m"), "--rounds", "4")
    assert summary["committed"] == 4
    assert summary["rmse_last"] < min(1.0, summary["rmse_first"])
    assert summary["rmse_user_mean"] == pytest.approx(1.0374, abs=1e-4)
