"""What a task serves, in the journal: its stream `recommenders`, read by replay and written after deciding.

Rules: whoever is asked writes, and a stale writer decides anew; the task that leads admits candidates by itself after
evaluation rounds, and again after it was killed between the evaluation and the admission, so that none is forgotten.
Nothing is written where it is so already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fedrecon.coordinator import ledger, recommenders
from fedrecon.coordinator.editing import find_checkpoint
from fedrecon.coordinator.entries import RECOMMENDERS_STREAM, Entry, recommender_entries
from fedrecon.coordinator.recommenders import CandidateAdmitted, Recommenders, Version
from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.tasks import CheckpointEvaluated, Task
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.journal import Append, Journal, Recorded, StaleWriter
from fedrecon.v1.task_pb2 import TaskSpec

Grow = Callable[[TaskSpec, Blob, Blob | None], Awaitable[tuple[Blob, Blob | None]]]
"""Gives a checkpoint and its optimizer state as many rows as a task's vocabularies have."""


@dataclass(frozen=True, slots=True)
class RecommendersAt:
    """What a task serves at a version of its stream.

    Attributes:
        recommenders: What it serves.
        version: Version of the stream.
    """

    recommenders: Recommenders = field(default_factory=Recommenders)
    version: int = 0


def fold(before: RecommendersAt, recorded: Iterable[Recorded]) -> RecommendersAt:
    """Applies further entries of the stream; those it has seen already are left out."""
    state, version = before.recommenders, before.version
    for each in recorded:
        if each.version > version:
            entry = recommender_entries.decode(each.event)
            state, version = recommenders.step(state, entry.event, entry.at), each.version
    return RecommendersAt(state, version)


async def load(journal: Journal, name: str) -> RecommendersAt:
    """Reads what a task serves."""
    return fold(RecommendersAt(), (await journal.load(name, RECOMMENDERS_STREAM)).events)


async def load_entries(journal: Journal, name: str) -> list[Entry[recommenders.Event]]:
    """Reads what happened to a task's versions, in order."""
    history = await journal.load(name, RECOMMENDERS_STREAM)
    return [recommender_entries.decode(each.event) for each in history.events]


def append_of(at: RecommendersAt, events: Sequence[recommenders.Event], now: int) -> Append:
    """Returns the append that keeps events.

    Args:
        at: What they follow on.
        events: What happened, in order.
        now: Unix milliseconds.

    Raises:
        IllegalEvent: One of them cannot happen now.
    """
    state = at.recommenders
    for event in events:
        state = recommenders.step(state, event, now)
    return Append(RECOMMENDERS_STREAM, at.version, tuple(recommender_entries.encode(now, event) for event in events))


async def admit(
    journal: Journal, blobs: BlobStore, name: str, number: int, operator: str, now: int, grow: Grow | None = None
) -> Version:
    """Makes the checkpoint of a round a candidate, unless it is a version already.

    Args:
        journal: Where it is kept.
        blobs: Where the checkpoint lies.
        name: The task.
        number: The round.
        operator: Who asks; empty: the task itself.
        now: Unix milliseconds.
        grow: Gives an older checkpoint rows for the items in force; None: it is grown when it is promoted.

    Raises:
        Refusal: The round made no checkpoint that is still there.
    """
    while True:
        at = await load(journal, name)
        known = next((each for each in reversed(at.recommenders.versions) if each.number == number), None)
        if known is not None:
            return known
        task = (await ledger.load_task(journal, name)).task
        assert task is not None  # noqa: S101 - whoever asks has seen it
        entries = await ledger.load_task_entries(journal, name)
        found = await asyncio.to_thread(find_checkpoint, task, entries, number, blobs)
        is_live = number == task.live_round  # it may have rows for new items since it was committed
        checkpoint = task.checkpoint if is_live else found.checkpoint
        spec = TaskSpec.FromString(task.spec)
        if grow is not None and spec.vocabularies and not is_live:
            checkpoint, _ = await grow(spec, checkpoint, None)
        event = CandidateAdmitted(at.recommenders.last + 1, number, checkpoint, task.spec, operator)
        try:
            await journal.append(name, [append_of(at, [event], now)])
        except StaleWriter:
            continue  # somebody else wrote: look again
        admitted = recommenders.step(at.recommenders, event, now).find(event.version)
        assert admitted is not None  # noqa: S101 - the newest candidate is always kept
        return admitted


async def admit_evaluated(journal: Journal, blobs: BlobStore, name: str, task: Task, now: int) -> None:
    """Makes the checkpoint that was evaluated last a candidate, if the task asks for that.

    Args:
        journal: Where it is kept.
        blobs: Where the checkpoint lies.
        name: The task.
        task: As it stands.
        now: Unix milliseconds.
    """
    if not TaskSpec.FromString(task.spec).serving.evaluated_are_candidates:
        return
    entries = await ledger.load_task_entries(journal, name)
    evaluated = [each.event.live_round for each in entries if isinstance(each.event, CheckpointEvaluated)]
    if evaluated:
        at = await load(journal, name)
        if not any(each.number == evaluated[-1] for each in at.recommenders.versions):
            await admit(journal, blobs, name, evaluated[-1], "", now)
