"""What a device remembers between participations: how many examples are needed, its last assignments, its enrolment.

And when it may come back, whether the user has opted out, and the session of a process that died. None names an
example. Without a folder it is remembered as long as the process lives. A file that cannot be read counts as not there:
the next participation writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from fedrecon.device_sdk.files import remove, write_atomically
from fedrecon.device_sdk.speaking import Enrolment
from fedrecon.device_sdk.unfinished import Unfinished, read_unfinished
from fedrecon.v1.coordinator_pb2 import Assignment

Value = TypeVar("Value")

STATE, ASSIGNMENT, ASSIGNMENT_BEFORE = "state.json", "assignment.bin", "assignment-before.bin"
ENROLMENT, UNFINISHED, OPTED_OUT = "enrolment.json", "session.json", "opted-out"


@dataclass(frozen=True, slots=True)
class Rest:
    """When a device may come back, by its own clock.

    Attributes:
        since: Unix seconds at which it was told.
        until: Unix seconds.
    """

    since: float = 0.0
    until: float = 0.0

    def seconds_left(self, now: float) -> float:
        """Returns how long it rests yet; not at all where the clock was turned back or far ahead since.

        Args:
            now: Unix seconds.
        """
        return self.until - now if self.since <= now < self.until else 0.0


class Memory:
    """Remembers for one population.

    Args:
        folder: where files lie; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read_all()

    def read_again(self) -> None:
        """Reads what lies on disk: another process may have written it."""
        if self._folder is not None:
            self._read_all()

    def _read_all(self) -> None:
        self.assignment = self._read(ASSIGNMENT, Assignment.FromString)
        self.assignment_before = self._read(ASSIGNMENT_BEFORE, Assignment.FromString)
        self.enrolment = self._read(ENROLMENT, _read_enrolment)
        self.unfinished = self._read(UNFINISHED, read_unfinished)
        self.minimum_examples, self.rest = self._read(STATE, _read_state) or (0, Rest())
        self.is_opted_out = self._read(OPTED_OUT, len) is not None

    def keep_enrolment(self, enrolment: Enrolment | None) -> None:
        """Remembers the token of this device's key."""
        changed, self.enrolment = enrolment != self.enrolment, enrolment
        if changed:
            self._write(ENROLMENT, None if enrolment is None else _enrolment_text(enrolment))

    def keep_assignment(self, assignment: Assignment) -> None:
        """Remembers the assignment whose plan and checkpoint are in the cache, and the one before."""
        kept = Assignment()
        kept.CopyFrom(assignment)
        kept.ClearField("round_token")  # secrets of the session that has ended
        kept.ClearField("session_key")
        if self.assignment is not None and self.assignment.checkpoint.digest != kept.checkpoint.digest:
            self.assignment_before = self.assignment
            self._write(ASSIGNMENT_BEFORE, self.assignment.SerializeToString())
        self.assignment = kept
        self._write(ASSIGNMENT, kept.SerializeToString())

    def keep_state(self, minimum_examples: int, rest: Rest) -> None:
        """Remembers what the last participation told.

        Args:
            minimum_examples: examples without which the coordinator has no use for a device.
            rest: when to come back.
        """
        self.minimum_examples, self.rest = minimum_examples, rest
        text = {"minimum_examples": minimum_examples, "since": rest.since, "until": rest.until}
        self._write(STATE, json.dumps(text).encode())

    def keep_unfinished(self, unfinished: Unfinished | None) -> None:
        """Remembers a session while it lasts."""
        self._write(UNFINISHED, None if unfinished is None else unfinished.to_bytes())
        self.unfinished = unfinished

    def keep_opted_out(self, *, is_opted_out: bool) -> None:
        """Remembers whether the user takes part at all."""
        self._write(OPTED_OUT, b"the user takes no part\n" if is_opted_out else None)
        self.is_opted_out = is_opted_out

    def clear(self) -> None:
        """Forgets everything but that the user has opted out."""
        for name in (STATE, ASSIGNMENT, ASSIGNMENT_BEFORE, ENROLMENT, UNFINISHED):
            self._write(name, None)
        self.minimum_examples, self.rest = 0, Rest()
        self.assignment = self.assignment_before = self.enrolment = self.unfinished = None

    def _write(self, name: str, content: bytes | None) -> None:
        if self._folder is None:
            return
        if content is None:
            remove(self._folder / name)
        else:
            write_atomically(self._folder / name, content)

    def _read(self, name: str, parse: Callable[[bytes], Value | None]) -> Value | None:
        if self._folder is None:
            return None
        try:
            return parse((self._folder / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError, DecodeError, KeyError, TypeError, ValueError):
            return None


def _enrolment_text(enrolment: Enrolment) -> bytes:
    return json.dumps({**asdict(enrolment), "token": enrolment.token.hex()}).encode()


def _read_enrolment(content: bytes) -> Enrolment:
    kept = json.loads(content)
    return Enrolment(bytes.fromhex(kept["token"]), float(kept["renewed_after"]), float(kept["expires"]))


def _read_state(content: bytes) -> tuple[int, Rest]:
    kept = json.loads(content)
    return int(kept["minimum_examples"]), Rest(float(kept["since"]), float(kept["until"]))
