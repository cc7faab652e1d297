"""Challenges and enrolment tokens: made and checked without anything being kept.

Both are an expiry (8 bytes, little-endian Unix milliseconds) and HMAC-SHA256 under the services' key over a domain, the
device key and that expiry; a challenge has 16 random bytes besides, so that what a platform vouches for is fresh. A
token says "the owner of this key was enrolled"; it is worth nothing without that key, since calls are signed.
"""

from __future__ import annotations

import hmac

from fedrecon.ops.key_ring import KeyRing

CHALLENGE_MILLISECONDS = 120_000
DEVICE_KEY_BYTES = 32
RANDOM_BYTES = 16

_EXPIRY_BYTES = 8
_CHALLENGE_DOMAIN = b"fedrecon challenge 1"
_TOKEN_DOMAIN = b"fedrecon enrolment token 1"


class NotEnrolledError(Exception):
    """A challenge or token is forged, belongs to another key, or has expired."""


def issue_challenge(keys: KeyRing, device_key: bytes, random: bytes, now: int) -> bytes:
    """Returns a challenge for a key.

    Args:
        keys: Of the services.
        device_key: The device's public key.
        random: 16 random bytes.
        now: Unix milliseconds.
    """
    fresh = random + (now + CHALLENGE_MILLISECONDS).to_bytes(_EXPIRY_BYTES, "little")
    return fresh + _mac(keys.newest, _CHALLENGE_DOMAIN, device_key, fresh)


def verify_challenge(keys: KeyRing, device_key: bytes, challenge: bytes, now: int) -> None:
    """Raises unless a challenge was issued for a key and has not expired.

    Raises:
        NotEnrolledError: With what is wrong.
    """
    cut = RANDOM_BYTES + _EXPIRY_BYTES
    if _read(keys, _CHALLENGE_DOMAIN, device_key, challenge, cut) < now:
        raise NotEnrolledError("the challenge has expired")


def issue_enrolment(keys: KeyRing, device_key: bytes, expires: int) -> bytes:
    """Returns the token of an enrolled key, 40 bytes.

    Args:
        keys: Of the services.
        device_key: The device's public key.
        expires: Unix milliseconds.
    """
    expiry = expires.to_bytes(_EXPIRY_BYTES, "little")
    return expiry + _mac(keys.newest, _TOKEN_DOMAIN, device_key, expiry)


def verify_enrolment(keys: KeyRing, device_key: bytes, token: bytes, now: int) -> int:
    """Returns when a key's token expires, Unix milliseconds.

    Raises:
        NotEnrolledError: It is forged, another key's, or has expired.
    """
    expires = _read(keys, _TOKEN_DOMAIN, device_key, token, _EXPIRY_BYTES)
    if expires < now:
        raise NotEnrolledError("the enrolment has expired")
    return expires


def _read(keys: KeyRing, domain: bytes, device_key: bytes, issued: bytes, cut: int) -> int:
    """Returns the expiry of what was issued for a key; what it says ends at `cut`, and its MAC follows."""
    said, mac = issued[:cut], issued[cut:]
    if keys.find(lambda key: hmac.compare_digest(mac, _mac(key, domain, device_key, said))) is None:
        raise NotEnrolledError("it was not issued for this key")
    return int.from_bytes(said[-_EXPIRY_BYTES:], "little")


def _mac(key: bytes, domain: bytes, device_key: bytes, said: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (domain, device_key, said))
    return hmac.digest(key, framed, "sha256")
