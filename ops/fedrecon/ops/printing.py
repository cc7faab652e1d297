"""What commands print for programs: one JSON object on one line of standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message


def print_json(value: dict[str, Any]) -> None:
    """Print an object as the last line of a command's output."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, with the contract's own names and with fields that are zero."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
