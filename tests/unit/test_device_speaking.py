"""How a device proves who it is: enrolled when it is asked to, signed anew with every try, renewed in time."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedrecon.device_sdk.device import Device
from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.examples import ExampleStore
from fedrecon.device_sdk.memory import Memory
from fedrecon.device_sdk.participation import Outcome
from fedrecon.device_sdk.speaking import Enrolment, Speaker
from fedrecon.v1.aggregator_pb2 import JoinRequest, UploadHeader, UploadRequest, UploadResponse
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.coordinator_pb2 import CheckInRequest, CheckInResponse, FinishSessionRequest
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
from fedrecon.wire.proofs import call_mac, call_transcript, enrolment_transcript
from support import device_bundle as bundle
from support.device_services import LOST, Services, play

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
SESSION_KEY = b"s" * 32
LIFE = 3_600.0


class Entropy:
    """Never the same bytes twice."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, count: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(4, "little") + bytes(count - 4)


class EnrollingServices(Services):
    """A deployment in which devices must be enrolled; judges every signature as a coordinator does."""

    def __init__(self, plan: Any, lose: list[str] | None = None) -> None:
        assignment = bundle.make_assignment(plan)
        assignment.session_key = SESSION_KEY
        super().__init__(plan, assignment, lose or [])
        self.genuine = {b"first token"}
        self.attestation = ""
        self.nonces: list[bytes] = []
        self.headers: list[UploadHeader] = []
        self.entropy = Entropy()

    def upload(self, request: Any) -> UploadResponse:
        self.headers.append(UploadRequest.FromString(next(request.parts())).header)
        return super().upload(request)

    def prove(self, method: str, message: Message, credentials: Credentials) -> None:
        if credentials.token not in self.genuine:
            raise CallFailedError("not enrolled", code="UNAUTHENTICATED", reason="NOT_ENROLLED")
        assert credentials.nonce not in self.nonces, "a nonce is used once"
        self.nonces.append(credentials.nonce)
        KEY.public_key().verify(credentials.signature, call_transcript(method, message, credentials))

    def CheckIn(self, body: bytes) -> CheckInResponse:  # noqa: N802
        request = CheckInRequest.FromString(body)
        self.prove("/fedrecon.v1.Coordinator/CheckIn", request, request.credentials)
        return super().CheckIn(body)

    def Challenge(self, body: bytes) -> ChallengeResponse:  # noqa: N802
        assert ChallengeRequest.FromString(body).device_key == PUBLIC
        return ChallengeResponse(challenge=b"a challenge", attestation=self.attestation)

    def Enrol(self, body: bytes) -> EnrolResponse:  # noqa: N802
        request = EnrolRequest.FromString(body)
        assert request.attestation == (b"vouched for a challenge" if self.attestation else b"")
        transcript = enrolment_transcript(PUBLIC, b"a challenge", request.attestation)
        KEY.public_key().verify(request.signature, transcript)
        return EnrolResponse(token=b"first token", expires_within_milliseconds=round(1000 * LIFE))

    def Renew(self, body: bytes) -> RenewResponse:  # noqa: N802
        request = RenewRequest.FromString(body)
        self.prove("/fedrecon.v1.Enrolment/Renew", request, request.credentials)
        self.genuine.add(b"second token")
        return RenewResponse(token=b"second token", expires_within_milliseconds=round(1000 * LIFE))

    def Forget(self, body: bytes) -> ForgetResponse:  # noqa: N802
        request = ForgetRequest.FromString(body)
        self.prove("/fedrecon.v1.Enrolment/Forget", request, request.credentials)
        self.genuine.clear()
        return ForgetResponse()


def speaker(enrolment: Enrolment | None = None, attest: Callable[[str, bytes], bytes] | None = None) -> Speaker:
    return Speaker("coordinator:1", PUBLIC, KEY.sign, attest, enrolment)


@pytest.fixture(scope="module")
def plan() -> Any:
    return bundle.make_plan()


def participate(services: EnrollingServices, who: Speaker, **changes: Any) -> Any:
    return play(services, speaker=who, entropy=services.entropy, **changes).participation


def test_a_device_enrols_when_it_is_told_to_and_takes_part(plan: Any) -> None:
    services, who = EnrollingServices(plan), speaker()
    participation = participate(services, who)
    assert participation.outcome is Outcome.UPLOADED
    assert services.names()[:4] == ["CheckIn", "Challenge", "Enrol", "CheckIn"]
    assert [each.message for each in participation.receipt] == services.names()
    assert who.enrolment is not None
    assert who.enrolment.token == b"first token"
    participate(services, who)
    assert services.names().count("Enrol") == 1, "the token is used again"


def test_the_platform_is_asked_where_the_services_want_its_word(plan: Any) -> None:
    services = EnrollingServices(plan)
    services.attestation = "store"
    asked = []

    def attest(name: str, challenge: bytes) -> bytes:
        asked.append(name)
        return b"vouched for " + challenge

    assert participate(services, speaker(attest=attest)).outcome is Outcome.UPLOADED
    assert asked == ["store"]


