"""What is fuzzed, and how an input is judged.

A subject is one call of the contract in one situation, with valid inputs to begin from. An input ends as one of:

- refused: `Refusal`, a mapped exception, bytes that are no message; on a device a `FedreconError` or its outcome.
- answered: an answer that changed nothing, or changed what the speaker may change (each subject says what).
- accepted: an answer, or a change of state, that the valid inputs do not cover. What is covered:
  - signed calls and calls with a MAC: the input must equal a valid one, but for `signature` in calls with a MAC and
    `mac` in signed ones, which nobody reads there. Any other input that is answered, or changes anything, is accepted.
  - a member that proves what it says, and lies: once it has spoken in a phase, nothing it says there changes state.
  - without enrolment: the round token proves a session, and one that is done changes nothing, whatever it says; a
    device key that was not drawn gets no assignment.
  - calls of services and operators: without a genuine proof at the boundary nothing is even read.
- crashed: any other exception, on either side.

Services are called directly, as the boundary does after it has parsed a request, so that a million inputs take minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from fedrecon.ops.boundary import refusal_for
from fedrecon.ops.journal import Append, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.wire import keystream

Parts = Sequence[bytes]


class Verdict(Enum):
    """How an input ended."""

    REFUSED = "refused"
    ANSWERED = "answered"
    ACCEPTED = "accepted"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Subject:
    """One call in one situation.

    Attributes:
        name: the situation and the call, unique.
        covers: what of the contract it stands for: methods as gRPC writes them, names of messages devices read.
        kind: type of its messages; None for files.
        seeds: valid inputs.
        feed: gives an input to the code; raises what the code raises that is no refusal.
        share: how often it is chosen, relative to the others.
    """

    name: str
    covers: tuple[str, ...]
    kind: type[Message] | None
    seeds: tuple[Parts, ...]
    feed: Callable[[Parts], Awaitable[Verdict]]
    share: float = 1.0


class FakeContext:
    """A call's context: a deadline that leaves no time to wait, and no metadata."""

    def __init__(self, metadata: Sequence[tuple[str, bytes]] = (), seconds: float = 0.5) -> None:
        self._metadata = metadata
        self._seconds = seconds

    def time_remaining(self) -> float:
        return self._seconds

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> Sequence[tuple[str, bytes]]:
        return self._metadata

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        return {}

    def code(self) -> None:
        return None

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        raise AbortedCall(code, details, trailing_metadata)


class AbortedCall(Exception):  # noqa: N818 - an answer, as gRPC's own AbortError
    """The boundary refused a call."""


class CountingJournal(MemoryJournal):
    """A journal in memory that counts what is written to it."""

    writes = 0

    async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
        await super().append(task, appends, lease=lease)
        self.writes += any(each.events for each in appends)

    async def remember(self, task: str, key: str, until_milliseconds: int) -> bool:
        is_new = await super().remember(task, key, until_milliseconds)
        self.writes += is_new
        return is_new

    async def forget(self, task: str, key: str) -> None:
        await super().forget(task, key)
        self.writes += 1


def parse(parts: Parts, kind: type[Message]) -> list[Any] | None:
    """Returns messages; None if one cannot be read."""
    try:
        return [kind.FromString(part) for part in parts]
    except DecodeError:
        return None


async def one_after_another(messages: Iterable[Any]) -> AsyncIterator[Any]:
    """A stream of requests."""
    for message in messages:
        yield message


async def ask(method: Callable[..., Any], messages: list[Any], *, streams: bool = False) -> Any:
    """Calls a service's method; returns its answer, the first of a stream, or None where it refuses.

    Raises:
        Exception: what is no refusal.
    """
    try:
        called = method(one_after_another(messages) if streams else messages[0], FakeContext())
        if hasattr(called, "__anext__"):
            try:
                return await anext(called, None)
            finally:
                await called.aclose()
        return await called
    except Exception as error:
        if refusal_for(error) is None:
            raise
        return None


@dataclass
class Entropy:
    """Random bytes that are the same every time, so that the valid messages are."""

    name: str
    place: int = field(default=0)

    def __call__(self, count: int = 32) -> bytes:
        words = -(-count // keystream.WORD_BYTES)
        seed = hashlib.sha256(self.name.encode()).digest()
        drawn = keystream.words(seed, "entropy", self.place, words).tobytes()[:count]
        self.place += words
        return drawn


def keep(folder: Path, subject: str, parts: Parts, verdict: Verdict, why: str) -> Path:
    """Keeps an input by name, to be replayed by a test."""
    content = json.dumps(
        {"subject": subject, "found": f"{verdict.value}: {why}", "parts": [part.hex() for part in parts]}
    )
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    path = folder / f"{''.join(letter if letter.isalnum() else '-' for letter in subject)}-{name}.json"
    path.write_text(content + "\n")
    return path


def read_kept(path: Path) -> tuple[str, list[bytes]]:
    """Returns the subject and the input of a kept file."""
    told = json.loads(path.read_text())
    return told["subject"], [bytes.fromhex(part) for part in told["parts"]]
