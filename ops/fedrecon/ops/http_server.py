"""HTTP beside gRPC: an ASGI app that lives and ends with its service.

Rules: the same certificates, limits and refusals as gRPC has: a refusal is JSON with its reason, message and advice,
under the status that HTTP has for its code. Bodies are read up to a limit. Requests are logged like calls: by route,
never by content.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from fedrecon.ops.boundary import Refusal, too_many_calls
from fedrecon.ops.limits import Limits
from fedrecon.ops.logs import logger_of
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings

MOST_BODY_BYTES = 1 << 20
_BURST_SECONDS = 10
_KEEP_ALIVE_SECONDS = 75
_DRAIN_SECONDS = 5
_ADVICE = "See /openapi.json."

STATUS_OF_CODES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
}

_log = logger_of(__name__)

Answering = Callable[[Request], Awaitable[Response]]


def make_app(routes: list[BaseRoute], settings: Settings) -> Starlette:
    """Return an app that refuses as gRPC does.

    Args:
        routes: What it answers.
        settings: Of the service: how often an address may call.
    """
    rate = settings.address_calls_per_second
    limits = Limits(rate, max(round(rate * _BURST_SECONDS), 1), time.monotonic)
    app = Starlette(routes=routes, exception_handlers={Refusal: _refused, 404: _no_such_page, 405: _wrong_method})
    app.add_middleware(_Boundary, limits=limits)
    return app


async def read_body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        Refusal: It is larger than `MOST_BODY_BYTES`.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "TOO_LARGE",
                f"The body has more than {MOST_BODY_BYTES} bytes.",
                "Send fewer examples.",
            )
        parts.append(part)
    return b"".join(parts)


def refusal_response(refusal: Refusal) -> Response:
    """Return a refusal as HTTP has it."""
    told: dict[str, Any] = {"reason": refusal.reason, "message": refusal.message, "advice": refusal.advice}
    headers = {"cache-control": "no-store"}
    if refusal.retry_milliseconds is not None:
        told["retry_milliseconds"] = list(refusal.retry_milliseconds)
        headers["retry-after"] = str(math.ceil(refusal.retry_milliseconds[0] / 1000))
    return JSONResponse(told, STATUS_OF_CODES[refusal.code], headers)


def open_http_socket(settings: Settings, port: int, port_setting: str) -> socket.socket:
    """Return a bound socket.

    Args:
        settings: Of the service: the host.
        port: 0 for a free one.
        port_setting: Field of the settings that holds it, for the message when it is taken.

    Raises:
        UserMistake: The port is taken, or the host is not this machine's.
    """
    try:
        return socket.create_server((settings.host, port), backlog=1024)
    except OSError as error:
        raise UserMistake(
            f"FEDRECON_{port_setting.upper()}={port} cannot be opened on {settings.host}: {error.strerror or error}.",
            "Choose another port, or 0 for a free one.",
        ) from error


async def serve_http(app: Starlette, opened: socket.socket, settings: Settings) -> None:
    """Answer requests until cancelled; requests under way may end.

    Args:
        app: What answers.
        opened: Where, as `open_http_socket` gives it; it is closed at the end.
        settings: Of the service: certificates.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    config.load()
    config.ssl = _encryption(settings)
    server = _Server(config)
    serving = asyncio.create_task(server.serve([opened]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await serving
        opened.close()


class _Server(uvicorn.Server):
    """A server whose process listens to signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _encryption(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context


class _Boundary:
    """Lets every address call as often as the settings say, and logs each request by its route."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        early = self._limits.note((scope.get("client") or ("",))[0])
        try:
            if early:
                await refusal_response(too_many_calls("address", early))(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "")
            seconds = round(time.monotonic() - began, 6)
            _log.debug("request ended", method=scope["method"], route=route, status=status, seconds=seconds)


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refusal)  # noqa: S101 - registered for it
    return refusal_response(error)


async def _no_such_page(request: Request, error: Exception) -> Response:
    del error
    what = f"There is no {request.url.path}."
    return refusal_response(Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_PATH", what, _ADVICE))


async def _wrong_method(request: Request, error: Exception) -> Response:
    del error
    what = f"{request.method} is not for this path."
    return JSONResponse({"reason": "WRONG_METHOD", "message": what, "advice": _ADVICE}, 405)
