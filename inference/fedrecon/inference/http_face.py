"""Inference over plain HTTP and JSON, for teams without gRPC: the same answers, in the contract's own names.

| | |
|---|---|
| `GET /v1/tasks` | tasks with something live |
| `GET /v1/tasks/TASK` | what is live: fields, digests, sizes and where the files are |
| `GET /v1/tasks/TASK/recommender.onnx`, `.items` | the files that are live |
| `GET /v1/tasks/TASK/card.json`, `card.md` | the model card of what is live |
| `GET /v1/blobs/DIGEST` | the same by digest: a file that never changes |
| `POST /v1/tasks/TASK/recommend` | opt-in: recommends to a user whose examples come along |
| `GET /v1/tasks/TASK/similar/KEY?count=10` | items that are like one |
| `GET /openapi.json` | all of it for programs |

All but the blobs take `?version=3` for whoever holds to a version, and `?place=42` for a canary
(`fedrecon.wire.places`); `recommend` takes both in its body.

Rules: files have their digest as ETag, so that who has one already is told so (304), may be fetched in parts (Range),
and travel compressed where they are whole and the caller can read it. Bodies are the JSON form of `inference.proto`;
digests are hexadecimal. Nothing of a user is kept or logged; `recommend` is never cached.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from dataclasses import asdict
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fedrecon.inference.calls import Calls
from fedrecon.inference.cards import card_markdown, make_card
from fedrecon.inference.catalogue import Catalogue
from fedrecon.inference.openapi import describe_api
from fedrecon.inference.publishing import Publication
from fedrecon.ops.blobs import BlobMissing, BlobStore
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.http_server import read_body
from fedrecon.ops.printing import as_dict
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import FindSimilarRequest, RecommendRequest
from fedrecon.wire.digests import DIGEST_BYTES

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_BINARY = "application/octet-stream"
_NEVER_CHANGES = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_DEFAULT_COUNT = 10
_QUICK_COMPRESSION = 1

Default = TypeVar("Default", int, None)


class HttpFace:
    """Answers requests.

    Args:
        catalogue: what is live.
        blobs: where files lie.
        calls: how they are computed.
    """

    def __init__(self, catalogue: Catalogue, blobs: BlobStore, calls: Calls) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self._calls = calls

    def routes(self) -> list[BaseRoute]:
        """Returns what is answered."""
        return [
            Route("/v1/tasks", self.tasks),
            Route("/v1/tasks/{task}", self.live),
            Route("/v1/tasks/{task}/recommender.onnx", self.recommender),
            Route("/v1/tasks/{task}/recommender.items", self.items),
            Route("/v1/tasks/{task}/card.json", self.card),
            Route("/v1/tasks/{task}/card.md", self.card),
            Route("/v1/tasks/{task}/recommend", self.recommend, methods=["POST"]),
            Route("/v1/tasks/{task}/similar/{key:path}", self.similar),
            Route("/v1/blobs/{digest}", self.blob),
            Route("/openapi.json", self.openapi),
        ]

    async def tasks(self, request: Request) -> Response:
        """Names the tasks that have something live."""
        del request
        live = self._catalogue.all_live()
        told = [{"task": each.task, "round": each.round, "version": each.version} for each in live]
        return JSONResponse({"tasks": told}, headers={"cache-control": _ASK_AGAIN})

    async def live(self, request: Request) -> Response:
        """Names what is live."""
        live = self._live(request)
        told = {
            "task": live.task,
            "round": live.round,
            "version": live.version,
            "fields": [asdict(each) for each in live.answering.fields],
            "recommender": _file(live.recommender),
            "items": _file(live.vocabulary),
            "checkpoint_digest": live.checkpoint.digest.hex(),
            "plan_digest": live.plan_digest.hex(),
            "deltas": [{"known": each.known.hex(), **_file(each.blob)} for each in live.deltas],
        }
        if (canary := self._catalogue.canary(live.task)) is not None:
            told["canary"] = {"version": canary[0].version, "round": canary[0].round, "places": canary[1]}
        return JSONResponse(told, headers={"cache-control": _ASK_AGAIN})

    async def recommender(self, request: Request) -> Response:
        """Gives the live ONNX file."""
        return await self._content(request, self._live(request).recommender.digest, _ASK_AGAIN)

    async def items(self, request: Request) -> Response:
        """Gives the live file's vocabulary."""
        return await self._content(request, self._live(request).vocabulary.digest, _ASK_AGAIN)

    async def blob(self, request: Request) -> Response:
        """Gives a file by its digest, if it is live for some task."""
        text = request.path_params["digest"]
        digest = bytes.fromhex(text) if re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", text) else b""
        if not self._catalogue.serves(digest):
            raise _not_found("UNKNOWN_BLOB", f"Nothing that is live has the digest {text[:80]!r}.")
        return await self._content(request, digest, _NEVER_CHANGES)

    async def recommend(self, request: Request) -> Response:
        """Recommends to a user whose examples came along."""
        asked = RecommendRequest(count=_DEFAULT_COUNT, exclude_seen=True)
        task = request.path_params["task"]
        self._catalogue.choose(task)  # who asks for what is not there is told so, whatever the body
        _parse(await read_body(request), asked)
        asked.task = task
        live = self._catalogue.choose(task, asked.place if asked.HasField("place") else None, asked.version)
        return _told(await self._calls.recommend(live, asked))

    async def similar(self, request: Request) -> Response:
        """Names items that are like one."""
        live = self._live(request)
        count = _number_in(request, "count", _DEFAULT_COUNT)
        asked = FindSimilarRequest(task=live.task, key=request.path_params["key"], count=count)
        return _told(await self._calls.find_similar(live, asked))

    async def card(self, request: Request) -> Response:
        """Gives the model card, for programs or for people."""
        live = self._live(request)
        card = make_card(live, self._catalogue.privacy(live.task))
        headers = {"cache-control": _ASK_AGAIN}
        if request.url.path.endswith(".md"):
            return Response(card_markdown(card), headers=headers, media_type="text/markdown; charset=utf-8")
        return JSONResponse(card, headers=headers)

    async def openapi(self, request: Request) -> Response:
        """Describes all of it."""
        del request
        return JSONResponse(describe_api())

    def _live(self, request: Request) -> Publication:
        place = _number_in(request, "place", None)
        return self._catalogue.choose(request.path_params["task"], place, _number_in(request, "version", 0))

    async def _content(self, request: Request, digest: bytes, caching: str) -> Response:
        tag = f'"{digest.hex()}"'
        headers = {"etag": tag, "cache-control": caching, "accept-ranges": "bytes", "vary": "accept-encoding"}
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        asked = request.headers.get("range")
        if asked is not None and request.headers.get("if-range", tag) == tag:
            return await self._part(digest, asked, headers)
        content = await asyncio.to_thread(self._read, digest, 0, None)
        if "gzip" in request.headers.get("accept-encoding", ""):
            packed = await asyncio.to_thread(gzip.compress, content, _QUICK_COMPRESSION, mtime=0)
            if len(packed) < len(content):
                headers |= {"content-encoding": "gzip", "etag": f"W/{tag}"}
                content = packed
        return Response(content, headers=headers, media_type=_BINARY)

    async def _part(self, digest: bytes, asked: str, headers: dict[str, str]) -> Response:
        size = await asyncio.to_thread(self._blobs.size, digest)
        if size is None:
            raise _not_found("UNKNOWN_BLOB", f"The file {digest.hex()} is not in the blob store.")
        found = _RANGE.fullmatch(asked.replace(" ", ""))
        first, last = found.groups() if found else ("", "")
        if first:
            start, end = int(first), min(int(last) + 1 if last else size, size)
        else:
            start, end = max(size - int(last or 0), 0), size
        if not (first or last) or start >= end:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{size}"})
        content = await asyncio.to_thread(self._read, digest, start, end - start)
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        return Response(content, status_code=206, headers=headers, media_type=_BINARY)

    def _read(self, digest: bytes, offset: int, length: int | None) -> bytes:
        try:
            return self._blobs.read(digest, offset, length)
        except BlobMissing as error:
            raise _not_found("UNKNOWN_BLOB", f"The file {digest.hex()} is not in the blob store.") from error


def _number_in(request: Request, name: str, default: Default) -> int | Default:
    """Returns a number of the query; the default where there is none."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 32:
        raise _malformed(f"{name}={text[:40]!r} is no number")
    return int(text)


def _file(blob: BlobReference) -> dict[str, Any]:
    return {"digest": blob.digest.hex(), "size": blob.size, "path": f"/v1/blobs/{blob.digest.hex()}"}


def _told(message: Message) -> Response:
    told = as_dict(message)
    told["checkpoint_digest"] = message.checkpoint_digest.hex()  # type: ignore[attr-defined]  # all answers have it
    return JSONResponse(told, headers={"cache-control": "no-store"})


def _parse(body: bytes, into: Message) -> None:
    try:
        json_format.Parse(body or b"{}", into)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"The body is no JSON of {into.DESCRIPTOR.name}: {str(error)[:200]}") from error


def _malformed(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", f"{message}.", "See /openapi.json.")


def _not_found(reason: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, reason, message, "Ask /v1/tasks/TASK what is live.")
