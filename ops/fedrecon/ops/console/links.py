"""Links by which a person at this machine signs in without typing a token: a code that is good once, and soon.

A code is its expiry (8 bytes, little-endian Unix milliseconds), 16 random bytes, who it is for, and HMAC-SHA256 over
these under the deployment's shared key: whoever can read that key is an operator already. It stands behind the `#` of
a link, which browsers do not send, and so in no log.

Rules: a code is taken once. Those that were made before the console began are not taken at all, since it no longer
knows which of them were used.
"""

from __future__ import annotations

import base64
import hmac
import secrets

from fedrecon.ops.key_ring import KeyRing

CODE_MILLISECONDS = 15 * 60_000
"""How long a code is good."""

_DOMAIN = b"fedrecon console code 1"
_EXPIRY_BYTES = 8
_RANDOM_BYTES = 16
_MAC_BYTES = 32
_LONGEST_NAME = 100


class BadCodeError(Exception):
    """A code is forged, was used, or has expired."""


def make_code(key: bytes, name: str, now: int) -> str:
    """Return a code.

    Args:
        key: The deployment's shared key.
        name: Who it is for, as the audit log will say.
        now: Unix milliseconds.
    """
    expiry = (now + CODE_MILLISECONDS).to_bytes(_EXPIRY_BYTES, "little")
    body = expiry + secrets.token_bytes(_RANDOM_BYTES) + name.encode()[:_LONGEST_NAME]
    return base64.urlsafe_b64encode(body + _mac(key, body)).decode().rstrip("=")


class Codes:
    """Takes each code once.

    Args:
        keys: The deployment's shared keys; None where none are known here.
        began: When the console began, Unix milliseconds.
    """

    def __init__(self, keys: KeyRing | None, began: int) -> None:
        self._keys = keys
        self._began = began
        self._used: dict[bytes, int] = {}

    def take(self, code: str, now: int) -> str:
        """Return who a code is for, and take it.

        Args:
            code: As it was given.
            now: Unix milliseconds.

        Raises:
            BadCodeError: It is none, or no longer.
        """
        try:
            content = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
        except ValueError as error:
            raise BadCodeError from error
        body, mac = content[:-_MAC_BYTES], content[-_MAC_BYTES:]
        if self._keys is None or self._keys.find(lambda key: hmac.compare_digest(mac, _mac(key, body))) is None:
            raise BadCodeError
        expiry = int.from_bytes(body[:_EXPIRY_BYTES], "little")
        self._used = {each: until for each, until in self._used.items() if until >= now}
        if not max(now, self._began + CODE_MILLISECONDS) <= expiry <= now + CODE_MILLISECONDS or body in self._used:
            raise BadCodeError
        self._used[body] = expiry
        return body[_EXPIRY_BYTES + _RANDOM_BYTES :].decode(errors="replace")


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, _DOMAIN + body, "sha256")
