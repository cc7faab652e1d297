"""Operators by name and role, known by tokens of 256 random bits of which services know only the SHA-256.

`FEDRECON_OPERATORS=alice:admin:HEX,watch:viewer:HEX`; `fedrecon operators new` makes both halves.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum

_OPERATOR = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63}):(viewer|operator|admin):([0-9a-f]{64})")


class Role(IntEnum):
    """What a caller may do: all that a lesser one may, too."""

    VIEWER = 1
    """Looks."""
    OPERATOR = 2
    """Creates, edits and pauses tasks, and rolls back."""
    ADMIN = 3
    """Ends tasks and removes what is stored."""
    SERVICE = 4
    """A service of the deployment."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is known.

    Attributes:
        name: For the audit log.
        role: What it may do.
    """

    name: str
    role: Role


def read_operators(text: str) -> dict[str, Caller]:
    """Return operators by the SHA-256 of their token, hexadecimal.

    Args:
        text: `NAME:ROLE:HEX`, with commas between.

    Raises:
        ValueError: A part is none.

    Example:
        >>> read_operators("alice:viewer:" + "0" * 64)["0" * 64]
        Caller(name='alice', role=<Role.VIEWER: 1>)
    """
    operators = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _OPERATOR.fullmatch(part)
        if found is None:
            raise ValueError("an operator is NAME:viewer|operator|admin:SHA256, as `fedrecon operators new` prints it")
        operators[found[3]] = Caller(found[1], Role[found[2].upper()])
    return operators


def digest_of_token(token: str) -> str:
    """Return what services know of an operator's token."""
    return hashlib.sha256(token.encode()).hexdigest()
