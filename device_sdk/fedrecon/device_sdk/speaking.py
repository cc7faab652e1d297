"""How a device proves who speaks: it enrols by itself when it is asked to, and signs what it says.

Part of the core: everything here yields requests. A call is made with what the device has: its key alone where no
enrolment was ever asked for, else with its token, and signed, each try anew. Refused with `NOT_ENROLLED` it asks for a
challenge, signs it, lets the app's platform vouch for it where that is wanted, and calls again. A token that runs out
soon is renewed before the next call.

Source: `Credentials` in `common.proto` and `enrolment.proto`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from fedrecon.device_sdk.calling import CALL_SECONDS, Line, Steps
from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.requests import CHALLENGE, ENROL, FORGET, RENEW, Compute, Method
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.enrolment_pb2 import ChallengeRequest, EnrolRequest, ForgetRequest, RenewRequest
from fedrecon.wire.proofs import NONCE_BYTES, call_transcript, enrolment_transcript

Answer = TypeVar("Answer", bound=Message)

NOT_ENROLLED = "NOT_ENROLLED"
_RENEWED_SHARE = 0.25
"""Part of a token's life before its end in which a newer one is asked for."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A token that services gave to this device's key.

    Attributes:
        token: what goes into every signed call.
        renewed_after: Unix seconds from which on it is renewed.
        expires: Unix seconds.
    """

    token: bytes
    renewed_after: float
    expires: float


@dataclass(slots=True)
class Speaker:
    """Who speaks to a coordinator.

    Attributes:
        coordinator: its target.
        device_key: the device's public key, 32 bytes.
        sign: signs with its private half.
        attest: the app's own: returns what the platform says of this device, given what is asked for and the challenge.
        enrolment: the newest token, if there is one.
    """

    coordinator: str
    device_key: bytes
    sign: Callable[[bytes], bytes]
    attest: Callable[[str, bytes], bytes] | None = None
    enrolment: Enrolment | None = None

    def call(
        self, line: Line, method: Method[Answer], request: Message, seconds: float = CALL_SECONDS
    ) -> Steps[Answer]:
        """Calls the coordinator as this device, enrolled if that is asked for.

        Args:
            line: the way to it.
            method: which call; its request has `credentials`, which are filled in here.
            request: what is said.
            seconds: deadline of a try.

        Raises:
            FedreconError: as `Line.call`; the device could not be enrolled.
        """
        yield from self._renew(line)
        try:
            return (
                yield from line.call(self.coordinator, method, lambda: self._proven(line, method, request), seconds)
            )
        except CallFailedError as error:
            if error.reason != NOT_ENROLLED:
                raise
        yield from self.enrol(line)
        return (yield from line.call(self.coordinator, method, lambda: self._proven(line, method, request), seconds))

    def enrol(self, line: Line) -> Steps[None]:
        """Answers a challenge, and keeps the token.

        Raises:
            FedreconError: as `Line.call`; the deployment does not take this device.
        """
        asked = yield from line.call(self.coordinator, CHALLENGE, ChallengeRequest(device_key=self.device_key))
        said = b""
        if asked.attestation and self.attest is not None:
            attest, name, challenge = self.attest, asked.attestation, asked.challenge
            said = yield Compute(lambda: attest(name, challenge))
        request = EnrolRequest(
            device_key=self.device_key,
            challenge=asked.challenge,
            attestation=said,
            signature=self.sign(enrolment_transcript(self.device_key, asked.challenge, said)),
        )
        given = yield from line.call(self.coordinator, ENROL, request)
        self._keep(line, given)

    def forget(self, line: Line) -> Steps[None]:
        """Asks the services to forget this device's key, and when it took part.

        Raises:
            FedreconError: as `Line.call`: they may still know it.
        """
        if self.enrolment is None:
            yield from self.enrol(line)
        yield from self.call(line, FORGET, ForgetRequest())
        self.enrolment = None

    def _renew(self, line: Line) -> Steps[None]:
        """Asks for a newer token where the one there is runs out soon; that it has run out, the next call says."""
        if self.enrolment is None or not self.enrolment.renewed_after <= line.wall_clock() < self.enrolment.expires:
            return
        request = RenewRequest()
        try:
            given = yield from line.call(self.coordinator, RENEW, lambda: self._proven(line, RENEW, request))
        except CallFailedError as error:
            if error.reason != NOT_ENROLLED:
                raise
        else:
            self._keep(line, given)

    def _keep(self, line: Line, given: Any) -> None:
        now, lives = line.wall_clock(), given.expires_within_milliseconds / 1000
        self.enrolment = Enrolment(given.token, now + (1 - _RENEWED_SHARE) * lives, now + lives)

    def _proven(self, line: Line, method: Method[Any], request: Any) -> Message:
        """Returns a request with credentials made for this try."""
        made: Any = type(request)()
        made.CopyFrom(request)
        credentials: Credentials = made.credentials
        credentials.device_key = self.device_key
        if self.enrolment is not None:
            credentials.token = self.enrolment.token
            credentials.nonce = line.entropy(NONCE_BYTES)
            credentials.signature = self.sign(call_transcript(method.path, made, credentials))
        return made  # type: ignore[no-any-return]  # a message of the same type
