"""The place of a user among 10,000: who gets a canary.

HMAC-SHA256 with a secret of whoever computes it, so that nobody else can tell a place from a name, or choose one. A
device uses its own private key and tells nobody; an app's server uses a key of its own over its users' names.
"""

from __future__ import annotations

import hmac

PLACES = 10_000
_DOMAIN = b"fedrecon canary 1"
_PLACE_BYTES = 8


def place_of(key: bytes, task: str, user: bytes = b"") -> int:
    """Returns a place, the same for as long as the key is: 0 to 9,999.

    Args:
        key: The secret.
        task: The task.
        user: Whose place, where one key serves many users; empty on a device.

    Example:
        >>> place_of(bytes(32), "films")
        7545
    """
    named = task.encode() + (b"/" + user if user else b"")
    digest = hmac.digest(key, _DOMAIN + named, "sha256")
    return int.from_bytes(digest[:_PLACE_BYTES], "little") % PLACES
