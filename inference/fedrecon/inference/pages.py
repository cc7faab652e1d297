"""The playground: a page in which one rates a few titles, and the browser reconstructs and recommends.

Rules: the page loads nothing from elsewhere and says what it asked for; a policy of the browser's own keeps it to that.
The browser's part of it (`fedrecon.js` and ONNX Runtime's WebAssembly) is built by `make web`; without it the page says
so.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedrecon.ops.static_files import StaticFiles

FOLDER = Path(__file__).parent / "playground"

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "fedrecon.js": "text/javascript; charset=utf-8",
    "fedrecon.js.LEGAL.txt": "text/plain; charset=utf-8",
    "ort-wasm-simd-threaded.wasm": "application/wasm",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Playground:
    """Gives the page and its files.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        advice = "In a checkout, `make web` builds the browser's part of the playground."
        self._files = StaticFiles(folder, _TYPES, _POLICY, advice)

    def routes(self) -> list[BaseRoute]:
        """Returns what is answered."""
        return [Route("/", self.page), Route("/playground/{name}", self.file)]

    async def page(self, request: Request) -> Response:
        """Gives the page."""
        return await self._files.file(request, "index.html")

    async def file(self, request: Request) -> Response:
        """Gives a file of the page."""
        return await self._files.file(request, request.path_params["name"])
