"""A plan on disk: a folder that is whole or not there.

Rules: a bundle is written to a temporary folder beside its place, synced, and renamed; a folder that is already
there is never touched; reading checks every digest and the signature.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from fedrecon.learning.planning.values import PlanError
from fedrecon.ops.durable_files import sync_folder
from fedrecon.ops.plan_folders import blob_file, blobs_folder, manifest_file, signature_file
from fedrecon.v1 import plan_pb2
from fedrecon.wire.digests import DigestMismatchError, digest_of, verify_digest
from fedrecon.wire.manifests import (
    BadSignatureError,
    MalformedPlanError,
    blobs_of,
    read_manifest,
    read_signature,
    verify_plan,
)


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
        blobs_folder(partial).mkdir()
        for digest, content in blobs.items():
            _write(blob_file(partial, digest), content)
        text = json_format.MessageToJson(signature, preserving_proto_field_name=True, sort_keys=True)
        _write(signature_file(partial), f"{text}\n".encode())
        _write(manifest_file(partial), manifest)
        # A temporary folder is its owner's alone; a plan holds nothing secret.
        partial.chmod(0o755)
        sync_folder(blobs_folder(partial))
        sync_folder(partial)
        refuse_existing(directory)
        partial.rename(directory)
        sync_folder(directory.parent)
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
    content = _read(manifest_file(directory))
    digest = digest_of(content)
    try:
        manifest = read_manifest(content)
    except MalformedPlanError as error:
        raise PlanError(f"{manifest_file(directory)}: {error}") from error
    try:
        signature = read_signature(_read(signature_file(directory)))
        verify_plan(digest, signature)
    except BadSignatureError as error:
        raise PlanError(f"{signature_file(directory)}: {error}") from error
    blobs: dict[bytes, bytes] = {}
    for what, reference in blobs_of(manifest):
        path = blob_file(directory, reference.digest)
        blob = _read(path)
        try:
            verify_digest(blob, reference.digest, f"{what} ({path})")
        except DigestMismatchError as error:
            raise PlanError(f"the plan is damaged: {error}") from error
        blobs[reference.digest] = blob
    return Bundle(digest, manifest, signature, blobs)


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
