"""The Enrolment service: a device makes itself known, and is forgotten.

Rules: a challenge and a token are genuine by their MAC, so that enrolling keeps nothing; what a platform says is judged
by the deployment's own verifier. To forget a key is to refuse its tokens while one may live, and to erase when its
device took part; nothing else here is named after a device.
"""

from __future__ import annotations

import secrets
from typing import Any

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedrecon.coordinator import ledger
from fedrecon.coordinator.assignments import participation_of
from fedrecon.coordinator.attestation import Attestation, AttestationRefused
from fedrecon.coordinator.enrolment import (
    CHALLENGE_MILLISECONDS,
    DEVICE_KEY_BYTES,
    RANDOM_BYTES,
    NotEnrolledError,
    issue_challenge,
    issue_enrolment,
    verify_challenge,
)
from fedrecon.coordinator.forgotten import Forgotten
from fedrecon.coordinator.speakers import Speakers, not_enrolled
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.logs import logger_of
from fedrecon.v1.enrolment_pb2 import (
    ChallengeRequest,
    ChallengeResponse,
    EnrolRequest,
    EnrolResponse,
    ForgetRequest,
    ForgetResponse,
    RenewRequest,
    RenewResponse,
)
from fedrecon.v1.enrolment_pb2_grpc import EnrolmentServicer
from fedrecon.wire.proofs import enrolment_transcript

RENEW = "/fedrecon.v1.Enrolment/Renew"
FORGET = "/fedrecon.v1.Enrolment/Forget"

_log = logger_of(__name__)


class EnrolmentService(EnrolmentServicer):
    """Answers devices that make themselves known.

    Args:
        around: What the coordinator works with.
        speakers: Judges signed calls.
        forgotten: Keys that are refused.
        token_milliseconds: How long an enrolment lasts.
        attestation: Judges what platforms say; None: any device may enrol.
    """

    def __init__(
        self,
        around: Surroundings,
        speakers: Speakers,
        forgotten: Forgotten,
        token_milliseconds: int,
        attestation: Attestation | None,
    ) -> None:
        self._around = around
        self._speakers = speakers
        self._forgotten = forgotten
        self._token_milliseconds = token_milliseconds
        self._attestation = attestation

    async def Challenge(self, request: ChallengeRequest, context: Any) -> ChallengeResponse:  # noqa: N802 - as in the contract
        """Gives a challenge to a key. See `enrolment.proto`."""
        del context
        self._require_key(request.device_key)
        now = self._around.clock.now_milliseconds()
        random = secrets.token_bytes(RANDOM_BYTES)
        return ChallengeResponse(
            challenge=issue_challenge(self._around.token_keys, request.device_key, random, now),
            expires_within_milliseconds=CHALLENGE_MILLISECONDS,
            attestation="" if self._attestation is None else self._attestation.name,
        )

    async def Enrol(self, request: EnrolRequest, context: Any) -> EnrolResponse:  # noqa: N802
        """Enrols a key. See `enrolment.proto`."""
        del context
        self._require_key(request.device_key)
        now = self._around.clock.now_milliseconds()
        try:
            verify_challenge(self._around.token_keys, request.device_key, request.challenge, now)
        except NotEnrolledError as error:
            raise _bad_enrolment(f"the challenge is not good: {error}") from error
        transcript = enrolment_transcript(request.device_key, request.challenge, request.attestation)
        try:
            Ed25519PublicKey.from_public_bytes(request.device_key).verify(request.signature, transcript)
        except (InvalidSignature, ValueError) as error:
            raise _bad_enrolment("the challenge is not signed by the key") from error
        await self._judge(request)
        return EnrolResponse(
            token=self._token(request.device_key), expires_within_milliseconds=self._token_milliseconds
        )

    async def Renew(self, request: RenewRequest, context: Any) -> RenewResponse:  # noqa: N802
        """Gives a newer token. See `enrolment.proto`."""
        del context
        self._require_token(request.credentials.token)
        await self._speakers.hear(RENEW, request, request.credentials)  # again is as good: it gives nothing away
        key = request.credentials.device_key
        return RenewResponse(token=self._token(key), expires_within_milliseconds=self._token_milliseconds)

    async def Forget(self, request: ForgetRequest, context: Any) -> ForgetResponse:  # noqa: N802
        """Forgets a key. See `enrolment.proto`."""
        del context
        self._require_token(request.credentials.token)
        await self._speakers.hear(FORGET, request, request.credentials)
        key, around = request.credentials.device_key, self._around
        for task in await ledger.load_names(around.journal):
            await around.journal.forget(task, participation_of(around.key, task, key))
        await self._forgotten.add(key, around.clock.now_milliseconds() + self._token_milliseconds)
        return ForgetResponse()

    async def _judge(self, request: EnrolRequest) -> None:
        """Asks the deployment's verifier what a platform's word is worth."""
        if self._attestation is None:
            return
        try:
            await self._attestation.verify(request.device_key, request.challenge, request.attestation)
        except AttestationRefused as error:
            _log.info("attestation refused", verifier=self._attestation.name, why=str(error))
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "ATTESTATION_REFUSED",
                "The platform does not vouch for this device.",
                "Use the app as its store delivers it, on a device that the platform knows.",
            ) from error

    def _require_key(self, device_key: bytes) -> None:
        if len(device_key) != DEVICE_KEY_BYTES:
            raise _bad_enrolment(f"the device's public key has {len(device_key)} bytes, not {DEVICE_KEY_BYTES}")
        if self._forgotten.holds(device_key):
            raise _bad_enrolment("the key was forgotten: make a new one")

    def _require_token(self, token: bytes) -> None:
        """Refuses a call that no one signed, also where devices need not be enrolled."""
        if not token:
            raise not_enrolled("there is no token")

    def _token(self, device_key: bytes) -> bytes:
        expires = self._around.clock.now_milliseconds() + self._token_milliseconds
        return issue_enrolment(self._around.token_keys, device_key, expires)


def _bad_enrolment(why: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "BAD_ENROLMENT",
        f"The device cannot be enrolled: {why}.",
        "Ask for a new challenge, and sign it with the device's own key.",
    )
