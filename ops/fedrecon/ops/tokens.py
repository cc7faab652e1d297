"""Round tokens: how an aggregator knows that the coordinator assigned a session.

A token is the expiry (8 bytes, little-endian Unix milliseconds) and HMAC-SHA256, under a key that coordinators and
aggregators share, over a domain, the round, the session and that expiry. It is bound to one session of one attempt, so
it opens no other; that each phase is accepted once is the aggregator's own ledger.
"""

from __future__ import annotations

import hashlib
import hmac

from fedrecon.v1.common_pb2 import RoundKey

SESSION_BYTES = 16
_DOMAIN = b"fedrecon round token 1"
_EXPIRY_BYTES = 8


class BadTokenError(Exception):
    """A round token is forged, belongs to another session, or has expired."""


def issue_token(key: bytes, round_key: RoundKey, session: bytes, expires_unix_milliseconds: int) -> bytes:
    """Return the token of one session, 40 bytes."""
    expiry = expires_unix_milliseconds.to_bytes(_EXPIRY_BYTES, "little")
    return expiry + _mac(key, round_key, session, expiry)


def verify_token(key: bytes, round_key: RoundKey, session: bytes, token: bytes, now_unix_milliseconds: int) -> None:
    """Raise unless the token was issued for this session of this attempt and has not expired.

    Raises:
        BadTokenError: with what is wrong, without saying what would be right.
    """
    expiry, mac = token[:_EXPIRY_BYTES], token[_EXPIRY_BYTES:]
    if len(session) != SESSION_BYTES or not hmac.compare_digest(mac, _mac(key, round_key, session, expiry)):
        raise BadTokenError("the round token does not belong to this session of this round")
    if int.from_bytes(expiry, "little") < now_unix_milliseconds:
        raise BadTokenError("the round token has expired: the round is over")


def _mac(key: bytes, round_key: RoundKey, session: bytes, expiry: bytes) -> bytes:
    task = round_key.task.encode()
    numbers = [len(task), round_key.round, round_key.attempt, len(session)]
    parts = [_DOMAIN, *(number.to_bytes(8, "little") for number in numbers), task, session, expiry]
    return hmac.digest(key, b"".join(parts), hashlib.sha256)
