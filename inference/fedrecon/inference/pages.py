"""The playground: a page in which one rates a few titles, and the browser reconstructs and recommends.

Rules: the page loads nothing from elsewhere and says what it asked for; a policy of the browser's own keeps it to that.
The browser's part of it (`fedrecon.js` and ONNX Runtime's WebAssembly) is built by `make web`; without it the page says
so.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from pathlib import Path

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedrecon.ops.boundary import Refusal

FOLDER = Path(__file__).parent / "playground"

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "fedrecon.js": "text/javascript; charset=utf-8",
    "fedrecon.js.LEGAL.txt": "text/plain; charset=utf-8",
    "ort-wasm-simd-threaded.wasm": "application/wasm",
}
_POLICY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Playground:
    """Gives the page and its files, each read and packed once.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._packed: dict[str, tuple[str, bytes]] = {}
        self._reading = asyncio.Lock()

    def routes(self) -> list[BaseRoute]:
        """Returns what is answered."""
        return [Route("/", self.page), Route("/playground/{name}", self.file)]

    async def page(self, request: Request) -> Response:
        """Gives the page."""
        return await self._file(request, "index.html")

    async def file(self, request: Request) -> Response:
        """Gives a file of the page."""
        return await self._file(request, request.path_params["name"])

    async def _file(self, request: Request, name: str) -> Response:
        if name not in _TYPES or not (self._folder / name).is_file():
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_PATH",
                f"There is no {request.url.path}.",
                "In a checkout, `make web` builds the browser's part of the playground.",
            )
        async with self._reading:
            if name not in self._packed:
                self._packed[name] = await asyncio.to_thread(_packed, self._folder / name)
        tag, packed = self._packed[name]
        headers = {**_POLICY, "etag": tag, "vary": "accept-encoding"}
        if request.headers.get("if-none-match", "") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(await asyncio.to_thread(gzip.decompress, packed), headers=headers, media_type=_TYPES[name])
        headers["content-encoding"] = "gzip"
        return Response(packed, headers=headers, media_type=_TYPES[name])


def _packed(path: Path) -> tuple[str, bytes]:
    content = path.read_bytes()
    return f'W/"{hashlib.sha256(content).hexdigest()}"', gzip.compress(content, mtime=0)
