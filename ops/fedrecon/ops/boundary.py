"""Where calls enter a service: one interceptor that maps, logs, counts and times each of them.

Rules:
- A service refuses by raising `Refusal`: a gRPC code, a stable reason for programs, a message and advice for people.
  It reaches the caller as the status and as `ErrorInfo` in the trailing metadata `fedrecon-error-bin`.
- Refusals use codes that gRPC itself never makes, so that a caller can tell an answer from a broken connection; the
  few others are told apart by their ErrorInfo, which gRPC never sends.
- Exceptions of libraries and storage are mapped where they are registered (`refuse_as`); any other is our fault:
  INTERNAL with an incident number that stands in the log beside the traceback, and nothing else.
- Every call has a deadline. Health and reflection are exempt: probes and tools of others ask them.
- Who calls too often from one address is refused before its request is read; so is who may not call at all. Calls from
  this machine are not counted: a proxy on it speaks for everybody.
- Logs carry the method, code, reason and time; never a message or a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fedrecon.ops.callers import Callers, UnknownTokenError, current_caller, current_role
from fedrecon.ops.limits import Limits
from fedrecon.ops.logs import logger_of
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.operators import Caller, Role
from fedrecon.v1.common_pb2 import ErrorInfo, RetryWindow

ERROR_METADATA = "fedrecon-error-bin"
_RETRY_SPREAD_MILLISECONDS = 2_000

REFUSAL_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
        # gRPC makes these too: only ErrorInfo tells ours apart.
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
    }
)

_REASON = re.compile(r"[A-Z][A-Z0-9_]*")
# Bytes: all metadata of a call must stay under 8 KiB. In `ErrorInfo` a byte takes 4/3; in the status, what is not ASCII
# takes three for each of its bytes.
_LONGEST_TEXT = 1500
_LONGEST_DETAILS = 600
_EXEMPT = ("/grpc.health.", "/grpc.reflection.")

_log = logger_of(__name__)


class Refusal(Exception):  # noqa: N818 - an answer to the caller, not an error of the service
    """A call that is answered with no.

    Args:
        code: One of `REFUSAL_CODES`.
        reason: Stable word for programs, upper case, for example `UNKNOWN_TASK`.
        message: What was wrong and where, for people; without secrets.
        advice: What to do about it.
        retry_milliseconds: Earliest and latest moment to try again, from now, if that may help.

    Raises:
        ValueError: The code or the reason is not one that may be sent.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        advice: str,
        *,
        retry_milliseconds: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        if code not in REFUSAL_CODES:
            raise ValueError(f"{code} is not a code of refusals: gRPC itself makes it")
        if _REASON.fullmatch(reason) is None:
            raise ValueError(f"the reason {reason!r} is not upper case")
        self.code = code
        self.reason = reason
        self.message = message
        self.advice = advice
        self.retry_milliseconds = retry_milliseconds

    def error_info(self) -> ErrorInfo:
        """The message that travels in `fedrecon-error-bin`."""
        retry = None
        if self.retry_milliseconds is not None:
            earliest, latest = self.retry_milliseconds
            retry = RetryWindow(min_milliseconds=earliest, max_milliseconds=latest)
        return ErrorInfo(
            reason=self.reason,
            message=_cut(self.message, _LONGEST_TEXT),
            advice=_cut(self.advice, _LONGEST_TEXT),
            retry=retry,
        )


def _cut(text: str, longest: int) -> str:
    """Returns the beginning of a text, at most so many bytes of UTF-8."""
    return text.encode(errors="replace")[:longest].decode(errors="ignore")


def too_many_calls(who: str, seconds: float) -> Refusal:
    """The answer to who calls too often.

    Args:
        who: What callers are counted by, for people: `device`, `address`.
        seconds: After which it may call again.
    """
    wait = math.ceil(seconds * 1000)
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        f"This {who} calls too often.",
        "Come back when the retry window says.",
        retry_milliseconds=(wait, wait + _RETRY_SPREAD_MILLISECONDS),
    )


_refusals_of_exceptions: dict[type[Exception], Refusal] = {}


def refuse_as(
    exception_type: type[Exception],
    code: grpc.StatusCode,
    reason: str,
    message: str,
    advice: str,
    *,
    retry_milliseconds: tuple[int, int] | None = None,
) -> None:
    """Answer calls in which this exception, or one derived from it, is raised with a refusal.

    The text is given here and not taken from the exception, which may hold addresses or passwords.

    Args:
        exception_type: The exception.
        code: See `Refusal`, as for all that follow.
        reason: Stable word for programs.
        message: What was wrong.
        advice: What to do about it.
        retry_milliseconds: When to try again.

    Raises:
        ValueError: The code or the reason is not one that may be sent.
    """
    _refusals_of_exceptions[exception_type] = Refusal(
        code, reason, message, advice, retry_milliseconds=retry_milliseconds
    )


