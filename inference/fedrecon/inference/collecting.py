"""Exports that a command asks for: of a task's live checkpoint, fetched by digest, or of a plan's folder.

Rule: every part is checked against its digest, and every export is proved, as the service does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrecon.inference.bundles import (
    Fetch,
    NotExportableError,
    fetch_verified,
    read_bundle,
)
from fedrecon.inference.verifying import Exported, export_proved
from fedrecon.inference.versions import Wanted, wishes_of
from fedrecon.ops.admin_client import BULK_SECONDS, CALL_SECONDS, find_targets, open_admin, open_sync_channel
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.plan_folders import blob_file, manifest_file
from fedrecon.v1.admin_pb2 import GetTaskRequest
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.chunks import ChunkOrderError, take
from fedrecon.wire.digests import DigestMismatchError
from fedrecon.wire.manifests import MalformedPlanError
from fedrecon.wire.tensors import MalformedTensorsError
from fedrecon.wire.vocabularies import MalformedVocabularyError

_DAMAGED = (
    ChunkOrderError,
    DigestMismatchError,
    MalformedPlanError,
    MalformedTensorsError,
    MalformedVocabularyError,
)


def export_from_server(task: str, server: str | None, blobs: str | None) -> Exported:
    """Exports what is live of a task: the live version, or the newest checkpoint where nothing was promoted.

    Args:
        task: its name.
        server: target of the coordinator; None for the stack of this machine.
        blobs: target of a Blobs service; None for the stack's own.

    Raises:
        UserMistake: no stack runs, the blobs' target is missing, or a part arrived damaged.
        NotExportableError: the task has no checkpoint yet, or it cannot become a recommender.
        grpc.RpcError: a service cannot be reached or refuses.
    """
    blobs_target = _blobs_target(server, blobs)
    with open_admin(server) as stub:
        found = stub.GetTask(GetTaskRequest(task=task), timeout=CALL_SECONDS).task
    if not found.checkpoint.digest:
        raise NotExportableError(f"task {task!r} has no checkpoint yet")
    newest = Wanted(0, found.live_round, found.checkpoint, found.spec)
    return export_versions([wishes_of(found).live or newest], server, blobs_target)[0]


def export_versions(versions: Sequence[Wanted], server: str | None, blobs: str | None) -> list[Exported]:
    """Exports versions of what a task serves.

    Args:
        versions: which.
        server: target of the coordinator; None for the stack of this machine.
        blobs: target of a Blobs service; None for the stack's own.

    Raises:
        UserMistake: no stack runs, the blobs' target is missing, or a part arrived damaged.
        NotExportableError: one of them cannot become a recommender.
        grpc.RpcError: a service cannot be reached or refuses.
    """
    with open_sync_channel(_blobs_target(server, blobs)) as channel:
        fetch = _fetch_from(BlobsStub(channel))
        return [_guarded(each, fetch) for each in versions]


def _blobs_target(server: str | None, blobs: str | None) -> str:
    target = blobs or find_targets(server).inference
    if not target:
        raise UserMistake(
            "With --server it must be said where blobs are fetched.",
            "Name aggregator or inference: `--blobs host:port`.",
        )
    return target


def _guarded(wanted: Wanted, fetch: Fetch) -> Exported:
    """Exports a version; says where a part is damaged."""
    spec = wanted.spec
    try:
        bundle = read_bundle(fetch_verified(spec.plan, "plan", fetch), fetch)
        checkpoint = fetch_verified(wanted.checkpoint, "checkpoint", fetch)
        items = fetch_verified(bundle.vocabulary(spec.vocabularies), "vocabulary", fetch)
        return export_proved(bundle, checkpoint, items, spec.name, wanted.round, spec.work)
    except _DAMAGED as error:
        raise UserMistake(f"A part of task {spec.name!r} cannot be used: {error}.", "Try again.") from error


def export_from_folder(plan: Path, checkpoint: Path | None) -> Exported:
    """Exports a plan from its folder, without any server.

    Args:
        plan: folder of the compiled plan: `manifest.json`, `blobs/`.
        checkpoint: a checkpoint file of that plan; None for its initial one.

    Raises:
        UserMistake: a file cannot be read or is damaged.
        NotExportableError: the plan cannot become a recommender.
    """

    def fetch(blob: BlobReference) -> bytes:
        return blob_file(plan, blob.digest).read_bytes()

    try:
        bundle = read_bundle(manifest_file(plan).read_bytes(), fetch)
        initial = bundle.manifest.initial_checkpoint
        content = fetch_verified(initial, "checkpoint", fetch) if checkpoint is None else checkpoint.read_bytes()
        items = fetch_verified(bundle.vocabulary({}), "vocabulary", fetch)
        return export_proved(bundle, content, items, "", 0, LocalWork())
    except OSError as error:
        raise UserMistake(
            f"{error.filename} cannot be read: {error.strerror}.", "`fedrecon plan compile` makes a plan's folder."
        ) from error
    except _DAMAGED as error:
        raise UserMistake(f"{plan} or its checkpoint cannot be used: {error}.", "Compile the plan again.") from error


def _fetch_from(stub: BlobsStub) -> Fetch:
    """Returns a function that fetches blobs from a service."""

    def fetch(blob: BlobReference) -> bytes:
        content = bytearray()
        for answer in stub.Fetch(FetchRequest(digest=blob.digest), timeout=BULK_SECONDS):
            content += take(answer.chunk, len(content), blob.size)
        return bytes(content)

    return fetch