def test_every_try_of_a_check_in_is_signed_anew(plan: Any) -> None:
    services = EnrollingServices(plan, lose=["CheckIn", "CheckIn"])
    who = speaker(Enrolment(b"first token", 2e9, 2e9))
    assert participate(services, who).outcome is Outcome.UPLOADED
    assert len(set(services.nonces)) == len(services.nonces) == 3


def test_a_token_is_renewed_before_it_expires(plan: Any) -> None:
    services, now = EnrollingServices(plan), 1_700_000_000.0
    who = speaker(Enrolment(b"first token", now - 1, now + 100))
    assert participate(services, who).outcome is Outcome.UPLOADED
    assert services.names()[:2] == ["Renew", "CheckIn"]
    assert who.enrolment is not None
    assert who.enrolment.token == b"second token"
    assert who.enrolment.expires == pytest.approx(now + LIFE, abs=1)
    assert who.enrolment.renewed_after == pytest.approx(now + 0.75 * LIFE, abs=1)


@pytest.mark.parametrize("expires", [-100.0, 100.0])
def test_a_token_that_is_no_good_any_more_is_asked_for_anew(plan: Any, expires: float) -> None:
    services, now = EnrollingServices(plan), 1_700_000_000.0
    who = speaker(Enrolment(b"of another time", now - 200, now + expires))
    assert participate(services, who).outcome is Outcome.UPLOADED
    assert services.names().count("Enrol") == 1


def test_who_is_not_taken_is_told_so_and_does_not_ask_for_ever(plan: Any) -> None:
    services = EnrollingServices(plan)
    services.genuine.clear()
    participation = participate(services, speaker())
    assert (participation.outcome, participation.reason) == (Outcome.FAILED, "NOT_ENROLLED")
    assert services.names() == ["CheckIn", "Challenge", "Enrol", "CheckIn"]


def test_every_call_of_a_session_carries_its_mac(plan: Any) -> None:
    services = EnrollingServices(plan, lose=["Join"])
    participate(services, speaker(Enrolment(b"first token", 2e9, 2e9)))
    joins = [JoinRequest.FromString(body) for body in services.bodies("Join")]
    assert len(joins) == 2
    assert joins[0] == joins[1], "the same bytes again"
    (header,) = services.headers
    finish = FinishSessionRequest.FromString(services.bodies("FinishSession")[0])
    for path, message, credentials in (
        ("/fedrecon.v1.Aggregator/Join", joins[0], joins[0].proof.credentials),
        ("/fedrecon.v1.Aggregator/Upload", header, header.proof.credentials),
        ("/fedrecon.v1.Coordinator/FinishSession", finish, finish.credentials),
    ):
        assert credentials.device_key == PUBLIC
        assert not credentials.token
        assert hmac.compare_digest(credentials.mac, call_mac(SESSION_KEY, path, message, credentials))


def test_the_token_outlives_the_process_and_the_session_key_does_not(tmp_path: Path, plan: Any) -> None:
    memory = Memory(tmp_path)
    memory.keep_enrolment(Enrolment(b"token", 5.0, 7.5))
    assignment = bundle.make_assignment(plan)
    assignment.session_key = SESSION_KEY
    memory.keep_assignment(assignment)
    again = Memory(tmp_path)
    assert again.enrolment == Enrolment(b"token", 5.0, 7.5)
    assert again.assignment is not None
    assert not again.assignment.session_key
    assert all(SESSION_KEY not in path.read_bytes() for path in tmp_path.iterdir())
    (tmp_path / "enrolment.json").write_text("{}")
    assert Memory(tmp_path).enrolment is None
    again.keep_enrolment(None)
    assert Memory(tmp_path).enrolment is None


def device_of(services: EnrollingServices, home: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    class Line:
        def __init__(self, authority: bytes | None) -> None:
            del authority

        async def call(self, request: Any) -> Message:
            return services.call(request)

        async def sleep(self, seconds: float) -> None:
            del seconds

        def close(self) -> None:
            pass

    monkeypatch.setattr("fedrecon.device_sdk.device.BlockingTransport", Line)
    (home / "device.key").write_bytes(KEY.private_bytes_raw())
    Memory(home).keep_enrolment(Enrolment(b"first token", 2e9, 2e9))
    return Device("coordinator:1", "films", ExampleStore(":memory:"), home=home)


def test_forgetting_a_device_erases_what_the_services_hold(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = EnrollingServices(plan)
    assert device_of(services, tmp_path, monkeypatch).forget()
    assert services.names() == ["Forget"]
    assert not (tmp_path / "device.key").exists()
    assert not (tmp_path / "enrolment.json").exists()


def test_a_device_is_forgotten_here_also_when_nobody_answers(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = EnrollingServices(plan)
    services.refuse = {"Forget": LOST}
    assert not device_of(services, tmp_path, monkeypatch).forget()
    assert not (tmp_path / "device.key").exists()
    assert not (tmp_path / "enrolment.json").exists()
