"""What is noted of a task outside of its journal, and what a journal that knows less leads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedrecon.coordinator import tasks
from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.tasks import State, Task
from fedrecon.coordinator.watermarks import find_loss, keep_watermark, noted_tasks, read_watermark
from fedrecon.ops.blobs import LocalBlobs

NAME = "films"


def blob(number: int) -> Blob:
    return Blob(number.to_bytes(32, "little"), number)


def task_after(commits: int) -> tuple[Task, int]:
    """A task and the version of its stream."""
    task = tasks.step(None, tasks.TaskCreated(b"spec", blob(0), 0, 0, "olga"), 0)
    for number in range(1, commits + 1):
        task = tasks.step(task, tasks.CheckpointCommitted(number, 1, blob(number), blob(number), 3, 30), number)
    return task, commits + 1


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def test_a_journal_that_knows_as_much_has_lost_nothing(blobs: LocalBlobs) -> None:
    task, version = task_after(3)
    assert find_loss(blobs, NAME, task, version, knew_more=False) is None
    keep_watermark(blobs, NAME, task, version)
    assert noted_tasks(blobs) == (NAME,)
    assert find_loss(blobs, NAME, task, version, knew_more=False) is None
    assert find_loss(blobs, NAME, *task_after(5), knew_more=False) is None


def test_a_journal_that_knows_less_pauses_the_task_once_until_somebody_accepts(blobs: LocalBlobs) -> None:
    keep_watermark(blobs, NAME, *task_after(3))
    noted = read_watermark(blobs, NAME)
    task, version = task_after(1)
    loss = find_loss(blobs, NAME, task, version, knew_more=False)
    assert loss is not None
    for words in ("round 3 was committed", "the journal knows of 1", "fedrecon task resume films"):
        assert words in loss.reason
    paused = tasks.step(task, loss, 10)
    assert (paused.state, paused.reason) == (State.PAUSED, loss.reason)
    assert find_loss(blobs, NAME, paused, version + 1, knew_more=False) is None, "it was told"
    keep_watermark(blobs, NAME, paused, version + 1)
    assert read_watermark(blobs, NAME) == noted, "nobody has accepted the loss"
    resumed = tasks.step(paused, tasks.TaskResumed("olga"), 20)
    assert find_loss(blobs, NAME, resumed, version + 2, knew_more=False) is None
    keep_watermark(blobs, NAME, resumed, version + 2)
    rewritten = read_watermark(blobs, NAME)
    assert rewritten is not None
    assert (rewritten.version, rewritten.committed) == (version + 2, 1)
    assert find_loss(blobs, NAME, *task_after(0), knew_more=False) is not None, "the next loss is found as well"


def test_a_loss_that_only_this_process_knows_of_pauses_the_task(blobs: LocalBlobs) -> None:
    task, version = task_after(2)
    keep_watermark(blobs, NAME, task, version)
    loss = find_loss(blobs, NAME, task, version, knew_more=True)
    assert loss is not None
    assert "entries that this process knew are missing" in loss.reason
    paused = replace(tasks.step(task, tasks.TaskPaused("too warm", "olga"), 5))
    assert tasks.step(paused, loss, 6).reason == loss.reason, "also a task that was paused before"


def test_a_lost_entry_that_is_no_commit_is_found(blobs: LocalBlobs) -> None:
    task, version = task_after(2)
    keep_watermark(blobs, NAME, task, version + 4)
    loss = find_loss(blobs, NAME, task, version, knew_more=False)
    assert loss is not None
    assert f"had {version + 4} entries, but the journal knows {version}" in loss.reason


def test_what_others_wrote_since_does_not_hide_a_lost_commit(blobs: LocalBlobs) -> None:
    keep_watermark(blobs, NAME, *task_after(3))
    noted = read_watermark(blobs, NAME)
    task, version = task_after(2)
    for _ in range(3):
        task = tasks.step(tasks.step(task, tasks.TaskPaused("to look", "olga"), 5), tasks.TaskResumed("olga"), 6)
        version += 2
    keep_watermark(blobs, NAME, task, version)
    assert read_watermark(blobs, NAME) == noted
    loss = find_loss(blobs, NAME, task, version, knew_more=False)
    assert loss is not None
    assert "round 3 was committed" in loss.reason


def test_a_slow_process_does_not_take_a_newer_note_back(blobs: LocalBlobs) -> None:
    keep_watermark(blobs, NAME, *task_after(3))
    keep_watermark(blobs, NAME, *task_after(2))
    noted = read_watermark(blobs, NAME)
    assert noted is not None
    assert noted.committed == 3


def test_a_task_that_has_ended_is_left_as_it_is(blobs: LocalBlobs) -> None:
    keep_watermark(blobs, NAME, *task_after(3))
    task, version = task_after(1)
    ended = tasks.step(task, tasks.TaskCancelled("not needed", "olga"), 5)
    assert find_loss(blobs, NAME, ended, version + 1, knew_more=True) is None


def test_a_damaged_note_stops_nothing_and_is_written_anew(blobs: LocalBlobs) -> None:
    blobs.write_note("films.watermark", b"{")
    task, version = task_after(1)
    assert find_loss(blobs, NAME, task, version, knew_more=False) is None
    keep_watermark(blobs, NAME, task, version)
    assert read_watermark(blobs, NAME) is not None
