"""Looking on costs what is new, however long a task has run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrecon.coordinator import tasks
from fedrecon.coordinator.entries import TASK_STREAM, round_entries, round_stream, task_entries
from fedrecon.coordinator.ledger import load_round, load_task
from fedrecon.coordinator.reading import Reader
from fedrecon.coordinator.round_events import Abandoned, Blob, Event, Opened
from fedrecon.coordinator.specs import terms_of
from fedrecon.ops.journal import Append, Recorded
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1.common_pb2 import BlobReference
from support.coordinating import TASK, house, make_spec

BLOB = Blob(bytes(32), 1)
ROUNDS = 2_500


class Counting(MemoryJournal):
    """Counts the events that it gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0

    async def tail(self, task: str, stream: str, after: int, wait_milliseconds: int) -> tuple[Recorded, ...]:
        recorded = await super().tail(task, stream, after, wait_milliseconds)
        self.given += len(recorded)
        return recorded

    async def load(self, task: str, stream: str) -> Any:
        history = await super().load(task, stream)
        self.given += len(history.events)
        return history


def _commit(number: int) -> bytes:
    return task_entries.encode(number, tasks.CheckpointCommitted(number, 1, BLOB, BLOB, 3, 30))


async def _long_task(journal: MemoryJournal, spec: bytes) -> None:
    created = task_entries.encode(0, tasks.TaskCreated(spec, BLOB, 0, 0, "somebody"))
    commits = (_commit(number) for number in range(1, ROUNDS + 1))
    await journal.append(TASK, [Append(TASK_STREAM, 0, (created, *commits))])


async def test_a_task_that_was_read_is_read_on_from_there() -> None:
    journal = Counting()
    await _long_task(journal, b"")
    reader = Reader(journal)
    assert await reader.task(TASK) == await load_task(journal, TASK)
    journal.given = 0
    await journal.append(TASK, [Append(TASK_STREAM, ROUNDS + 1, (_commit(ROUNDS + 1),))])
    at = await reader.task(TASK)
    assert journal.given == 1
    assert at == await load_task(journal, TASK)


async def test_a_round_that_was_read_is_read_on_from_there() -> None:
    journal = Counting()
    reader, terms = Reader(journal), terms_of(make_spec(BlobReference()))
    opened = [Opened(TASK, 4, attempt, terms, BLOB, None, b"") for attempt in (1, 2)]
    events: list[Event] = [opened[0], Abandoned("nobody came", 7), opened[1]]
    for version, event in enumerate(events):
        await journal.append(TASK, [Append(round_stream(4), version, (round_entries.encode(7, event),))])
        journal.given = 0
        at = await reader.round(TASK, 4)
        assert journal.given == 1
        assert at == await load_round(journal, TASK, 4)


async def test_what_does_not_exist_is_not_kept() -> None:
    reader = Reader(MemoryJournal())
    for number in range(1, 100):
        assert (await reader.task(f"task-{number}")).task is None
        assert (await reader.round(TASK, number)).last is None
    assert not reader._tasks
    assert not reader._rounds


async def test_showing_a_long_task_again_reads_next_to_nothing(tmp_path: Path) -> None:
    journal = Counting()
    async with house(tmp_path, journal) as built:
        coordinator = await built.coordinator()
        await coordinator.create(make_spec(built.plan))
        at = await load_task(journal, TASK)
        commits = tuple(_commit(number) for number in range(1, ROUNDS + 1))
        await journal.append(TASK, [Append(TASK_STREAM, at.version, commits)])
        await coordinator.task()
        journal.given = 0
        for _ in range(5):
            await coordinator.task()
        assert journal.given < ROUNDS / 10
