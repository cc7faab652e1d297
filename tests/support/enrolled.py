"""A device with a key of its own that enrols and proves what it says, call by call, so that tests can bend each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInRequest, FinishSessionRequest
from fedrecon.v1.enrolment_pb2 import ChallengeRequest, EnrolRequest
from fedrecon.wire.proofs import call_mac, call_transcript, enrolment_transcript
from support.coordinating import CALL_SECONDS, POPULATION, Coordinator

CHECK_IN = "/fedrecon.v1.Coordinator/CheckIn"
FINISH = "/fedrecon.v1.Coordinator/FinishSession"


@dataclass
class EnrolledDevice:
    """A device, and what it knows."""

    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    token: bytes = b""

    @property
    def key(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    async def enrolment(self, coordinator: Coordinator, attestation: bytes = b"") -> EnrolRequest:
        asked = await coordinator.enrolment.Challenge(ChallengeRequest(device_key=self.key), timeout=CALL_SECONDS)
        signature = self.private.sign(enrolment_transcript(self.key, asked.challenge, attestation))
        return EnrolRequest(
            device_key=self.key, challenge=asked.challenge, attestation=attestation, signature=signature
        )

    async def enrol(self, coordinator: Coordinator, attestation: bytes = b"") -> EnrolledDevice:
        request = await self.enrolment(coordinator, attestation)
        self.token = (await coordinator.enrolment.Enrol(request, timeout=CALL_SECONDS)).token
        return self

    def sign(self, method: str, request: Any) -> Any:
        credentials = request.credentials
        credentials.MergeFrom(Credentials(device_key=self.key, token=self.token, nonce=os.urandom(16)))
        credentials.signature = self.private.sign(call_transcript(method, request, credentials))
        return request

    def check_in(self) -> CheckInRequest:
        request = CheckInRequest(population=POPULATION, sdk_version="0.1.0", plan_formats=[1])
        signed: CheckInRequest = self.sign(CHECK_IN, request)
        return signed

    def finish(self, assignment: Assignment) -> FinishSessionRequest:
        request = FinishSessionRequest(
            credentials=Credentials(device_key=self.key, nonce=os.urandom(16)),
            session=assignment.session,
            round=assignment.round,
            round_token=assignment.round_token,
            outcome=coordinator_pb2.SESSION_OUTCOME_UPLOADED,
            shape="-v[]+^",
        )
        request.credentials.mac = call_mac(assignment.session_key, FINISH, request, request.credentials)
        return request
