"""The web SDK in headless Chromium: the known answers, and a page that keeps what it knows to itself."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fedrecon.device_sdk import Recommender

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "device_sdk" / "web"
BROWSER_TESTS = WEB / "tests" / "browser"
BUNDLE, BUNDLE_RUNTIME = WEB / "dist" / "fedrecon.js", "ort-wasm-simd-threaded.wasm"
VECTORS = ROOT / "protos" / "vectors"
PAGE = b'<!doctype html><meta charset="utf-8"><title>fedrecon</title><script type="module" src="/page.js"></script>'
TOLERANCE = 1e-5

pytestmark = pytest.mark.browser


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves the page, the built bundle and the known answers, each from its own folder."""

    folders: dict[str, Path]

    def __init__(self, folders: dict[str, Path], *arguments: Any) -> None:
        self.folders = folders
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)
        elif self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        for prefix, folder in self.folders.items():
            if path.startswith(prefix):
                return str(folder / urlsplit(path).path.removeprefix(prefix))
        return str(ROOT / "nothing")

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of the page that runs the checks."""
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if chromium is None or node is None:
        pytest.skip("there is no Chromium or no node: on Debian, apt-get install chromium nodejs")
    if not BUNDLE.exists():
        pytest.skip("the bundle is not built: make web")
    folder = tmp_path_factory.mktemp("page")
    subprocess.run([node, "build_page.mjs", str(folder)], cwd=BROWSER_TESTS, check=True)
    return folder / "page.js"


def opened(script: Path, **more: Path) -> dict[str, Any]:
    """What a page found that loads a script, and every request that it made."""
    folders = {"/page.js": script, "/fedrecon.js": BUNDLE, "/dist/": BUNDLE.parent, "/vectors/": VECTORS}
    folders |= {f"/{BUNDLE_RUNTIME}": BUNDLE.parent / BUNDLE_RUNTIME}
    folders |= {f"/{name.replace('_', '.')}": file for name, file in more.items()}
    with serving(folders) as address:
        command = [str(shutil.which("node")), "open_page.mjs", str(shutil.which("chromium")), address]
        printed = subprocess.run(command, cwd=BROWSER_TESTS, check=True, capture_output=True, text=True, timeout=240)
    answer: dict[str, Any] = json.loads(printed.stdout)
    return answer


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return opened(page)


class serving:  # noqa: N801 - used like a function
    """Serves folders on a free port of the loopback for as long as a block runs."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, folders))
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://localhost:{self._server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_the_known_answers_hold_in_a_browser(seen: dict[str, Any]) -> None:
    assert seen["found"]["failures"] == {}
    assert len(seen["found"]["differences"]) >= 14
    assert max(seen["found"]["differences"].values()) <= TOLERANCE
    assert seen["complaints"] == []


def test_a_page_recommends_what_the_python_sdk_does(seen: dict[str, Any]) -> None:
    recommender = Recommender(VECTORS / "films-gradient.onnx")
    items, ratings = zip(*seen["found"]["ratings"], strict=True)
    expected = recommender.recommend({"item": items, "rating": ratings}, 10)
    found = seen["found"]["best"]
    assert [each["key"] for each in found] == [each.key for each in expected]
    assert [each["score"] for each in found] == pytest.approx([each.score for each in expected], abs=TOLERANCE)


def test_no_request_carries_a_rating_or_goes_elsewhere(seen: dict[str, Any]) -> None:
    assert len(seen["requests"]) > 10
    for request in seen["requests"]:
        address = urlsplit(request["url"])
        assert (request["method"], request["body"], address.query) == ("GET", None, ""), request
        assert address.hostname == "localhost", request
        assert not any(item in request["url"] for item, _ in seen["found"]["ratings"]), request


@pytest.mark.usefixtures("page")
def test_the_readme_shows_a_page_that_works(tmp_path: Path) -> None:
    script = re.findall(r"^```js\n(.*?)^```", (WEB / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    file = tmp_path / "page.js"
    file.write_text(f"{script}\nglobalThis.found = [mine, await recommender.recommend(mine, 10)];\n")
    films = VECTORS / "films-gradient.onnx"
    shown = opened(file, films_onnx=films, films_items=films.with_suffix(".items"))
    assert shown["complaints"] == []
    mine, best = shown["found"]
    assert mine == {"item": ["1193"], "rating": [5.0]}
    assert [each["key"] for each in best] == [each.key for each in Recommender(films).recommend(mine, 10)]
