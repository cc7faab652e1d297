"""What a device signs, and what goes into a MAC: which call is meant, and all of it.

Source: `Credentials` in `common.proto` and `EnrolRequest` in `enrolment.proto`; Ed25519 as RFC 8032 has it, HMAC as RFC
2104. A signature or MAC over less (a timestamp, a header) lets what was captured be sent with another body.
"""

from __future__ import annotations

import hashlib
import hmac

from google.protobuf.message import Message

from fedrecon.v1.common_pb2 import Credentials

NONCE_BYTES = 16
SESSION_KEY_BYTES = 32

_CALL_DOMAIN = b"fedrecon call 1\0"
_ENROLMENT_DOMAIN = b"fedrecon enrolment 1\0"


def call_transcript(method: str, message: Message, credentials: Credentials) -> bytes:
    """Returns the bytes that are signed, or go into a MAC, for one call.

    Args:
        method: as gRPC writes it, `/package.Service/Method`.
        message: the request; for an upload its header.
        credentials: those inside it; its signature and MAC are left out, its nonce is not.

    Raises:
        ValueError: the nonce has not 16 bytes.
    """
    if len(credentials.nonce) != NONCE_BYTES:
        raise ValueError(f"the nonce has {len(credentials.nonce)} bytes, not {NONCE_BYTES}")
    signature, mac = credentials.signature, credentials.mac
    credentials.signature = credentials.mac = b""
    try:
        body = message.SerializeToString(deterministic=True)
    finally:
        credentials.signature, credentials.mac = signature, mac
    return b"".join([_CALL_DOMAIN, method.encode(), b"\0", credentials.nonce, hashlib.sha256(body).digest()])


def call_mac(session_key: bytes, method: str, message: Message, credentials: Credentials) -> bytes:
    """Returns the MAC of one call of a session, 32 bytes. Arguments and errors as `call_transcript` has them."""
    return hmac.digest(session_key, call_transcript(method, message, credentials), "sha256")


def enrolment_transcript(device_key: bytes, challenge: bytes, attestation: bytes) -> bytes:
    """Returns the bytes that a device signs to be enrolled."""
    digests = hashlib.sha256(challenge).digest() + hashlib.sha256(attestation).digest()
    return _ENROLMENT_DOMAIN + device_key + digests
