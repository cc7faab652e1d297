"""What an operator may change while a task runs, and what an older checkpoint needs to become live again.

Rules: what devices, reports or privacy accounting rely on over rounds stays for the life of a task: its name,
population, plan and signature, how reports are summed, its privacy, and the rule of the server optimizer, whose state
goes on. All else may change; a round that is under way ends as it began.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from fedrecon.coordinator.entries import Entry
from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.tasks import CheckpointCommitted, Event, RolledBack, Task
from fedrecon.ops.blobs import BlobMissing, BlobStore
from fedrecon.ops.boundary import Refusal
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.manifests import read_manifest
from fedrecon.wire.vocabularies import read_vocabulary


def require_editable(before: TaskSpec, after: TaskSpec) -> None:
    """Raises unless a task may go on by another specification.

    Args:
        before: The one in force.
        after: The one asked for.

    Raises:
        Refusal: Something that may not change would; the message names all of it.
    """
    pairs: dict[str, tuple[object, object]] = {
        "name": (before.name, after.name),
        "population": (before.population, after.population),
        "plan": (before.plan.digest, after.plan.digest),
        "signature": (before.signature, after.signature),
        "secure_sum": (before.secure_sum, after.secure_sum),
        "privacy": (before.HasField("privacy") and before.privacy, after.HasField("privacy") and after.privacy),
        "optimizer.rule": (before.optimizer.rule, after.optimizer.rule),
    }
    if before.privacy.tree_sums:  # noise that is taken away again must lie where it was added
        pairs["vocabularies"] = dict(before.vocabularies), dict(after.vocabularies)
        pairs["row_sets"] = dict(before.row_sets), dict(after.row_sets)
    changed = [name for name, (old, new) in pairs.items() if old != new]
    if changed:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_EDITABLE",
            f"Task {before.name!r}: {', '.join(changed)} cannot change while a task lives.",
            "Create another task for the same population: old SDKs keep this one.",
        )


def require_appended(before: TaskSpec, after: TaskSpec, blobs: BlobStore) -> None:
    """Raises unless vocabularies only grew: what a row stands for is in every checkpoint. Blocks: it reads blobs.

    Args:
        before: The specification in force; it may name fewer vocabularies than its plan.
        after: The one asked for; its blobs are stored.
        blobs: Where vocabularies lie.

    Raises:
        Refusal: A row would stand for another item.
    """
    older = {**read_manifest(blobs.read(before.plan.digest)).vocabularies, **before.vocabularies}
    for name, reference in sorted(after.vocabularies.items()):
        if name not in older or older[name].digest == reference.digest:
            continue
        had, has = (read_vocabulary(blobs.read(each.digest)).keys for each in (older[name], reference))
        moved = next((row for row, key in enumerate(had) if row >= len(has) or has[row] != key), None)
        if moved is not None:
            now = repr(has[moved]) if moved < len(has) else "nothing"
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_EDITABLE",
                f"Vocabulary {name!r}: row {moved} stands for {had[moved]!r}, and would stand for {now}.",
                "Append new items at the end, and list rows that are gone as retired.",
            )


def find_checkpoint(task: Task, entries: Iterable[Entry[Event]], number: int, blobs: BlobStore) -> RolledBack:
    """Returns the event that makes an older checkpoint live, without reason and operator. Blocks: it asks for blobs.

    Args:
        task: As it stands.
        entries: Of its stream.
        number: The round that made the checkpoint; 0: the plan's initial one.
        blobs: Where checkpoints lie.

    Raises:
        Refusal: The round made none, or its checkpoint is stored no more.
    """
    checkpoint: Blob | None = task.created.checkpoint if number == 0 else None
    state: Blob | None = None
    clip_norm = 0.0
    for entry in entries:
        if isinstance(event := entry.event, CheckpointCommitted) and event.number == number:
            checkpoint, state, clip_norm = event.checkpoint, event.optimizer_state, event.clip_norm
    if checkpoint is None:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_CHECKPOINT",
            f"Round {number} of the task has made no checkpoint that is known.",
            "List its checkpoints.",
        )
    for blob in (checkpoint, state):
        try:
            if blob is not None:
                blobs.refresh(blob.digest)  # whoever collects blobs spares it until it is live
        except BlobMissing as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "CHECKPOINT_GONE",
                f"The checkpoint of round {number} is not stored any more.",
                "Choose a newer one, or restore its blobs from a backup.",
            ) from error
    return RolledBack(number, checkpoint, state, "", "", clip_norm)
