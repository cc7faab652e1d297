"""Which blobs the tasks of a deployment need: everything that may still be fetched, merged, served or rolled back to.

Of every task: the parts of its plan, the vocabularies in force and those of the commits below, the plan's own
checkpoint, the live one, the newest commits with their optimizer states, all that the round under way names, and what
its watermark names, since a loss may not be accepted yet.

Rules: fields are found by their type, so that an event that is added later is covered. What cannot be read makes the
whole unknown: nothing may be removed then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from fedrecon.coordinator import ledger, serving
from fedrecon.coordinator.entries import TASK_STREAM, Entry, task_entries
from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.tasks import CheckpointCommitted, Event, TaskEdited
from fedrecon.coordinator.watermarks import noted_tasks, read_watermark
from fedrecon.ops.blob_contract import ReadBlobs
from fedrecon.ops.blobs import BlobMissing, CorruptBlob
from fedrecon.ops.journal import Journal, JournalError
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.manifests import MalformedPlanError, read_manifest

_SPEC_FIELD = "spec"


class NamesUnknown(Exception):  # noqa: N818 - named for what it says
    """Nobody can say which blobs are needed; the text says why, and what to do."""


async def load_roots(journal: Journal, kept_checkpoints: int) -> dict[str, tuple[Any, ...]]:
    """Reads what names blobs, of every task.

    Args:
        journal: Where tasks are kept.
        kept_checkpoints: Newest commits that can be rolled back to.

    Raises:
        NamesUnknown: A task cannot be read, or there is none.
    """
    try:
        names = await ledger.load_names(journal)
        roots = {name: await _roots_of(journal, name, kept_checkpoints) for name in names}
    except (JournalError, ValueError) as error:
        raise NamesUnknown(f"the journal cannot be read: {error}") from error
    if not roots:
        raise NamesUnknown("no task is registered, so nothing says what is needed: is this the right journal?")
    return roots


def digests_named(roots: Mapping[str, Sequence[Any]], blobs: ReadBlobs) -> frozenset[bytes]:
    """Returns the digests of all blobs that are needed. Blocks: it reads plans and notes.

    Args:
        roots: What `load_roots` gave.
        blobs: Where plans and notes lie.

    Raises:
        NamesUnknown: A plan cannot be read, or a task is known from its watermark alone.
    """
    found: set[bytes] = set()
    for name, values in roots.items():
        leaves = set(_leaves(values))
        found |= {leaf.digest for leaf in leaves if isinstance(leaf, Blob)}
        for leaf in leaves:
            if not isinstance(leaf, Blob):
                found |= _named_by_spec(TaskSpec.FromString(leaf), blobs)
        try:
            watermark = read_watermark(blobs, name)
        except JournalError as error:
            raise NamesUnknown(f"the watermark of task {name!r} cannot be read: {error}") from error
        found |= {leaf.digest for leaf in _leaves(watermark) if isinstance(leaf, Blob)}
    if unknown := set(noted_tasks(blobs)) - roots.keys():
        raise NamesUnknown(
            f"the journal does not know {', '.join(sorted(unknown))}, whose blobs lie here: it went back to an older "
            "state, or is another deployment's. Restore the journal, or remove the notes `TASK.watermark` beside the "
            "blobs if these tasks are gone for good"
        )
    return frozenset(found)


async def _roots_of(journal: Journal, name: str, kept_checkpoints: int) -> tuple[Any, ...]:
    history = await journal.load(name, TASK_STREAM)
    task = ledger.task_of(history).task
    if task is None:
        raise NamesUnknown(f"task {name!r} is registered, but its journal is empty: it went back to an older state")
    entries = [task_entries.decode(each) for each in ledger.task_records_of(history)]
    attempts = (await ledger.load_round(journal, name, task.number)).attempts
    served = (await serving.load(journal, name)).recommenders
    return (task, served, *_newest(entries, kept_checkpoints), *attempts)


def _newest(entries: Sequence[Entry[Event]], kept_checkpoints: int) -> Iterator[Event]:
    """Yields the events since the oldest commit that is kept, and the one that said what it went by."""
    commits = 0
    for entry in reversed(entries):
        if commits < kept_checkpoints:
            yield entry.event
        elif isinstance(entry.event, TaskEdited):
            yield entry.event
            return
        commits += isinstance(entry.event, CheckpointCommitted)


def references_in(message: Message) -> Iterator[bytes]:
    """Yields the digests of all blobs that a message names."""
    if isinstance(message, BlobReference):
        if message.digest:
            yield message.digest
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner: Iterable[Any] = value.values()
        else:
            inner = value if field.is_repeated else (value,)
        for each in inner:
            if isinstance(each, Message):
                yield from references_in(each)


def _leaves(value: Any) -> Iterator[Blob | bytes]:
    """Yields all blobs within a value, and all specifications as they are serialised."""
    if isinstance(value, Blob):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if field.name == _SPEC_FIELD and isinstance(inner, bytes):
                yield inner
            else:
                yield from _leaves(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _leaves(inner)


def _named_by_spec(spec: TaskSpec, blobs: ReadBlobs) -> set[bytes]:
    named = set(references_in(spec))
    try:
        manifest = read_manifest(blobs.read(spec.plan.digest))
    except (BlobMissing, CorruptBlob, MalformedPlanError, ValueError) as error:
        raise NamesUnknown(
            f"the plan of task {spec.name!r} cannot be read, so its parts are unknown: {error}. Store it again with "
            "`fedrecon task create`"
        ) from error
    return named | set(references_in(manifest))
