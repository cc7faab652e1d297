"""Files of a page that a service serves from its package: each read and packed once, told unchanged by its ETag."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path

import grpc
from starlette.requests import Request
from starlette.responses import Response

from fedrecon.ops.boundary import Refusal

HEADERS = {
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class StaticFiles:
    """Gives the files of a page.

    Args:
        folder: Where they lie.
        types: Names of the files that are given, with their media types.
        policy: Content security policy of the page.
        advice: What to do where a file is not there.
    """

    def __init__(self, folder: Path, types: Mapping[str, str], policy: str, advice: str) -> None:
        self._folder = folder
        self._types = types
        self._headers = {"content-security-policy": policy, **HEADERS}
        self._advice = advice
        self._packed: dict[str, tuple[str, bytes]] = {}
        self._reading = asyncio.Lock()

    async def file(self, request: Request, name: str) -> Response:
        """Return a file.

        Raises:
            Refusal: There is no such file.
        """
        if name not in self._types or not (self._folder / name).is_file():
            path = request.url.path
            raise Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_PATH", f"There is no {path}.", self._advice)
        async with self._reading:
            if name not in self._packed:
                self._packed[name] = await asyncio.to_thread(_packed, self._folder / name)
        (tag, packed), kind = self._packed[name], self._types[name]
        headers = {**self._headers, "etag": tag, "vary": "accept-encoding"}
        if request.headers.get("if-none-match", "") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(await asyncio.to_thread(gzip.decompress, packed), headers=headers, media_type=kind)
        return Response(packed, headers={**headers, "content-encoding": "gzip"}, media_type=kind)


def _packed(path: Path) -> tuple[str, bytes]:
    content = path.read_bytes()
    return f'W/"{hashlib.sha256(content).hexdigest()}"', gzip.compress(content, mtime=0)
