"""What devices of a chaos run write down: what they sent, and what they were told.

Rules: a vector is in the log before it leaves its device, an answer as soon as it has arrived, each by one append to
the file, so that a process that is killed takes nothing of it along.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedrecon.ops.journal.codec import Codec


@dataclass(frozen=True, slots=True)
class Sent:
    """A device is about to upload a vector.

    Attributes:
        session: Its session.
        digest: SHA-256 of the vector.
        vector: The vector, without masks.
        is_masked: Whether the digest is that of the vector under its masks.
    """

    session: bytes
    digest: bytes
    vector: bytes
    is_masked: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A device was told that its report counts if its group closes.

    Attributes:
        session: Its session.
        digest: SHA-256 of the vector that was acknowledged.
    """

    session: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """A device was told what became of its report.

    Attributes:
        session: Its session.
        fate: Name of the `ReportFate`, without its prefix.
    """

    session: bytes
    fate: str


@dataclass(frozen=True, slots=True)
class Took:
    """A participation ended.

    Attributes:
        outcome: The SDK's word for it; `dropped out` for a device that vanished.
        reason: Its stable reason.
    """

    outcome: str
    reason: str


Note = Sent | Acknowledged | Told | Took
_CODEC: Codec[Note] = Codec(Sent, Acknowledged, Told, Took)


class DeviceLog:
    """A file that notes are appended to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, note: Note) -> None:
        os.write(self._file, _CODEC.encode(note) + b"\n")


def read_notes(path: Path) -> Iterator[Note]:
    """Yields the notes of a log; a last line that was cut off is left out."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield _CODEC.decode(line)
