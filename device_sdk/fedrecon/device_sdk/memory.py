"""What a device remembers between participations: how many examples are needed, and its last assignment.

Neither names an example. Without a folder it is remembered as long as the process lives.
"""

from __future__ import annotations

import json
from pathlib import Path

from google.protobuf.message import DecodeError

from fedrecon.device_sdk.files import write_atomically
from fedrecon.v1.coordinator_pb2 import Assignment

STATE, ASSIGNMENT = "state.json", "assignment.bin"


class Memory:
    """Remembers for one population.

    Args:
        folder: where files lie; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.minimum_examples = 0
        self.assignment: Assignment | None = None
        if folder is not None:
            self._read(folder)

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
        kept.ClearField("round_token")  # a secret of the session that has ended
        self.assignment = kept
        if self._folder is not None:
            write_atomically(self._folder / ASSIGNMENT, kept.SerializeToString())

    def clear(self) -> None:
        """Forgets everything."""
        self.minimum_examples, self.assignment = 0, None
        if self._folder is not None:
            for name in (STATE, ASSIGNMENT):
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
