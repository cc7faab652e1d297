"""Registering a task: its specification is read against its plan, then its stream and the registry are written.

Rules: two journals cannot be written at once, so the task's own stream comes first; whoever died between the two calls
again, with the same specification, and finishes what was begun.
"""

from __future__ import annotations

import contextlib

import grpc

from fedrecon.coordinator import ledger
from fedrecon.coordinator.accounting import AccountantMissing, epsilon_after, sums_within
from fedrecon.coordinator.entries import (
    REGISTRY_STREAM,
    REGISTRY_TASK,
    TASK_STREAM,
    TaskRegistered,
    registry_entries,
    task_entries,
)
from fedrecon.coordinator.named_blobs import references_in
from fedrecon.coordinator.plans import load_plan
from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.specs import InvalidSpec, check_spec
from fedrecon.coordinator.tasks import TaskCreated
from fedrecon.ops.blobs import BlobMissing, BlobStore
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.journal import Append, Journal, StaleWriter
from fedrecon.v1.plan_pb2 import Manifest
from fedrecon.v1.task_pb2 import TaskSpec

_ADVICE = {
    "INVALID_SPEC": "Correct the specification; the names are those of TaskSpec in task.proto.",
    "NO_ACCOUNTANT": "Install it beside the coordinator: pip install 'fedrecon[privacy]'.",
    "MALFORMED_PLAN": "Compile the plan again, and put all of its parts.",
    "BAD_SIGNATURE": "Sign the plan's digest with the publisher's key.",
    "MISSING_BLOB": "Put every part of the plan first, then create the task.",
}


def read_spec(spec: TaskSpec, blobs: BlobStore, operator: str) -> TaskCreated:
    """Returns the event that registers a task. Blocks: it reads blobs.

    Args:
        spec: What was asked for.
        blobs: Where its plan lies.
        operator: Who asked.

    Raises:
        Refusal: It cannot run; the message names every problem.
    """
    try:
        check_spec(spec)
        prepared = load_plan(spec, blobs)
        private_sums = _sums_allowed(spec)
    except InvalidSpec as error:
        has_missing = error.reason in {"MISSING_BLOB", "NO_ACCOUNTANT"}
        code = grpc.StatusCode.FAILED_PRECONDITION if has_missing else grpc.StatusCode.INVALID_ARGUMENT
        problems = "; ".join(error.problems)
        raise Refusal(code, error.reason, f"Task {spec.name!r}: {problems}.", _ADVICE[error.reason]) from error
    kept = TaskSpec()
    kept.CopyFrom(spec)
    kept.plan.size = blobs.size(spec.plan.digest) or 0
    _refresh(prepared.manifest, spec, blobs)
    initial = prepared.manifest.initial_checkpoint
    return TaskCreated(
        spec=kept.SerializeToString(deterministic=True),
        checkpoint=Blob(initial.digest, blobs.size(initial.digest) or 0),
        maximum_rounds=spec.rounds.maximum_rounds,
        maximum_attempts=spec.rounds.maximum_attempts,
        operator=operator,
        private_sums=private_sums,
        tree_sums=spec.privacy.tree_sums,
    )


def _sums_allowed(spec: TaskSpec) -> int:
    """Returns how many noisy sums a checked specification's privacy budget allows; 0: it asks for no privacy.

    Raises:
        InvalidSpec: The budget allows none, or there is no accountant here.
    """
    if not spec.HasField("privacy"):
        return 0
    try:
        allowed = sums_within(spec.privacy)
        one = epsilon_after(spec.privacy, 1)
    except AccountantMissing as error:
        raise InvalidSpec("NO_ACCOUNTANT", (f"privacy: {error}",)) from error
    if allowed == 0:
        problem = f"privacy.epsilon_budget {spec.privacy.epsilon_budget:g}: one round spends {one:.3g}; add noise"
        raise InvalidSpec("INVALID_SPEC", (problem,))
    return allowed


def _refresh(manifest: Manifest, spec: TaskSpec, blobs: BlobStore) -> None:
    """Makes all parts young: whoever collects blobs spares them until the task that names them is kept."""
    for digest in {*references_in(manifest), *references_in(spec)}:
        with contextlib.suppress(BlobMissing):  # what is needed was looked for before
            blobs.refresh(digest)


async def register_task(journal: Journal, name: str, created: TaskCreated, now: int) -> None:
    """Writes a task's first event, and its name into the registry; nothing happens if both were done already.

    Args:
        journal: Where.
        name: The task.
        created: Its first event.
        now: Unix milliseconds.

    Raises:
        Refusal: Another task has this name.
    """
    try:
        await journal.append(name, [Append(TASK_STREAM, 0, (task_entries.encode(now, created),))])
    except StaleWriter:
        existing = (await ledger.load_task(journal, name)).task
        if existing is None or existing.created.spec != created.spec:
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                "TASK_EXISTS",
                f"There is a task {name!r} already, with another specification.",
                "Choose another name.",
            ) from None
    entry = registry_entries.encode(now, TaskRegistered(name))
    while name not in await ledger.load_names(journal):
        version = (await journal.load(REGISTRY_TASK, REGISTRY_STREAM)).version
        try:
            await journal.append(REGISTRY_TASK, [Append(REGISTRY_STREAM, version, (entry,))])
        except StaleWriter:
            continue  # another task was registered meanwhile
