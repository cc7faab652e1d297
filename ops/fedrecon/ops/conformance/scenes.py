"""What a scene is, and the pieces that scenes are put together from: calls that fail, and what is said instead.

A scene belongs to one rule of `rules`; its `judge` yields complaints about it, and what holds in every scene is in
`judging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from fedrecon.ops.conformance.hearing import Heard
from fedrecon.ops.conformance.playing import Answers, Intercept, Play, RefusedError, lost
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Assignment, SessionOutcome

UPLOADED = coordinator_pb2.SESSION_OUTCOME_UPLOADED
LOCAL_FAILED = coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED
LOCAL_TIMEOUT = coordinator_pb2.SESSION_OUTCOME_LOCAL_TIMEOUT
NOT_ELIGIBLE = coordinator_pb2.SESSION_OUTCOME_NOT_ELIGIBLE
REFUSED = coordinator_pb2.SESSION_OUTCOME_REFUSED
TOO_LATE = coordinator_pb2.SESSION_OUTCOME_TOO_LATE
UPLOAD_TIMEOUT = coordinator_pb2.SESSION_OUTCOME_UPLOAD_TIMEOUT

GOOD_SHAPE = r"-v\[\]\+\^"
STOPPED_AT_ONCE = r"-[!#]"
STOPPED_BEFORE_UPLOAD = r"-v?\[?\]?[!#]"
STOPPED_LATE = r"-v\[\]\+?[!#]"
STOPPED_SOMEWHERE = r"-v?\[?\]?\+?[!#]"
OF_WORK = ("Fetch", "Join", "Share", "UploadStatus", "Upload", "Unmask")
MINIMUM_GROUP = 3
AGAIN = 2
"""Calls where one was answered badly, and was to be tried again."""

Complaints = Iterator[str]
Change = Callable[[Assignment, dict[bytes, bytes]], None]
"""Makes an assignment, and the blobs that services have, what a scene needs."""

Deed = Callable[[Play, Heard], Answers]


def unchanged(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    """Leaves an assignment as it is."""


def usual(play: Play, call: Heard, before: int) -> Answers | None:
    """Leaves every call to good services."""
    del play, call, before
    return None


@dataclass(frozen=True, slots=True)
class Scene:
    """One participation under known circumstances.

    Attributes:
        name: unique among all.
        rule: which rule its judge is about.
        judge: yields complaints.
        change: makes assignment and blobs what the scene needs.
        intercept: what the services do differently.
        outcomes: how the session may end; empty where the device gets none.
        shape: pattern of the session's shape.
        secure_sum: what the app insists on.
        minimum_group: the same.
        minimum_contributors: the same.
    """

    name: str
    rule: str
    judge: Callable[[Play], Complaints]
    change: Change = unchanged
    intercept: Intercept = usual
    outcomes: frozenset[SessionOutcome.ValueType] = frozenset({UPLOADED})
    shape: str = GOOD_SHAPE
    secure_sum: Literal["required", "allowed"] = "allowed"
    minimum_group: int = MINIMUM_GROUP
    minimum_contributors: int = 0


def first(method: str, do: Deed) -> Intercept:
    """Returns what does something with the first call of a method."""
    return lambda play, call, before: do(play, call) if call.method == method and before == 0 else None


def every(method: str, do: Deed) -> Intercept:
    """Returns what does something with every call of a method."""
    return lambda play, call, _before: do(play, call) if call.method == method else None


def either(*intercepts: Intercept) -> Intercept:
    """Returns what does what the first of some does that does anything."""

    def intercept(play: Play, call: Heard, before: int) -> Answers | None:
        found = (each(play, call, before) for each in intercepts)
        return next((answers for answers in found if answers is not None), None)

    return intercept


def lose_answer(play: Play, call: Heard) -> Answers:
    """Does what is asked, and breaks the connection before the answer."""
    list(play.usual(call))
    raise lost()


def refuse(error: Callable[[], RefusedError]) -> Deed:
    """Returns what refuses a call."""

    def do(play: Play, call: Heard) -> Answers:
        del play, call
        raise error()

    return do


def say(*messages: Message) -> Deed:
    """Returns what gives these answers."""
    return lambda _play, _call: messages


def once(method: str) -> Callable[[Play], Complaints]:
    """Returns what complains unless a method was called once."""

    def judge(play: Play) -> Complaints:
        count = len(play.transcript.of(method))
        if count != 1:
            yield f"{method} was called {count} times, not once"

    return judge


def never(*methods: str) -> Callable[[Play], Complaints]:
    """Returns what complains about every method of these that was called."""

    def judge(play: Play) -> Complaints:
        for method in sorted({call.method for call in play.transcript.of(*methods)}):
            yield f"{method} was called all the same"

    return judge
