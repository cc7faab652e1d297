"""Backing a deployment up while it runs, and proving by replay that what was restored is what was there.

Rules: watermarks first, then the journal (each task at one moment, the list of tasks before them), then the blobs: a
blob is written before it is named, and is not collected within hours. A restore writes the list of tasks last, so that
one that was cut short has none; and it is done only when every stream was read back and folded, and every blob that
tasks name is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrecon.coordinator import ledger
from fedrecon.coordinator.entries import REGISTRY_TASK
from fedrecon.coordinator.named_blobs import NamesUnknown, digests_named, load_roots
from fedrecon.ops.backups import BackupBroken, Reading, Writing
from fedrecon.ops.blob_contract import ReadBlobs
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.journal import Journal, JournalError
from fedrecon.ops.journal.copying import TaskCopy, copy_task, put_task
from fedrecon.ops.journal.memory import MemoryJournal

_ROUNDS = "round/"


class NotEmpty(Exception):  # noqa: N818 - named for what it says
    """Something lies where a backup was to be restored."""


@dataclass(frozen=True, slots=True)
class _AsCopied:
    """The blobs of a deployment that goes on, with the notes that were copied: its own may be ahead by now."""

    blobs: BlobStore
    copied: Mapping[str, bytes]

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob."""
        return self.blobs.read(digest, offset, length)

    def read_note(self, name: str) -> bytes | None:
        """Return a note as it was copied."""
        return self.copied.get(name)

    def notes(self) -> tuple[str, ...]:
        """Return the names of the notes that were copied."""
        return tuple(self.copied)


@dataclass(frozen=True, slots=True)
class Proved:
    """A task as its restored journal tells it.

    Attributes:
        name: The task.
        committed: Rounds committed.
        rounds: Rounds whose streams were folded.
        checkpoint: Digest of the live checkpoint.
    """

    name: str
    committed: int
    rounds: int
    checkpoint: bytes


async def back_up(journal: Journal, blobs: BlobStore, writing: Writing, kept_checkpoints: int) -> list[Proved]:
    """Write a backup, but for its end, and prove it by replay in memory.

    Args:
        journal: Of the deployment.
        blobs: Of the deployment.
        writing: Where to.
        kept_checkpoints: Newest commits that can be rolled back to.

    Returns:
        Its tasks, as they were at the moment of their copy.

    Raises:
        BackupBroken: The journal cannot be replayed, or a blob that it names is not there.
        NeverStill: A task was written to faster than it could be read.
    """
    notes = await asyncio.to_thread(_notes_of, blobs)
    writing.add_notes(notes)
    registry = await copy_task(journal, REGISTRY_TASK)
    names = await ledger.load_names(journal)
    tasks = [await copy_task(journal, name) for name in names]
    copies = [*tasks, registry]
    writing.add_journal(copies)
    await asyncio.to_thread(writing.add_blobs, blobs)
    replayed = MemoryJournal()
    for copy in copies:
        await put_task(replayed, copy)
    return await prove(replayed, _AsCopied(blobs, notes), copies, kept_checkpoints, there=writing.blobs)


async def restore(journal: Journal, blobs: BlobStore, reading: Reading, kept_checkpoints: int) -> list[Proved]:
    """Put a backup into a journal and a store that are empty, and prove it.

    Args:
        journal: Where its streams go.
        blobs: Where its blobs go.
        reading: The backup.
        kept_checkpoints: Newest commits that can be rolled back to.

    Returns:
        Its tasks, as the restored journal tells them.

    Raises:
        NotEmpty: Something is there.
        BackupBroken: The backup is damaged, or not what its journal needs.
    """
    copies = reading.journal()
    await require_empty(journal, blobs, [copy.task for copy in copies])
    await asyncio.to_thread(reading.put_blobs, blobs)
    for name, content in reading.notes().items():
        await asyncio.to_thread(blobs.write_note, name, content)
    for copy in sorted(copies, key=lambda each: each.task == REGISTRY_TASK):  # the list of tasks comes last
        await put_task(journal, copy)
    there = frozenset(map(bytes.fromhex, reading.contents.blobs))
    return await prove(journal, blobs, copies, kept_checkpoints, there=there)


async def require_empty(journal: Journal, blobs: BlobStore, tasks: Sequence[str]) -> None:
    """Return if nothing is there that a restore would mix with.

    Raises:
        NotEmpty: Something is.
    """
    for task in {*tasks, REGISTRY_TASK}:
        if streams := await journal.streams(task):
            raise NotEmpty(f"the journal knows {task!r} already ({len(streams)} streams)")
    if await asyncio.to_thread(lambda: next(iter(blobs.stored()), None)) is not None:
        raise NotEmpty("blobs lie there already")


async def prove(
    journal: Journal, blobs: ReadBlobs, copies: Sequence[TaskCopy], kept_checkpoints: int, *, there: frozenset[bytes]
) -> list[Proved]:
    """Read a journal back into which copies were put, fold all of it, and look for every blob that it names.

    Args:
        journal: The journal.
        blobs: Where plans and notes are read.
        copies: What was put into it.
        kept_checkpoints: Newest commits that can be rolled back to.
        there: Digests of the blobs that the backup has.

    Raises:
        BackupBroken: Something differs, cannot be folded, or is missing.
    """
    proved = []
    try:
        for copy in copies:
            if (await copy_task(journal, copy.task)).streams != copy.streams:
                raise BackupBroken(f"the journal of {copy.task!r} differs from what was written to it")
            if copy.task != REGISTRY_TASK:
                proved.append(await _replayed(journal, copy))
    except (JournalError, ValueError) as error:
        raise BackupBroken(f"what was restored cannot be replayed: {error}") from error
    if proved:
        await _require_blobs(journal, blobs, kept_checkpoints, there)
    return proved


async def _replayed(journal: Journal, copy: TaskCopy) -> Proved:
    task = (await ledger.load_task(journal, copy.task)).task
    if task is None:
        raise BackupBroken(f"the journal of {copy.task!r} does not begin with its creation")
    rounds = [int(name.removeprefix(_ROUNDS)) for name in copy.streams if name.startswith(_ROUNDS)]
    for number in rounds:
        last = (await ledger.load_round(journal, copy.task, number)).last
        if number <= task.committed and last is not None and last.committed is None:
            raise BackupBroken(f"round {number} of {copy.task!r} is committed by the task's stream, but not by its own")
    return Proved(copy.task, task.committed, len(rounds), task.checkpoint.digest)


async def _require_blobs(journal: Journal, blobs: ReadBlobs, kept_checkpoints: int, there: frozenset[bytes]) -> None:
    try:
        roots = await load_roots(journal, kept_checkpoints)
        needed = await asyncio.to_thread(digests_named, roots, blobs)
    except NamesUnknown as error:
        raise BackupBroken(str(error)) from error
    if missing := sorted(needed - there):
        raise BackupBroken(f"{len(missing)} blobs that tasks name are not in it, the first is {missing[0].hex()}")


def _notes_of(blobs: BlobStore) -> dict[str, bytes]:
    found = {name: blobs.read_note(name) for name in blobs.notes()}
    return {name: content for name, content in found.items() if content is not None}
