"""What is signed, byte for byte: known answers that another language can be tested against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.v1.aggregator_pb2 import UploadHeader
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.coordinator_pb2 import CheckInRequest
from fedrecon.wire.proofs import call_mac, call_transcript, enrolment_transcript

VECTORS = json.loads((Path(__file__).parents[2] / "protos" / "vectors" / "identity.json").read_text())
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["device_seed"]))


def known(name: str, field: str) -> bytes:
    return bytes.fromhex(VECTORS[name][field])


def test_a_check_in_is_signed_as_other_languages_sign_it() -> None:
    request = CheckInRequest.FromString(known("check_in", "body"))
    request.credentials.signature, request.credentials.mac = b"whatever", b"is there"
    transcript = call_transcript(VECTORS["check_in"]["method"], request, request.credentials)
    assert transcript == known("check_in", "transcript")
    assert KEY.sign(transcript) == known("check_in", "signature")
    assert request.credentials.signature == b"whatever", "the message is left as it was"
    assert request.credentials.device_key.hex() == VECTORS["device_key"]


def test_an_upload_is_proved_as_other_languages_prove_it() -> None:
    header = UploadHeader.FromString(known("upload", "body"))
    credentials = header.proof.credentials
    credentials.mac = bytes(32)
    method = VECTORS["upload"]["method"]
    assert call_transcript(method, header, credentials) == known("upload", "transcript")
    assert call_mac(known("upload", "session_key"), method, header, credentials) == known("upload", "mac")


def test_a_challenge_is_signed_as_other_languages_sign_it() -> None:
    attestation = known("enrolment", "attestation")
    transcript = enrolment_transcript(
        bytes.fromhex(VECTORS["device_key"]), known("enrolment", "challenge"), attestation
    )
    assert transcript == known("enrolment", "transcript")
    assert KEY.sign(transcript) == known("enrolment", "signature")


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_nonce_of_another_length_is_none(length: int) -> None:
    request = CheckInRequest(credentials=Credentials(nonce=bytes(length)))
    with pytest.raises(ValueError, match="16"):
        call_transcript("/fedrecon.v1.Coordinator/CheckIn", request, request.credentials)
