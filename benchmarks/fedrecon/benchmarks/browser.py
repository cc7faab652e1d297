"""How long a recommendation takes in a page: headless Chromium, the built web SDK, files of this machine alone."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedrecon import device_sdk

_WEB = Path(device_sdk.__file__).resolve().parents[2] / "web"
_BUNDLE = _WEB / "dist" / "fedrecon.js"
_RUNTIME = _WEB / "dist" / "ort-wasm-simd-threaded.wasm"
_DRIVER = _WEB / "tests" / "browser" / "open_page.mjs"
_LONGEST_SECONDS = 300

_PAGE = """<!doctype html><meta charset="utf-8"><title>fedrecon</title><script type="module">
import { Recommender } from "/fedrecon.js";
const read = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
const { names, films, ratings, wanted, users } = await (await fetch("asked.json")).json();
const medians = {};
for (const name of names) {
  const recommender = await Recommender.load({ file: await read(`${name}.onnx`), items: await read("films.items") });
  const spent = [];
  for (let user = 0; user < 2 * users; user++) {
    const rows = new Set();
    while (rows.size < ratings) rows.add(Math.floor(Math.random() * films));
    const rated = { item: [...rows].map(String), rating: [...rows].map(() => 1 + Math.floor(Math.random() * 5)) };
    const began = performance.now();
    await recommender.recommend(rated, wanted);
    if (user >= users) spent.push(performance.now() - began); // the first half warms the page up
  }
  medians[name] = spent.sort((one, other) => one - other)[users / 2];
}
globalThis.found = medians;
</script>"""


def time_in_browser(
    recommenders: Mapping[str, bytes], items: bytes, films: int, ratings: int, wanted: int, users: int
) -> dict[str, float]:
    """Recommend in headless Chromium.

    Args:
        recommenders: Files by name.
        items: Their vocabulary; its keys are the numbers of the rows.
        films: Rows.
        ratings: Ratings of a user.
        wanted: Items wanted.
        users: Users, an even number.

    Returns:
        Median milliseconds of a user, by file; empty without Chromium, node, or the web SDK (`make web`).
    """
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if chromium is None or node is None or not _BUNDLE.exists():
        return {}
    with tempfile.TemporaryDirectory(prefix="fedrecon-page-") as name:
        folder = Path(name)
        (folder / "index.html").write_text(_PAGE)
        (folder / "films.items").write_bytes(items)
        for each, content in recommenders.items():
            (folder / f"{each}.onnx").write_bytes(content)
        asked = {"names": list(recommenders), "films": films, "ratings": ratings, "wanted": wanted, "users": users}
        (folder / "asked.json").write_text(json.dumps(asked))
        for built in (_BUNDLE, _RUNTIME):
            shutil.copy(built, folder)
        with _serving(folder) as address:
            printed = subprocess.run(
                [node, _DRIVER.name, chromium, address],
                cwd=_DRIVER.parent,
                check=True,
                capture_output=True,
                text=True,
                timeout=_LONGEST_SECONDS,
            )
    medians: dict[str, float] = json.loads(printed.stdout)["found"]
    return medians


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
