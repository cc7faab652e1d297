"""Round tokens: how an aggregator knows that the coordinator assigned a session; and the key of that session.

A token is the expiry (8 bytes, little-endian Unix milliseconds) and HMAC-SHA256, under a key that coordinators and
aggregators share, over a domain, the round, the session and that expiry. It is bound to one session of one attempt, so
it opens no other; that each phase is accepted once is the aggregator's own ledger. A session key is HMAC-SHA256, under
the same key, over another domain, round, session and device key: any service makes it again, and keeps nothing.
"""

from __future__ import annotations

import hmac

from fedrecon.ops.key_ring import KeyRing
from fedrecon.v1.common_pb2 import RoundKey

SESSION_BYTES = 16
_DOMAIN = b"fedrecon round token 1"
_SESSION_KEY_DOMAIN = b"fedrecon session key 1"
_EXPIRY_BYTES = 8


class BadTokenError(Exception):
    """A round token is forged, belongs to another session, or has expired."""


def issue_token(key: bytes, round_key: RoundKey, session: bytes, expires_unix_milliseconds: int) -> bytes:
    """Return the token of one session, 40 bytes."""
    expiry = expires_unix_milliseconds.to_bytes(_EXPIRY_BYTES, "little")
    return expiry + _mac(key, _DOMAIN, round_key, session, expiry)


def verify_token(keys: KeyRing, round_key: RoundKey, session: bytes, token: bytes, now_unix_milliseconds: int) -> bytes:
    """Return the key that issued a token, if it did for this session of this attempt, and the token has not expired.

    Raises:
        BadTokenError: with what is wrong, without saying what would be right.
    """
    expiry, mac = token[:_EXPIRY_BYTES], token[_EXPIRY_BYTES:]
    issuer = keys.find(lambda key: hmac.compare_digest(mac, _mac(key, _DOMAIN, round_key, session, expiry)))
    if len(session) != SESSION_BYTES or issuer is None:
        raise BadTokenError("the round token does not belong to this session of this round")
    if int.from_bytes(expiry, "little") < now_unix_milliseconds:
        raise BadTokenError("the round token has expired: the round is over")
    return issuer


def session_key(issuer: bytes, round_key: RoundKey, session: bytes, device_key: bytes) -> bytes:
    """Return the key under which a device proves the calls of its session, 32 bytes.

    Args:
        issuer: the key that issued the session's round token.
        round_key: the attempt.
        session: the session.
        device_key: the device's: no other speaks in this session.
    """
    return _mac(issuer, _SESSION_KEY_DOMAIN, round_key, session, device_key)


def _mac(key: bytes, domain: bytes, round_key: RoundKey, session: bytes, last: bytes) -> bytes:
    task = round_key.task.encode()
    numbers = [len(task), round_key.round, round_key.attempt, len(session)]
    parts = [domain, *(number.to_bytes(8, "little") for number in numbers), task, session, last]
    if round_key.part:  # one of several: a session opens no other, or its report could be counted in two
        parts.append(round_key.part.to_bytes(8, "little"))
    return hmac.digest(key, b"".join(parts), "sha256")
