"""A plan on disk: a folder that is whole or not there.

    DIRECTORY/manifest.json     the manifest; the digest of exactly these bytes is the plan's
    DIRECTORY/signature.json    the publisher's word for it
    DIRECTORY/blobs/SHA256      graphs, checkpoint, vocabularies, recorded answers, each under its own digest

Rules: a bundle is written to a temporary folder beside its place, synced, and renamed; a folder that is already
there is never touched; reading checks every digest and the signature.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from fedrecon.learning.planning.values import PlanError, graph_names
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.wire.digests import DigestMismatchError, digest_of, verify_digest
from fedrecon.wire.manifests import BadSignatureError, MalformedPlanError, read_manifest, verify_plan

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
BLOBS = "blobs"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A plan, read and checked.

    Attributes:
        digest: the plan's digest.
        manifest: what it holds.
        signature: who published it.
        blobs: the contents of its blobs by digest.
    """

    digest: bytes
    manifest: plan_pb2.Manifest
    signature: plan_pb2.PlanSignature
    blobs: Mapping[bytes, bytes]


def write_bundle(
    directory: Path, manifest: bytes, signature: plan_pb2.PlanSignature, blobs: Mapping[bytes, bytes]
) -> None:
    """Writes a plan, whole or not at all.

    Args:
        directory: its folder, which must not exist.
        manifest: the exact bytes of `manifest.json`.
        signature: the publisher's word for their digest.
        blobs: contents by digest.

    Raises:
        PlanError: the folder exists or cannot be written.
    """
    refuse_existing(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise PlanError(f"cannot write a plan to {directory}: {error.strerror}") from error
    try:
        (partial / BLOBS).mkdir()
        for digest, content in blobs.items():
            _write(partial / BLOBS / digest.hex(), content)
        text = json_format.MessageToJson(signature, preserving_proto_field_name=True, sort_keys=True)
        _write(partial / SIGNATURE, f"{text}\n".encode())
        _write(partial / MANIFEST, manifest)
        # A temporary folder is its owner's alone; a plan holds nothing secret.
        partial.chmod(0o755)
        _sync_folder(partial / BLOBS)
        _sync_folder(partial)
        refuse_existing(directory)
        partial.rename(directory)
        _sync_folder(directory.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise PlanError(f"cannot write a plan to {directory}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(directory: Path) -> None:
    """Raises where something already is: published plans are never overwritten.

    Raises:
        PlanError: the path exists.
    """
    if directory.exists() or directory.is_symlink():
        raise PlanError(f"{directory} exists; plans are never overwritten: choose another folder, or remove it first")


def read_bundle(directory: Path) -> Bundle:
    """Reads a plan and checks every digest and the signature.

    Raises:
        PlanError: a file is missing or damaged, or the signature is wrong.
    """
    content = _read(directory / MANIFEST)
    digest = digest_of(content)
    try:
        manifest = read_manifest(content)
    except MalformedPlanError as error:
        raise PlanError(f"{directory / MANIFEST}: {error}") from error
    try:
        signature = json_format.Parse(_read(directory / SIGNATURE), plan_pb2.PlanSignature())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise PlanError(f"{directory / SIGNATURE} is no signature: {error}") from error
    try:
        verify_plan(digest, signature)
    except BadSignatureError as error:
        raise PlanError(f"{directory / SIGNATURE}: {error}") from error
    blobs: dict[bytes, bytes] = {}
    for what, reference in references(manifest):
        path = directory / BLOBS / reference.digest.hex()
        blob = _read(path)
        try:
            verify_digest(blob, reference.digest, f"{what} ({path})")
        except DigestMismatchError as error:
            raise PlanError(f"the plan is damaged: {error}") from error
        blobs[reference.digest] = blob
    return Bundle(digest, manifest, signature, blobs)


def references(manifest: plan_pb2.Manifest) -> Iterator[tuple[str, common_pb2.BlobReference]]:
    """Yields every blob that a manifest names, with a name for people."""
    for graph in manifest.graphs:
        yield f"graph {graph_names.get(graph.role, graph.role)}", graph.blob
    yield "initial checkpoint", manifest.initial_checkpoint
    for name in sorted(manifest.vocabularies):
        yield f"vocabulary {name}", manifest.vocabularies[name]
    yield "recorded answers", manifest.recorded_answers


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
