"""One connection to Redis that all callers share, so that concurrent appends share round trips and fsyncs.

While one batch of commands is at the server, whatever is asked next queues up and goes as the next batch: the server
reads it in one go, applies it and flushes its append-only file once before it answers (group commit).

Rules: every command is safe to repeat (the scripts see to that), so a command whose answer was lost is sent again, with
growing pauses shared by all, until `patience_seconds` have passed since it was asked. Scripts are loaded, and
durability is checked, at every connect.
"""

import asyncio
import contextlib
import hashlib
import importlib.resources
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import stamina
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from fedrecon.ops.journal import JournalUnavailable

Argument = bytes | str | int
Check = Callable[[Callable[..., Awaitable[Any]]], Awaitable[None]]
Note = Callable[[str, float], None]

_BATCH_LIMIT = 1024
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
"""How long a server may take to answer one command before its connection is given up: a slow disk's fsync fits in."""

SCRIPTS = {
    name: importlib.resources.files(__package__).joinpath("lua", f"{name}.lua").read_bytes()
    for name in ("acquire", "append", "compact", "discard", "read", "release", "remember", "renew")
}
# Redis names a script by its SHA-1; nothing rests on that being secure.
_DIGESTS = {name: hashlib.sha1(text, usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()}


@dataclass(slots=True, eq=False)
class _Asked:
    """A command on its way, until when it is worth repeating (time of the loop), and whoever waits for its answer."""

    arguments: tuple[Argument, ...]
    deadline: float
    answer: asyncio.Future[Any]


class SharedConnection:
    """Sends commands of many callers over one connection.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        patience_seconds: How long a command is repeated while the server is away.
        check: Run at every connect with a function that sends one command; what it raises ends the connection.
        note: Told how every trip to the server ended, one of `fedrecon.ops.metrics.STORE_OUTCOMES`, and its seconds.

    Raises:
        ValueError: If the URL is of another kind.
    """

    def __init__(self, url: str, patience_seconds: float, check: Check, note: Note | None = None) -> None:
        self._connection_arguments = dict(parse_url(url))
        self._connection_class: type[Any] = self._connection_arguments.pop("connection_class", Connection)  # type: ignore[assignment]
        self._place = _without_password(url)
        self._patience_seconds = patience_seconds
        self._check = check
        self._note = note or (lambda _outcome, _seconds: None)
        self._asked: list[_Asked] = []
        self._sender: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._closed = False

    async def run(self, script: str, keys: list[str], *arguments: Argument) -> Any:
        """Run one of the `SCRIPTS`. Raises as `call`."""
        return await self.call("EVALSHA", _DIGESTS[script], len(keys), *keys, *arguments)

    async def call(self, *arguments: Argument) -> Any:
        """Send a command and return its reply (RESP 2), repeating it while the server is away.

        Raises:
            JournalUnavailable: If it stayed away, refused the password, or will not write.
            DurabilityRefused: If the server reached does not keep what it acknowledges.
        """
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        asked = _Asked(arguments, loop.time() + self._patience_seconds, loop.create_future())
        self._asked.append(asked)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all(), name="journal sender")
        return await asked.answer

    async def connect(self) -> Any:
        """Open a further connection, for a command that blocks. The caller disconnects it.

        Raises:
            RedisError: If the server is away or refuses.
            DurabilityRefused: As `call`.
            JournalUnavailable: If this journal was closed.
        """
        self._refuse_if_closed()
        connection = self._connection_class(
            **self._connection_arguments
            | {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_timeout": _ANSWER_SECONDS}
        )
        try:
            await connection.connect()

            async def call(*arguments: Argument) -> Any:
                await connection.send_command(*arguments)
                return await connection.read_response()

            await self._check(call)
            for text in SCRIPTS.values():
                await call("SCRIPT", "LOAD", text)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error.__cause__, AuthenticationError):  # redis-py wraps it on unix sockets
                raise error.__cause__ from None
            raise
        return connection

    async def close(self) -> None:
        """Give the connection back; commands on their way end with `JournalUnavailable`."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender
        self._fail_all(JournalUnavailable(f"the journal at {self._place} was closed before it answered"))
        await self._hang_up()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise JournalUnavailable(f"the journal at {self._place} was closed by this process: open a new one")

    async def _send_all(self) -> None:
        while self._asked:
            try:
                await self._exchange()
            except Exception as error:
                if not _is_passing(error):
                    raise
                await self._exchange_again()

    async def _exchange_again(self) -> None:
        """Send what stays asked until the server takes it. Made only then: it costs as much as an exchange."""
        await asyncio.sleep(_FIRST_PAUSE_SECONDS)
        async for attempt in stamina.retry_context(
            on=_is_passing,
            attempts=None,
            timeout=None,
            wait_initial=_FIRST_PAUSE_SECONDS,
            wait_max=_LONGEST_PAUSE_SECONDS,
            wait_jitter=_FIRST_PAUSE_SECONDS,
        ):
            with attempt:
                await self._exchange()

    async def _exchange(self) -> None:
        """Send what was asked first and hand out the answers. What has none yet stays asked.

        Raises:
            RedisError: If something may succeed later.
        """
        self._asked = [asked for asked in self._asked if not asked.answer.done()]
        batch = self._asked[:_BATCH_LIMIT]
        if not batch:
            return
        passing: Exception | None
        began = time.monotonic()
        try:
            passing = await self._ask(batch)
            self._note("ok" if passing is None else outcome_of(passing), time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
            self._note(outcome_of(error), time.monotonic() - began)
            await self._hang_up()
            if not _is_passing(error):
                self._fail_all(self._unavailable(error) if isinstance(error, RedisError) else error)
                return
            passing = error
        if passing is None:
            return
        if isinstance(passing, NoScriptError | ReadOnlyError):
            await self._hang_up()  # connecting again loads the scripts, or finds the new primary
        now = asyncio.get_running_loop().time()
        for asked in self._asked:
            if asked.deadline <= now:
                _refuse(asked, self._unavailable(passing))
        raise passing

    async def _ask(self, batch: list[_Asked]) -> ResponseError | None:
        """Send a batch in one go and hand out the answers; return a refusal that may pass, if there was one."""
        if self._connection is None:
            self._connection = await self.connect()
        packed = self._connection.pack_commands([asked.arguments for asked in batch])
        await self._connection.send_packed_command(packed, check_health=False)
        passing: ResponseError | None = None
        for asked in batch:
            try:
                _answer(asked, await self._connection.read_response())
            except ResponseError as error:
                if _is_passing(error):
                    passing = error
                else:
                    _refuse(asked, self._unavailable(error))
        return passing

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _fail_all(self, error: Exception) -> None:
        for asked in self._asked:
            _refuse(asked, error)

    def _unavailable(self, error: Exception) -> JournalUnavailable:
        if _is_passing(error):
            said = f"did nothing for {self._patience_seconds:g} s"
            advice = "see that the server runs, can be reached, takes writes, and has disk and memory left"
        elif isinstance(error, AuthenticationError):
            said, advice = "refused the user or password", "correct them in FEDRECON_REDIS_URL"
        else:
            said, advice = "refused a command", "see that it is Redis 7.0 or later, or Valkey, and the user's rights"
        unavailable = JournalUnavailable(f"the journal at {self._place} {said} ({error}): {advice}")
        unavailable.__cause__ = error
        return unavailable


def _answer(asked: _Asked, reply: Any) -> None:
    if not asked.answer.done():  # its caller may have been cancelled
        asked.answer.set_result(reply)


def _refuse(asked: _Asked, error: Exception) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)


def outcome_of(error: Exception) -> str:
    """Tell in one word what is wrong with the server.

    Example:
        >>> outcome_of(OutOfMemoryError("command not allowed when used memory > 'maxmemory'"))
        'full'
    """
    match error:
        case OutOfMemoryError():
            outcome = "full"
        case ResponseError() if str(error).startswith("MISCONF"):  # its append-only file cannot be written
            outcome = "full"
        case ReadOnlyError():
            outcome = "read_only"
        case ResponseError() if str(error).startswith("NOREPLICAS"):
            outcome = "read_only"
        case AuthenticationError():
            outcome = "refused"
        case RedisConnectionError() | RedisTimeoutError() | ClusterDownError() | MasterDownError() | OSError():
            outcome = "away"
        case _:
            outcome = "refused"
    return outcome


def _is_passing(error: Exception) -> bool:
    """Tell whether the same command may succeed later."""
    match error:
        case AuthenticationError():
            return False
        case (
            RedisConnectionError()
            | RedisTimeoutError()
            | NoScriptError()
            | ReadOnlyError()
            | OutOfMemoryError()
            | ClusterDownError()
            | MasterDownError()
        ):
            return True
        case ResponseError():
            return str(error).startswith(("MISCONF", "BUSY", "NOREPLICAS", "TRYAGAIN"))
        case _:
            return False


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