def refusal_for(error: BaseException) -> Refusal | None:
    """The refusal that an exception is answered with.

    Args:
        error: What a service raised.

    Returns:
        The exception itself if it is a refusal, the registered one of its nearest base class, or None.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # of a task group inside a call
        return refusal_for(error.exceptions[0])
    for base in type(error).__mro__:
        if base in _refusals_of_exceptions:
            return _refusals_of_exceptions[base]
    return None


def refusal_of(error: grpc.RpcError) -> ErrorInfo | None:
    """Read why a call was refused, on the caller's side.

    Args:
        error: What the call raised, of `grpc` or `grpc.aio`.

    Returns:
        The service's own word, or None where gRPC itself ended the call (for example an unreachable service).
    """
    trailing = getattr(error, "trailing_metadata", None)
    for key, value in (trailing() if trailing is not None else None) or ():
        if key == ERROR_METADATA and isinstance(value, bytes):
            return ErrorInfo.FromString(value)
    return None


@dataclass(slots=True)
class _Ending:
    """How a call ended, as it is logged and counted."""

    code: grpc.StatusCode
    reason: str = ""


class Boundary(grpc.aio.ServerInterceptor):
    """The interceptor of every service.

    Args:
        metrics: Where calls are counted and timed.
        callers: Services and operators that are known.
        limits: How often one address may call; any number by default.

    Attributes:
        idle: Set while no call (health and reflection aside) is under way.
        internal: Names of services, `package.Service`, that devices may not call.
        roles: Their methods, by full name, that operators may call: the least role for it.
    """

    def __init__(self, metrics: Metrics, callers: Callers | None = None, limits: Limits | None = None) -> None:
        self._metrics = metrics
        self._callers = callers or Callers()
        self._limits = limits or Limits(0, 1, time.monotonic)
        self.internal: set[str] = set()
        self.roles: dict[str, Role] = {}
        self._running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put this boundary around the method that is called.

        Args:
            continuation: Gives the service's own method.
            handler_call_details: Name of the method.

        Returns:
            The method within the boundary.
        """
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED; its name is not ours to count
            return handler
        method = handler_call_details.method
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        behaviour: Callable[..., Any] | None
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
            case False, True:
                make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
            case True, False:
                make, behaviour = grpc.stream_unary_rpc_method_handler, handler.stream_unary
            case _:
                make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        assert behaviour is not None  # noqa: S101 - gRPC sets the one that the two flags name
        read = handler.request_deserializer
        if not handler.request_streaming and read is not None:
            behaviour, read = _reading(behaviour, read), None
        around = _with_streamed_answer if handler.response_streaming else _with_unary_answer
        return make(around(self, method, behaviour), read, handler.response_serializer)

    async def call(self, method: str, context: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do the work of one call within the boundary.

        Args:
            method: Full name, `/package.Service/Method`.
            context: gRPC's context of the call.
            work: The service's own method, with its arguments.

        Returns:
            What the work returned.
        """
        exempt = method.startswith(_EXEMPT)
        began = time.monotonic()
        ending = _Ending(grpc.StatusCode.OK)
        if not exempt:
            self._running += 1
            self.idle.clear()
        try:
            if not exempt:
                self._admit(method, context)
            return await work()
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            ending.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:  # the method itself has ended the call
            ending.code = _status_of(context)
            raise
        except Exception as error:  # noqa: BLE001 - all others are answered here, and only here
            await self._refuse(method, context, error, ending)
        finally:
            if ending.code is grpc.StatusCode.OK:
                ending.code = _status_of(context)
            self._note(method, ending, time.monotonic() - began)
            if not exempt:
                self._running -= 1
                if self._running == 0:
                    self.idle.set()

    def _admit(self, method: str, context: Any) -> None:
        """Raise unless a call may be made: its request has not been read yet."""
        address = address_of(context.peer())
        early = 0.0 if address is None else self._limits.note(address)
        if early:
            raise too_many_calls("address", early)
        if context.time_remaining() is None:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "DEADLINE_REQUIRED",
                f"The call {method} has no deadline.",
                "Set a deadline (`timeout=` in Python) on every call.",
            )
        if method.strip("/").partition("/")[0] in self.internal:
            caller = self._known(method, context)
            current_caller.set(caller.name)
            current_role.set(caller.role)

    def _known(self, method: str, context: Any) -> Caller:
        """Return who makes a call that devices may not make, and may make it.

        Raises:
            Refusal: Nobody who may.
        """
        now = time.time_ns() // 1_000_000
        try:
            caller = self._callers.find(method, context.invocation_metadata() or (), context.auth_context(), now)
        except UnknownTokenError as error:
            raise Refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "UNKNOWN_OPERATOR",
                "The operator's token is not known here.",
                "`fedrecon operators new` makes one; the coordinators' FEDRECON_OPERATORS has its SHA-256.",
            ) from error
        needed = self.roles.get(method, Role.SERVICE)
        if caller is None or (needed is Role.SERVICE and caller.role is not Role.SERVICE):
            raise Refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "SERVICE_IDENTITY_REQUIRED",
                f"The call {method} is for services and operators of this deployment.",
                "Services: the same FEDRECON_ROUND_TOKEN_KEY for all, and clocks that agree to within a minute. "
                "Operators: FEDRECON_OPERATOR_TOKEN.",
            )
        if caller.role < needed:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_TOO_LOW",
                f"{caller.name} is {caller.role.name.lower()} here; the call {method} needs {needed.name.lower()}.",
                "Ask somebody who has that role, or an admin for it.",
            )
        return caller

    async def _refuse(self, method: str, context: Any, error: Exception, ending: _Ending) -> None:
        refusal = refusal_for(error)
        if refusal is not None:
            ending.code, ending.reason, explained = refusal.code, refusal.reason, refusal.error_info()
        else:
            incident = secrets.token_hex(6)
            _log.error("call failed", method=method, incident=incident, exc_info=error)
            ending.code, ending.reason = grpc.StatusCode.INTERNAL, "INTERNAL"
            explained = ErrorInfo(
                reason="INTERNAL",
                message=f"The service failed (incident {incident}).",
                advice="Give the incident number to the operator: the service's log has it.",
            )
        await context.abort(
            ending.code,
            _cut(explained.message, _LONGEST_DETAILS),
            # An answer is not a lost call: gRPC's own retries stop, and the caller decides by the retry window.
            trailing_metadata=((ERROR_METADATA, explained.SerializeToString()), ("grpc-retry-pushback-ms", "-1")),
        )

    def _note(self, method: str, ending: _Ending, seconds: float) -> None:
        name = method.lstrip("/")
        self._metrics.grpc_server_handled_total.labels(grpc_method=name, grpc_code=ending.code.name).inc()
        self._metrics.grpc_server_handling_seconds.labels(grpc_method=name).observe(seconds)
        # At thousands of calls a second only what is out of the ordinary is worth a line; who calls too often is not.
        ordinary = ending.code is grpc.StatusCode.OK or ending.reason == "TOO_MANY_CALLS"
        note = _log.debug if ordinary else _log.info
        note("call ended", method=name, code=ending.code.name, reason=ending.reason, seconds=round(seconds, 6))


_STATUSES = {code: status for status in grpc.StatusCode for code in (status, status.value[0])}


def _status_of(context: Any) -> grpc.StatusCode:
    """The code that the method has set on its context; OK if none."""
    return _STATUSES.get(context.code(), grpc.StatusCode.OK)


def address_of(peer: str) -> str | None:
    """Return the address of a peer as gRPC names it; None for this machine's own.

    Example:
        >>> address_of("ipv4:203.0.113.7:52100"), address_of("ipv6:%5B2001:db8::7%5D:52100")
        ('203.0.113.7', '2001:db8::7')
        >>> address_of("ipv4:127.0.0.1:52100"), address_of("unix:/run/fedrecon.sock")
        (None, None)
    """
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]")
    return None if kind not in {"ipv4", "ipv6"} or host.startswith("127.") or host == "::1" else host


def _reading(behaviour: Callable[..., Any], read: Callable[[bytes], Any]) -> Callable[..., Any]:
    """Return a method that reads its request itself, so that the boundary may refuse it unread."""

    def answer(raw: bytes, context: Any) -> Any:
        try:
            request = read(raw)
        except DecodeError as error:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_REQUEST",
                "The request cannot be read.",
                "Send the message that the contract names for this call.",
            ) from error
        return behaviour(request, context)

    return answer


def _with_unary_answer(boundary: Boundary, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:
        return await boundary.call(method, context, lambda: behaviour(request, context))

    return answer


def _with_streamed_answer(boundary: Boundary, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> None:
        async def work() -> None:
            stream: AsyncGenerator[Any, None] | Awaitable[None] = behaviour(request, context)
            if isinstance(stream, Awaitable):  # a method that writes to its context
                await stream
                return
            async with contextlib.aclosing(stream):
                async for message in stream:
                    await context.write(message)

        await boundary.call(method, context, work)

    return answer
