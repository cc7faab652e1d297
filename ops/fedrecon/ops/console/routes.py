"""What the console answers over HTTP: its pages, their data as JSON, changes, and a stream of events.

| | |
|---|---|
| `GET /`, `/sign-in`, `/tasks/TASK`, `/tasks/TASK/rounds/N`, `/services`, `/audit` | the page |
| `GET /console/FILE` | its files |
| `POST /api/sign-in`, `/api/sign-out`; `GET /api/me` | who is signed in |
| `GET /api/tasks`, `/api/tasks/TASK`, `.../rounds`, `.../rounds/N`, `.../history`, `.../checkpoints` | what is shown |
| `GET /api/tasks/TASK/events` | the same task after every change, as server-sent events |
| `POST /api/tasks/TASK/pause`, `resume`, `cancel`, `roll-back` | changes, audited by Admin |
| `GET /api/services`, `/api/audit` | aggregators; who changed what |

Rules: whoever is not signed in gets the page and nothing else. A change carries the session's proof in a header, which
other sites can neither know nor send. At this machine's own address only its own names are answered, so that no other
site can pose as it (DNS rebinding). What cannot be undone is confirmed by the task's name, here as in the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from fedrecon.ops.boundary import Refusal
from fedrecon.ops.clock import Clock
from fedrecon.ops.console.asking import Asking
from fedrecon.ops.console.links import BadCodeError, Codes
from fedrecon.ops.console.sessions import Session, Sessions
from fedrecon.ops.console.views import (
    aggregators_view,
    audit_view,
    checkpoint_view,
    point_view,
    recommenders_view,
    round_view,
    task_view,
)
from fedrecon.ops.http_server import read_body
from fedrecon.ops.static_files import StaticFiles
from fedrecon.v1 import admin_pb2 as admin

FOLDER = Path(__file__).parent / "web"

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    **dict.fromkeys(
        ("console.js", "asking.js", "charts.js", "elements.js", "pages.js", "task_page.js", "dialogs.js", "words.js"),
        "text/javascript; charset=utf-8",
    ),
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PROOF_HEADER = "x-fedrecon-proof"
_MOST_ROUNDS = 500
_MOST_POINTS = 400
_MOST_AUDIT = 500
_PACKED_BYTES = 1_000
_HEARTBEAT_SECONDS = 15.0
_LOCAL_HOST = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)
_NO_STORE = {"cache-control": "no-store"}

Answering = Callable[[Request, Session], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Door:
    """How the console is reached.

    Attributes:
        cookie: Name of the cookie: consoles on several ports of one machine have their own.
        is_local: Whether it answers its own machine alone, and so without TLS.
    """

    cookie: str
    is_local: bool


class Console:
    """Answers requests.

    Args:
        asking: Speaks to Admin.
        codes: Links of this machine.
        clock: For sessions, and ages that pages show.
        door: How it is reached.
        stopping: Set when the service drains: streams end then.
    """

    def __init__(self, asking: Asking, codes: Codes, clock: Clock, door: Door, stopping: asyncio.Event) -> None:
        self._asking = asking
        self._codes = codes
        self._clock = clock
        self._door = door
        self._stopping = stopping
        self._sessions = Sessions()
        self._files = StaticFiles(FOLDER, _TYPES, _POLICY, "Begin at /.")

    def routes(self) -> list[BaseRoute]:
        """Returns what is answered."""
        pages = ("/", "/sign-in", "/services", "/audit", "/tasks/{task}", "/tasks/{task}/rounds/{round:int}")
        looks: dict[str, Answering] = {
            "/api/tasks": self.tasks,
            "/api/tasks/{task}": self.task,
            "/api/tasks/{task}/rounds": self.rounds,
            "/api/tasks/{task}/rounds/{round:int}": self.round,
            "/api/tasks/{task}/history": self.history,
            "/api/tasks/{task}/checkpoints": self.checkpoints,
            "/api/tasks/{task}/recommenders": self.recommenders,
            "/api/services": self.services,
            "/api/audit": self.audit,
        }
        packed = [Middleware(GZipMiddleware, minimum_size=_PACKED_BYTES)]
        changes: dict[str, Answering] = {
            "/api/sign-out": self.sign_out,
            "/api/tasks/{task}/pause": self.pause,
            "/api/tasks/{task}/resume": self.resume,
            "/api/tasks/{task}/cancel": self.cancel,
            "/api/tasks/{task}/roll-back": self.roll_back,
        }
        return [
            *(Route(path, self._outside(self.page)) for path in pages),
            Route("/console/{name}", self._outside(self.file)),
            Route("/api/me", self._outside(self.me)),
            Route("/api/sign-in", self._outside(self.sign_in), methods=["POST"]),
            Route("/api/tasks/{task}/events", self._outside(self._signed_in(self.events))),
            *(
                Route(path, self._outside(self._signed_in(answering)), middleware=packed)
                for path, answering in looks.items()
            ),
            *(
                Route(path, self._outside(self._signed_in(answering, changes=True)), methods=["POST"])
                for path, answering in changes.items()
            ),
        ]

    async def page(self, request: Request) -> Response:
        """Gives the page."""
        return await self._files.file(request, "index.html")

    async def file(self, request: Request) -> Response:
        """Gives a file of the page."""
        return await self._files.file(request, request.path_params["name"])

    async def sign_in(self, request: Request) -> Response:
        """Takes a token, or the code of a link, and begins a session."""
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise _malformed("Sign in with JSON")  # what a form of another site cannot send
        told = await _json_of(request)
        token, code, now = told.get("token", ""), told.get("code", ""), self._clock.now_milliseconds()
        if not isinstance(token, str) or not isinstance(code, str) or bool(token) == bool(code):
            raise _malformed("Give a token or a code")
        name = ""
        if code:
            try:
                name = self._codes.take(code, now)
            except BadCodeError as error:
                raise Refusal(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "BAD_CODE",
                    "This link was used, is too old, or is not of this console.",
                    "`fedrecon console --link` makes another.",
                ) from error
        session = await self._asking.introduce(token.strip(), name, now)
        response = JSONResponse(_introduction(session), headers=_NO_STORE)
        response.set_cookie(
            self._door.cookie,
            self._sessions.begin(session),
            path="/",
            httponly=True,
            samesite="strict",
            secure=not self._door.is_local,
        )
        return response

    async def sign_out(self, request: Request, session: Session) -> Response:
        """Ends a session."""
        del session
        self._sessions.end(request.cookies[self._door.cookie])
        response = _told({})
        response.delete_cookie(self._door.cookie, path="/")
        return response

    async def me(self, request: Request) -> Response:
        """Tells who is signed in; nothing if nobody is."""
        session = self._session(request)
        return _told({} if session is None else _introduction(session))

    async def tasks(self, request: Request, session: Session) -> Response:
        """Tells all tasks, each with its privacy."""
        del request
        listed = (await self._asking.call(session, "ListTasks", admin.ListTasksRequest())).tasks
        claims = await asyncio.gather(*(self._privacy(session, each.spec.name) for each in listed))
        now = self._clock.now_milliseconds()
        return _told({"tasks": [task_view(task, claim, now) for task, claim in zip(listed, claims, strict=True)]})

    async def task(self, request: Request, session: Session) -> Response:
        """Tells a task, with its privacy."""
        name = request.path_params["task"]
        found = (await self._asking.call(session, "GetTask", admin.GetTaskRequest(task=name))).task
        return _told(task_view(found, await self._privacy(session, name), self._clock.now_milliseconds()))

    async def rounds(self, request: Request, session: Session) -> Response:
        """Tells attempts, newest first, a page of them."""
        asked = admin.ListRoundsRequest(
            task=request.path_params["task"],
            limit=_number(request, "limit", 60, _MOST_ROUNDS),
            before_round=_number(request, "before", 0, 1 << 62),
        )
        listed = (await self._asking.call(session, "ListRounds", asked)).rounds
        return _told({"rounds": [round_view(each) for each in listed]})

    async def round(self, request: Request, session: Session) -> Response:
        """Tells the journal of a round in words."""
        asked = admin.ExplainRoundRequest(task=request.path_params["task"], round=request.path_params["round"])
        told = await self._asking.call(session, "ExplainRound", asked)
        return _told({"attempts": [round_view(each) for each in told.attempts], "story": list(told.story)})

    async def history(self, request: Request, session: Session) -> Response:
        """Tells all rounds in few points."""
        points = _number(request, "points", 200, _MOST_POINTS)
        asked = admin.GetHistoryRequest(task=request.path_params["task"], points=points)
        told = await self._asking.call(session, "GetHistory", asked)
        return _told({"points": [point_view(each) for each in told.points]})

    async def checkpoints(self, request: Request, session: Session) -> Response:
        """Tells checkpoints, newest first."""
        asked = admin.ListCheckpointsRequest(task=request.path_params["task"], limit=_number(request, "limit", 30, 500))
        listed = (await self._asking.call(session, "ListCheckpoints", asked)).checkpoints
        return _told({"checkpoints": [checkpoint_view(each) for each in listed]})

    async def recommenders(self, request: Request, session: Session) -> Response:
        """Tells which versions are served, were, or may be."""
        asked = admin.ListRecommendersRequest(task=request.path_params["task"])
        return _told(recommenders_view(await self._asking.call(session, "ListRecommenders", asked)))

    async def services(self, request: Request, session: Session) -> Response:
        """Tells the aggregators."""
        del request
        listed = (await self._asking.call(session, "ListAggregators", admin.ListAggregatorsRequest())).aggregators
        return _told(aggregators_view(listed))

    async def audit(self, request: Request, session: Session) -> Response:
        """Tells who changed what, newest first."""
        task = request.query_params.get("task", "")
        asked = admin.ListAuditRequest(task=task, limit=_number(request, "limit", 100, _MOST_AUDIT))
        listed = (await self._asking.call(session, "ListAudit", asked)).entries
        return _told({"entries": [audit_view(each) for each in listed]})

    async def events(self, request: Request, session: Session) -> Response:
        """Streams a task after every change."""
        stream = self._events(session, request.path_params["task"])
        return StreamingResponse(stream, media_type="text/event-stream", headers=_NO_STORE)

    async def pause(self, request: Request, session: Session) -> Response:
        """Stops new rounds."""
        name, told = request.path_params["task"], await _json_of(request)
        return await self._change(session, "PauseTask", admin.PauseTaskRequest(task=name, reason=_reason(told)))

    async def resume(self, request: Request, session: Session) -> Response:
        """Goes on."""
        return await self._change(session, "ResumeTask", admin.ResumeTaskRequest(task=request.path_params["task"]))

    async def cancel(self, request: Request, session: Session) -> Response:
        """Ends a task for good, if its name was typed."""
        name, told = request.path_params["task"], await _json_of(request)
        if told.get("confirmed") != name:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "NOT_CONFIRMED",
                "To cancel a task cannot be undone, and its name was not typed.",
                "Type the task's name.",
            )
        return await self._change(session, "CancelTask", admin.CancelTaskRequest(task=name, reason=_reason(told)))

    async def roll_back(self, request: Request, session: Session) -> Response:
        """Makes an older checkpoint live."""
        name, told = request.path_params["task"], await _json_of(request)
        number = told.get("round")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 62:
            raise _malformed("Name the round whose checkpoint becomes live")
        wanted = admin.RollBackRequest(task=name, round=number, reason=_reason(told))
        return await self._change(session, "RollBack", wanted)

    async def _change(self, session: Session, method: str, wanted: Any) -> Response:
        changed = (await self._asking.call(session, method, wanted)).task
        return _told(task_view(changed, None, self._clock.now_milliseconds()))

    async def _privacy(self, session: Session, name: str) -> admin.GetPrivacyResponse:
        claim: admin.GetPrivacyResponse = await self._asking.call(
            session, "GetPrivacy", admin.GetPrivacyRequest(task=name)
        )
        return claim

    async def _events(self, session: Session, name: str) -> AsyncIterator[str]:
        """Yields server-sent events; a comment now and then finds out whether anybody still listens."""
        changes = self._asking.watch(session, name)
        waiting = asyncio.ensure_future(anext(changes))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                await asyncio.wait({waiting, stopping}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    yield ": still here\n\n"
                    continue
                yield _event("task", task_view(waiting.result(), None, self._clock.now_milliseconds()))
                waiting = asyncio.ensure_future(anext(changes))
        except Refusal as refusal:
            yield _event("away", {"reason": refusal.reason, "message": refusal.message, "advice": refusal.advice})
        except StopAsyncIteration:  # the coordinator is being restarted: the browser asks again
            return
        finally:
            for each in (waiting, stopping):
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Refusal):
                    await each

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(self._door.cookie, ""), self._clock.now_milliseconds())

    def _outside(self, answering: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Returns an answer for those who name this console as it is named."""

        async def answer(request: Request) -> Response:
            if self._door.is_local and _LOCAL_HOST.fullmatch(request.headers.get("host", "")) is None:
                raise Refusal(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "WRONG_HOST",
                    "This console answers its own machine alone.",
                    "Open it as localhost; to reach it from elsewhere give it a certificate and FEDRECON_HOST.",
                )
            return await answering(request)

        return answer

    def _signed_in(self, answering: Answering, *, changes: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """Returns an answer for those who are signed in, and for a change to our own page alone."""

        async def answer(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "NOT_SIGNED_IN", "Nobody is signed in here.", "Sign in.")
            if changes and not hmac.compare_digest(
                request.headers.get(_PROOF_HEADER, "").encode(), session.proof.encode()
            ):
                raise Refusal(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "NOT_OUR_PAGE",
                    "A change must come from the console's own page.",
                    "Load the page again.",
                )
            try:
                return await answering(request, session)
            except Refusal as refusal:
                if refusal.code is grpc.StatusCode.UNAUTHENTICATED:  # the token was withdrawn
                    self._sessions.end(request.cookies[self._door.cookie])
                raise

        return answer


def _introduction(session: Session) -> dict[str, Any]:
    return {"name": session.name, "role": session.role.name.lower(), "proof": session.proof}


def _told(content: dict[str, Any]) -> JSONResponse:
    return JSONResponse(content, headers=_NO_STORE)


def _event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise _malformed(f"{name} is a number")
    return min(int(text), most)


async def _json_of(request: Request) -> dict[str, Any]:
    try:
        told = json.loads(await read_body(request) or b"{}")
    except (ValueError, RecursionError) as error:
        raise _malformed("The body is JSON") from error
    if not isinstance(told, dict):
        raise _malformed("The body is a JSON object")
    return told


def _reason(told: dict[str, Any]) -> str:
    reason = told.get("reason", "")
    if not isinstance(reason, str):
        raise _malformed("A reason is text")
    return reason[:1000]


def _malformed(rule: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", f"{rule}.", "Load the page again.")
