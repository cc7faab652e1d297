"""Whether a call of an assigned session comes from the device to which the session was assigned, and is what it sent.

The MAC is over method, nonce and body under the session key (`fedrecon.wire.proofs`), so a captured call is good for
nothing but the same call again, which gets the stored answer. Without enrolment a device may leave it out; a wrong one
is refused all the same.
"""

from __future__ import annotations

import hmac

import grpc
from google.protobuf.message import Message

from fedrecon.ops.boundary import Refusal
from fedrecon.ops.tokens import session_key
from fedrecon.v1.common_pb2 import Credentials, RoundKey
from fedrecon.wire.proofs import call_mac


def require_proof(
    issuer: bytes,
    method: str,
    message: Message,
    credentials: Credentials,
    round_key: RoundKey,
    session: bytes,
    *,
    is_required: bool,
) -> None:
    """Return if a call is proved, or need not be.

    Args:
        issuer: The key that issued the session's round token, as `verify_token` found it.
        method: As gRPC writes it.
        message: The request; for an upload its header.
        credentials: Those inside it.
        round_key: The attempt that it names.
        session: The session that it names.
        is_required: Whether devices must be enrolled here.

    Raises:
        Refusal: It is not.
    """
    if not credentials.mac and not is_required:
        return
    key = session_key(issuer, round_key, session, credentials.device_key)
    try:
        is_proved = hmac.compare_digest(credentials.mac, call_mac(key, method, message, credentials))
    except ValueError:  # no nonce
        is_proved = False
    if not is_proved:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            "UNPROVEN_CALL",
            f"The call {method} is not proved to come from the session's device.",
            "Make its MAC with the assignment's session key, over method, nonce and body.",
        )
