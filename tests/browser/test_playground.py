"""The playground in headless Chromium: rate by keyboard, see what the page computes, and what left it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fedrecon.inference.pages import FOLDER
from fedrecon.v1.inference_pb2 import Column, RecommendRequest
from support.inference_deployment import SECONDS, Deployment, compile_twelve_films, deployed

ROOT = Path(__file__).resolve().parents[2]
BROWSER_TESTS = ROOT / "device_sdk" / "web" / "tests" / "browser"
RATED = {"key-0": 5.0, "key-3": 1.0, "key-5": 3.0, "key-7": 5.0, "key-10": 1.0}
TOLERANCE = 1e-5

pytestmark = pytest.mark.browser


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    if shutil.which("chromium") is None or shutil.which("node") is None:
        pytest.skip("there is no Chromium or no node: on Debian, apt-get install chromium nodejs")
    if not (FOLDER / "fedrecon.js").exists():
        pytest.skip("the browser's part is not built: make web")
    async with deployed(tmp_path, compile_twelve_films(tmp_path / "plan")) as made:
        await made.coordinator.commit(made.task("films", 0.25), 3)
        await made.wait_for_round("films", 3)
        yield made


async def use(deployment: Deployment, screenshot: Path, rated: dict[str, float]) -> Any:
    """What the page showed to somebody who rated some titles, and all that it asked for."""
    address = deployment.http.replace("127.0.0.1", "localhost")
    wanted = [f"{key}={level:g}" for key, level in rated.items()]
    command = [str(shutil.which("node")), "use_playground.mjs", str(shutil.which("chromium")), address, str(screenshot)]
    ended = await asyncio.to_thread(
        subprocess.run, [*command, *wanted], cwd=BROWSER_TESTS, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


async def test_the_page_recommends_what_the_service_does_and_uploads_nothing(
    deployment: Deployment, tmp_path: Path
) -> None:
    screenshot = Path(os.environ.get("FEDRECON_SCREENSHOT", tmp_path / "playground.png"))
    shown = await use(deployment, screenshot, RATED)
    assert shown["complaints"] == []
    columns = [Column(field="item", keys=RATED), Column(field="rating", values=RATED.values())]
    asked = RecommendRequest(task="films", columns=columns, count=10, exclude_seen=True)
    expected = (await deployment.inference.Recommend(asked, timeout=SECONDS)).recommendations
    assert [each["key"] for each in shown["best"]] == [each.key for each in expected]
    assert [each["score"] for each in shown["best"]] == pytest.approx([each.score for each in expected], abs=TOLERANCE)
    for request in shown["requests"][: shown["before"]]:
        address = urlsplit(request["url"])
        assert (request["method"], request["body"], address.query) == ("GET", None, ""), request
        assert address.hostname == "localhost", request
    sent = [each for each in shown["requests"] if each["method"] != "GET"]
    assert len(sent) == 1, "ratings travel when the button is pressed that says so, and then once"
    assert shown["compared"].startswith("The service gives the same list")
    assert shown["isNarrow"], "a phone scrolls down only"
    assert await asyncio.to_thread(screenshot.exists)
