"""A real coordinator in this process, and the console in front of it, as operators reach it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrecon.ops.callers import Callers
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.console.__main__ import start
from fedrecon.ops.console.links import make_code
from fedrecon.ops.console.settings import ConsoleSettings
from fedrecon.ops.journal import Journal
from fedrecon.ops.lifecycle import serve
from fedrecon.ops.operators import Caller, Role, digest_of_token
from support.coordinating import KEY, TOKEN_KEYS, House, house

SECONDS = 20.0
TOKENS = {"vera": Role.VIEWER, "olga": Role.OPERATOR, "ada": Role.ADMIN}
"""Operators by name, each with the token `token of NAME`."""

CALLERS = Callers(
    TOKEN_KEYS, {digest_of_token(f"token of {name}"): Caller(name, role) for name, role in TOKENS.items()}
)


@dataclass
class Answer:
    """What the console answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    """Somebody who asks the console, with cookies and the page's own proof, and without a page."""

    address: str
    cookie: str = ""
    proof: str = ""

    async def ask(self, path: str, **headers: str) -> Answer:
        return await asyncio.to_thread(self._request, "GET", path, None, headers)

    async def change(self, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {"content-type": "application/json", "x-fedrecon-proof": self.proof, **headers}
        return await asyncio.to_thread(self._request, "POST", path, json.dumps(body or {}), sent)

    async def enter(self, name: str = "", *, code: str = "") -> Answer:
        answer = await self.change("/api/sign-in", {"code": code} if code else {"token": f"token of {name}"})
        if answer.status == 200:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
            self.proof = answer.json["proof"]
        return answer

    def _request(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS)
        try:
            connection.request(method, path, body, {"cookie": self.cookie, **headers})
            response = connection.getresponse()
            return Answer(
                response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()


@dataclass
class ConsoleHouse:
    """A house whose coordinator and console run."""

    built: House
    target: str
    address: str
    stopping: asyncio.Event = field(repr=False)

    def browser(self) -> Browser:
        return Browser(self.address)

    async def entered(self, name: str) -> Browser:
        browser = self.browser()
        assert (await browser.enter(name)).status == 200
        return browser

    def link(self, name: str = "root@here") -> str:
        return f"http://{self.address}/sign-in#{make_code(KEY, name, SystemClock().now_milliseconds())}"


@contextlib.asynccontextmanager
async def console_of(folder: Path, target: str, **settings_: Any) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Runs a console for a coordinator; gives its address and what stops it."""
    ready = folder / "console.ready.json"
    settings = ConsoleSettings(
        home=folder,
        coordinator_target=target,
        round_token_key=KEY.hex(),
        console_http_port=0,
        metrics_port=-1,
        drain_seconds=1,
        **settings_,
    )
    stopping = asyncio.Event()
    running = asyncio.create_task(serve("console", start, settings, 0, ready_file=ready, stopping=stopping))
    try:
        async with asyncio.timeout(SECONDS):
            while not ready.exists():
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
        yield json.loads(ready.read_text())["http_address"], stopping
    finally:
        stopping.set()
        assert await running == 0


@contextlib.asynccontextmanager
async def console_house(folder: Path, journal: Journal) -> AsyncIterator[ConsoleHouse]:
    """A house with one coordinator, at which operators must be known, and a console in front of it."""
    async with house(folder, journal) as built:
        coordinator = await built.coordinator(callers=CALLERS)
        async with console_of(folder, coordinator.target) as (address, stopping):
            yield ConsoleHouse(built, coordinator.target, address, stopping)
