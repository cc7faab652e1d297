"""Exports that a command asks for: of a task's live checkpoint, fetched by digest, or of a plan's folder.

Rule: every part is checked against its digest, and every export is proved, as the service does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedrecon.inference.bundles import (
    Fetch,
    NotExportableError,
    fetch_verified,
    read_bundle,
)
from fedrecon.inference.verifying import Exported, export_proved
from fedrecon.ops.admin_client import BULK_SECONDS, CALL_SECONDS, find_targets, open_admin, open_sync_channel
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.plan_folders import blob_file, manifest_file
from fedrecon.v1.admin_pb2 import GetTaskRequest, ListCheckpointsRequest
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.chunks import ChunkOrderError, take
from fedrecon.wire.digests import DigestMismatchError
from fedrecon.wire.manifests import MalformedPlanError
from fedrecon.wire.tensors import MalformedTensorsError
from fedrecon.wire.vocabularies import MalformedVocabularyError

if TYPE_CHECKING:
    from fedrecon.v1.admin_pb2 import Task

_DAMAGED = (
    ChunkOrderError,
    DigestMismatchError,
    MalformedPlanError,
    MalformedTensorsError,
    MalformedVocabularyError,
)


def export_from_server(task: str, server: str | None, blobs: str | None) -> Exported:
    """Exports a task's live checkpoint.

    Args:
        task: its name.
        server: target of the coordinator; None for the stack of this machine.
        blobs: target of a Blobs service; None for the stack's own.

    Raises:
        UserMistake: no stack runs, the blobs' target is missing, or a part arrived damaged.
        NotExportableError: the task has no checkpoint yet, or it cannot become a recommender.
        grpc.RpcError: a service cannot be reached or refuses.
    """
    targets = find_targets(server)
    blobs_target = blobs or targets.inference
    if not blobs_target:
        raise UserMistake(
            "With --server it must be said where blobs are fetched.",
            "Name aggregator or inference: `--blobs host:port`.",
        )
    with open_admin(server) as stub:
        found = stub.GetTask(GetTaskRequest(task=task), timeout=CALL_SECONDS).task
        listed = stub.ListCheckpoints(ListCheckpointsRequest(task=task), timeout=CALL_SECONDS)
    if not found.checkpoint.digest:
        raise NotExportableError(f"task {task!r} has no checkpoint yet")
    rounds = {one.blob.digest: one.round for one in listed.checkpoints}
    with open_sync_channel(blobs_target) as channel:
        blobs_stub = BlobsStub(channel)
        return _guarded(found, rounds.get(found.checkpoint.digest, found.committed), _fetch_from(blobs_stub))


def _guarded(task: Task, round_number: int, fetch: Fetch) -> Exported:
    """Exports a task's checkpoint; says where a part is damaged."""
    try:
        bundle = read_bundle(fetch_verified(task.spec.plan, "plan", fetch), fetch)
        checkpoint = fetch_verified(task.checkpoint, "checkpoint", fetch)
        items = fetch_verified(bundle.vocabulary(task.spec.vocabularies), "vocabulary", fetch)
        return export_proved(bundle, checkpoint, items, task.spec.name, round_number, task.spec.work)
    except _DAMAGED as error:
        raise UserMistake(f"A part of task {task.spec.name!r} cannot be used: {error}.", "Try again.") from error


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
