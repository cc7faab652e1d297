"""Certificates of one's own: an authority that is kept, and a service's certificate that is renewed."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509

from fedrecon.ops.certificates import LOCAL_NAMES, belong_together, keep_certificates, names_in
from fedrecon.ops.command import main
from fedrecon.ops.mistakes import UserMistake

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def certificate_in(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_authority_signs_the_service_for_its_names(tmp_path: Path) -> None:
    files = keep_certificates(tmp_path, LOCAL_NAMES, NOW)
    certificate, authority = certificate_in(files.certificate), certificate_in(files.authority)
    certificate.verify_directly_issued_by(authority)
    assert names_in(certificate) == LOCAL_NAMES
    assert belong_together(files.certificate.read_bytes(), files.key.read_bytes())


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    keep_certificates(tmp_path, LOCAL_NAMES, NOW)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {
        "authority.key": 0o600,
        "service.key": 0o600,
    }


def test_nothing_changes_while_certificates_are_good(tmp_path: Path) -> None:
    keep_certificates(tmp_path, LOCAL_NAMES, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    keep_certificates(tmp_path, LOCAL_NAMES, NOW + dt.timedelta(days=300))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("why", ["runs out", "other names", "key lost", "key of another"])
def test_a_service_gets_a_new_certificate_of_the_same_authority(tmp_path: Path, why: str) -> None:
    files = keep_certificates(tmp_path, LOCAL_NAMES, NOW)
    authority, before = files.authority.read_bytes(), files.certificate.read_bytes()
    names: tuple[str, ...] = LOCAL_NAMES
    now = NOW
    match why:
        case "runs out":
            now = NOW + dt.timedelta(days=340)
        case "other names":
            names = ("fedrecon.example.org",)
        case "key lost":
            files.key.unlink()
        case _:
            files.key.write_bytes((tmp_path / "authority.key").read_bytes())
    keep_certificates(tmp_path, names, now)
    assert files.authority.read_bytes() == authority
    assert files.certificate.read_bytes() != before
    assert names_in(certificate_in(files.certificate)) == names
    assert belong_together(files.certificate.read_bytes(), files.key.read_bytes())


def test_without_the_authoritys_key_nothing_is_signed(tmp_path: Path) -> None:
    keep_certificates(tmp_path, LOCAL_NAMES, NOW)
    (tmp_path / "authority.key").unlink()
    with pytest.raises(UserMistake, match=r"authority\.key is missing or damaged"):
        keep_certificates(tmp_path, ("elsewhere",), NOW)


def test_the_command_prints_the_settings_of_services(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    assert main(["certs", "--out", str(folder), "--name", "fedrecon.example.org", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "FEDRECON_TLS_CERTIFICATE": str(folder / "service.pem"),
        "FEDRECON_TLS_KEY": str(folder / "service.key"),
        "FEDRECON_TLS_SERVER_AUTHORITY": str(folder / "authority.pem"),
    }
    assert names_in(certificate_in(folder / "service.pem")) == ("fedrecon.example.org",)
