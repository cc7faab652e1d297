"""Wherever a task's stream is condensed, the task is the same, and goes on the same."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecon.coordinator import ledger, tasks
from fedrecon.coordinator.condensing import condense_task
from fedrecon.coordinator.entries import TASK_STREAM, Entry, task_entries
from fedrecon.coordinator.messages import audit_messages, checkpoint_messages
from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.journal import Append
from fedrecon.ops.journal.memory import MemoryJournal

NAME = "films"
KEPT = 3


def blob(number: int) -> Blob:
    return Blob(number.to_bytes(32, "little"), number)


def events_of(task: Task, number: int) -> list[tasks.Event]:
    """Every event that could be tried next."""
    return [
        tasks.CheckpointCommitted(
            task.number, task.attempt, blob(number), blob(1000 + number), 3, 30, (("loss", 0.1),)
        ),
        tasks.AttemptAbandoned(task.number, task.attempt, f"nobody came {number}", number),
        tasks.TaskPaused("too warm", "olga"),
        tasks.TaskPaused("by itself"),
        tasks.TaskResumed("olga"),
        tasks.TaskEdited(b"spec %d" % number, 0, number, "olga"),
        tasks.RolledBack(task.committed // 2, blob(task.committed // 2), None, "worse", "olga"),
        tasks.TaskCompleted("its end has come"),
        tasks.TaskCancelled("not needed", "olga"),
        tasks.CheckpointEvaluated(task.number, task.attempt, task.live_round, 3, 30, (("loss", 0.2),)),
        tasks.HistoryLost("the journal went back", f"watermark {number}"),
    ]


CHOICES = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 9, 10]), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(choices=CHOICES)
@settings(max_examples=60, deadline=None)
def test_a_condensed_task_is_and_goes_on_as_the_whole_one(choices: list[tuple[int, bool]]) -> None:
    asyncio.run(_compare(choices))


async def _compare(choices: list[tuple[int, bool]]) -> None:
    whole, condensed = MemoryJournal(), MemoryJournal()
    first = tasks.TaskCreated(b"spec", blob(0), 0, 4, "olga")
    task: Task = tasks.step(None, first, 0)
    await _append(task_entries.encode(0, first), 0, whole, condensed)
    version = 1
    for number, (choice, condense_here) in enumerate(choices, start=1):
        event = events_of(task, number)[choice]
        try:
            task = tasks.step(task, event, number)
        except IllegalEvent:
            continue
        await _append(task_entries.encode(number, event), version, whole, condensed)
        version += 1
        if condense_here:
            await _condense(condensed)
        assert await ledger.load_task(condensed, NAME) == await ledger.load_task(whole, NAME)
    expected = await ledger.load_task_entries(whole, NAME)
    found = await ledger.load_task_entries(condensed, NAME)
    assert audit_messages(NAME, found) == audit_messages(NAME, expected)
    _check_checkpoints(task, expected, found)


async def _append(encoded: bytes, after: int, *journals: MemoryJournal) -> None:
    for journal in journals:
        await journal.append(NAME, [Append(TASK_STREAM, after, (encoded,))])


async def _condense(journal: MemoryJournal) -> None:
    history = await journal.load(NAME, TASK_STREAM)
    task = ledger.task_of(history).task
    assert task is not None
    snapshot = condense_task(task, ledger.task_records_of(history), KEPT)
    await journal.compact(NAME, TASK_STREAM, history.version, snapshot)


def _check_checkpoints(task: Task, expected: list[Entry[Any]], found: list[Entry[Any]]) -> None:
    """The newest commits, the plan's own and the live checkpoint are still in the list."""
    wanted = checkpoint_messages(task, expected)
    listed = checkpoint_messages(task, found)
    assert [each for each in wanted if each in listed] == listed
    assert listed[:KEPT] == wanted[:KEPT]
    assert listed[-1] == wanted[-1]


async def test_evaluations_do_not_push_commits_out_of_the_list() -> None:
    journal = MemoryJournal()
    first = tasks.TaskCreated(b"spec", blob(0), 0, 0, "olga")
    task = tasks.step(None, first, 0)
    await _append(task_entries.encode(0, first), 0, journal)
    for number in range(1, 41):
        event = events_of(task, number)[9 if number % 2 else 0]
        task = tasks.step(task, event, number)
        await _append(task_entries.encode(number, event), number, journal)
        await _condense(journal)
    entries = await ledger.load_task_entries(journal, NAME)
    numbers = {
        kind: [each.event.number for each in entries if isinstance(each.event, kind)]
        for kind in (tasks.CheckpointCommitted, tasks.CheckpointEvaluated)
    }
    assert numbers == {tasks.CheckpointCommitted: [36, 38, 40], tasks.CheckpointEvaluated: [35, 37, 39]}


async def test_old_commits_and_abandoned_attempts_do_not_pile_up() -> None:
    journal = MemoryJournal()
    first = tasks.TaskCreated(b"spec", blob(0), 0, 0, "olga")
    task = tasks.step(None, first, 0)
    await _append(task_entries.encode(0, first), 0, journal)
    sizes = []
    for number in range(1, 201):
        event = events_of(task, number)[0]
        task = tasks.step(task, event, number)
        await _append(task_entries.encode(number, event), number, journal)
        await _condense(journal)
        snapshot = (await journal.load(NAME, TASK_STREAM)).snapshot
        assert snapshot is not None
        sizes.append(len(snapshot))
    assert sizes[199] < sizes[99] + 100, "only digits grow once it remembers all the rounds it may"
    assert len(await ledger.load_task_entries(journal, NAME)) == 1 + KEPT
