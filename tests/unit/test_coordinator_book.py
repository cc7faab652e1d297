"""What a task's book holds in memory, and what it writes."""

import pytest

from fedrecon.coordinator import book, tasks
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.entries import TASK_STREAM, round_stream, task_entries
from fedrecon.coordinator.ledger import load_round
from fedrecon.coordinator.round_events import Abandoned, Blob, Opened, Terms
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal import Append, StaleWriter
from fedrecon.ops.journal.memory import MemoryJournal

BLOB = Blob(bytes(32), 1)
TERMS = Terms(3, 4, 3, 2, 60, 1_000, 1_000, 20)


async def begun(journal: MemoryJournal) -> Book:
    created = task_entries.encode(0, tasks.TaskCreated(b"", BLOB, 0, 0, "somebody"))
    await journal.append("films", [Append(TASK_STREAM, 0, (created,))])
    kept = Book("films", journal, ManualClock(1_000), "me")
    assert await kept.acquire()
    await kept.read()
    return kept


@pytest.mark.parametrize("lost", [TASK_STREAM, round_stream(1)])
async def test_a_journal_that_knows_less_than_the_book_is_noticed_without_writing(lost: str) -> None:
    journal = MemoryJournal()
    kept = await begun(journal)
    await kept.record(1, Opened("films", 1, 1, TERMS, BLOB, None, b""))
    await kept.record_task(tasks.TaskPaused("too warm", "somebody"))
    await kept.confirm()
    others = task_entries.encode(2, tasks.TaskResumed("somebody"))
    await journal.append("films", [Append(TASK_STREAM, kept.version, (others,))])
    await kept.confirm()
    assert not kept.knew_more
    del journal._tasks["films"].streams[lost].events[-2 if lost == TASK_STREAM else -1 :]
    if lost == TASK_STREAM:
        with pytest.raises(StaleWriter):
            await kept.confirm()
    await kept.read()
    assert kept.knew_more


async def test_an_old_round_that_made_room_is_written_on() -> None:
    journal = MemoryJournal()
    kept = await begun(journal)
    for number in range(1, book._ROUNDS_KEPT + 3):
        await kept.record(number, Opened("films", number, 1, TERMS, BLOB, None, b""))
    assert 1 not in kept._rounds
    await kept.record(1, Abandoned("nobody came", 2_000))
    assert (await load_round(journal, "films", 1)).version == 2
