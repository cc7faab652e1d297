"""What a device remembers between participations: how many examples are needed, its last assignment, its enrolment.

None names an example. Without a folder it is remembered as long as the process lives.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from google.protobuf.message import DecodeError

from fedrecon.device_sdk.files import write_atomically
from fedrecon.device_sdk.speaking import Enrolment
from fedrecon.v1.coordinator_pb2 import Assignment

STATE, ASSIGNMENT, ENROLMENT = "state.json", "assignment.bin", "enrolment.json"


class Memory:
    """Remembers for one population.

    Args:
        folder: where files lie; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.minimum_examples = 0
        self.assignment: Assignment | None = None
        self.enrolment: Enrolment | None = None
        if folder is not None:
            self._read(folder)

    def keep_enrolment(self, enrolment: Enrolment | None) -> None:
        """Remembers the token of this device's key."""
        changed, self.enrolment = enrolment != self.enrolment, enrolment
        if not changed or self._folder is None:
            return
        if enrolment is None:
            (self._folder / ENROLMENT).unlink(missing_ok=True)
            return
        kept = {**asdict(enrolment), "token": enrolment.token.hex()}
        write_atomically(self._folder / ENROLMENT, json.dumps(kept).encode())

    def keep(self, minimum_examples: int, assignment: Assignment | None) -> None:
        """Remembers what the last participation told; an absent assignment leaves the one before.

        Args:
            minimum_examples: examples without which the coordinator has no use for a device.
            assignment: the assignment whose plan and checkpoint are in the cache.
        """
        changed = minimum_examples != self.minimum_examples
        self.minimum_examples = minimum_examples
        if changed and self._folder is not None:
            write_atomically(self._folder / STATE, json.dumps({"minimum_examples": minimum_examples}).encode())
        if assignment is None:
            return
        kept = Assignment()
        kept.CopyFrom(assignment)
        kept.ClearField("round_token")  # secrets of the session that has ended
        kept.ClearField("session_key")
        self.assignment = kept
        if self._folder is not None:
            write_atomically(self._folder / ASSIGNMENT, kept.SerializeToString())

    def clear(self) -> None:
        """Forgets everything."""
        self.minimum_examples, self.assignment, self.enrolment = 0, None, None
        if self._folder is not None:
            for name in (STATE, ASSIGNMENT, ENROLMENT):
                (self._folder / name).unlink(missing_ok=True)

    def _read(self, folder: Path) -> None:
        """Reads what is there; what cannot be read counts as not remembered."""
        try:
            self.minimum_examples = int(json.loads((folder / STATE).read_bytes())["minimum_examples"])
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            self.minimum_examples = 0
        try:
            self.assignment = Assignment.FromString((folder / ASSIGNMENT).read_bytes())
        except (FileNotFoundError, DecodeError):
            self.assignment = None
        try:
            kept = json.loads((folder / ENROLMENT).read_bytes())
            token, renewed_after, expires = bytes.fromhex(kept["token"]), kept["renewed_after"], kept["expires"]
            self.enrolment = Enrolment(token, float(renewed_after), float(expires))
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            self.enrolment = None
