"""Keys, signatures and bundles on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf import json_format

from fedrecon.learning.planning.bundle import read_bundle, write_bundle
from fedrecon.learning.planning.keys import generate_key, read_key
from fedrecon.learning.planning.manifest import Blobs
from fedrecon.learning.planning.values import PlanError
from fedrecon.v1 import plan_pb2
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import sign_plan, write_manifest

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def write_small(directory: Path) -> bytes:
    blobs = Blobs()
    manifest = plan_pb2.Manifest(
        format=1, name="small", initial_checkpoint=blobs.add(b"weights"), recorded_answers=blobs.add(b"answers")
    )
    content = write_manifest(manifest)
    write_bundle(directory, content, sign_plan(digest_of(content), KEY), blobs.contents)
    return digest_of(content)


def test_a_new_key_is_its_owners_alone_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "publisher.pem"
    public = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path).public_key().public_bytes_raw().hex() == public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "publisher.pem"
    generate_key(path)
    before = path.read_bytes()
    with pytest.raises(PlanError, match="never overwritten"):
        generate_key(path)
    assert path.read_bytes() == before


def test_what_is_no_key_is_refused_with_its_path(tmp_path: Path) -> None:
    missing, text, other = tmp_path / "missing", tmp_path / "text", tmp_path / "other"
    text.write_text("hello")
    pem, pkcs8, bare = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    other.write_bytes(X25519PrivateKey.generate().private_bytes(pem, pkcs8, bare))
    for path, message in (
        (missing, "cannot read the key"),
        (text, "no unencrypted private key"),
        (other, "no Ed25519"),
    ):
        with pytest.raises(PlanError, match=message) as refusal:
            read_key(path)
        assert str(path) in str(refusal.value)


def test_a_signature_of_another_plan_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "plan")
    path = tmp_path / "plan" / "signature.json"
    path.write_text(json_format.MessageToJson(sign_plan(digest_of(b"another"), KEY), preserving_proto_field_name=True))
    with pytest.raises(PlanError, match=r"signature\.json: the signature of plan .* is not that of publisher"):
        read_bundle(tmp_path / "plan")


def test_a_bundle_reads_back(tmp_path: Path) -> None:
    digest = write_small(tmp_path / "new" / "plan")
    bundle = read_bundle(tmp_path / "new" / "plan")
    assert bundle.digest == digest
    assert bundle.blobs[bundle.manifest.initial_checkpoint.digest] == b"weights"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_whatever_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "plan"
    match kind:
        case "folder":
            directory.mkdir()
        case "file":
            directory.write_text("mine")
        case _:
            directory.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PlanError, match="never overwritten"):
        write_small(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(28, f"No space left on device for {path} and {target}")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PlanError, match="cannot write a plan"):
        write_small(tmp_path / "plan")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read .*manifest\.json"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{]")
    with pytest.raises(PlanError, match="manifest cannot be read"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    (tmp_path / "signature.json").write_text("{}")
    with pytest.raises(PlanError, match="is not that of publisher"):
        read_bundle(tmp_path)
