"""Who speaks: whether a signed call comes from an enrolled device, and now.

Rules, the cheap first: the token (a MAC) says that the key was enrolled, so nobody uses up what another device may ask
for; then the rate of calls, then the signature over method, nonce and body, then the nonce, which the journal keeps
until the token expires. Without enrolment a key alone is enough; but what is shown is checked all the same.

Source: Ed25519 as RFC 8032 has it, HMAC as RFC 2104; the bytes are those of `fedrecon.wire.proofs`.
"""

from __future__ import annotations

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import Message

from fedrecon.coordinator.enrolment import DEVICE_KEY_BYTES, NotEnrolledError, verify_enrolment
from fedrecon.coordinator.forgotten import Forgotten
from fedrecon.coordinator.nonces import Nonces
from fedrecon.ops.boundary import Refusal, too_many_calls
from fedrecon.ops.clock import Clock
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.limits import Limits
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.wire.proofs import call_transcript


class Speakers:
    """Judges signed calls.

    Args:
        keys: Of the services.
        nonces: Those of calls that were heard.
        forgotten: Keys that are refused.
        limits: How often a key may call.
        clock: The time.
        is_required: Whether a device must be enrolled.
    """

    def __init__(
        self,
        keys: KeyRing,
        nonces: Nonces,
        forgotten: Forgotten,
        limits: Limits,
        clock: Clock,
        *,
        is_required: bool,
    ) -> None:
        self._keys = keys
        self._nonces = nonces
        self._forgotten = forgotten
        self._limits = limits
        self._clock = clock
        self._is_required = is_required

    async def hear(self, method: str, message: Message, credentials: Credentials) -> bool:
        """Returns whether a call is new; False: the same was made before, and only what it was answered may be told.

        Args:
            method: As gRPC writes it.
            message: The request.
            credentials: Those inside it.

        Raises:
            Refusal: It does not come from whom it says, or from one that is not enrolled, or too often.
            JournalUnavailable: It cannot be told whether the call is new.
        """
        device_key = credentials.device_key
        if len(device_key) != DEVICE_KEY_BYTES:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "DEVICE_KEY_REQUIRED",
                f"The device's public key has {len(device_key)} bytes, not {DEVICE_KEY_BYTES}.",
                "Send the Ed25519 key that the device made at first use.",
            )
        if not self._is_required and not credentials.token:
            self._limit(device_key)
            return True
        try:
            expires = verify_enrolment(self._keys, device_key, credentials.token, self._clock.now_milliseconds())
        except NotEnrolledError as error:
            raise not_enrolled(str(error)) from error
        if self._forgotten.holds(device_key):
            raise not_enrolled("the key was forgotten")
        self._limit(device_key)
        verify_signature(method, message, credentials)
        return await self._nonces.is_new(device_key, credentials.nonce, expires)

    def _limit(self, device_key: bytes) -> None:
        early = self._limits.note(device_key)
        if early:
            raise too_many_calls("device", early)


def verify_signature(method: str, message: Message, credentials: Credentials) -> None:
    """Raises unless the owner of the device key signed this call.

    Raises:
        Refusal: Somebody else did, or signed another call.
    """
    try:
        transcript = call_transcript(method, message, credentials)
        Ed25519PublicKey.from_public_bytes(credentials.device_key).verify(credentials.signature, transcript)
    except (InvalidSignature, ValueError) as error:
        raise Refusal(
            grpc.StatusCode.UNAUTHENTICATED,
            "BAD_SIGNATURE",
            f"The call {method} is not signed by the device's key.",
            "Sign method, nonce and body as `Credentials` says, with the key that was enrolled.",
        ) from error


def not_enrolled(why: str) -> Refusal:
    """Returns the answer to who has to enrol first."""
    return Refusal(
        grpc.StatusCode.UNAUTHENTICATED,
        "NOT_ENROLLED",
        f"The device is not enrolled: {why}.",
        "Ask for a challenge, sign it, and call again with the token.",
    )


def replayed() -> Refusal:
    """Returns the answer to a signed call that was made before."""
    return Refusal(
        grpc.StatusCode.ALREADY_EXISTS,
        "REPLAYED",
        "A call with this nonce was made before.",
        "Sign every try anew, with a fresh nonce.",
    )
