"""What a sum must be like to be believed."""

from __future__ import annotations

import pytest

from fedrecon.coordinator import tasks
from fedrecon.coordinator.plausibility import FEWEST_ROUNDS, REMEMBERED_ROUNDS, Likeness, doubt
from fedrecon.coordinator.round_events import Blob

USUAL = [Likeness(1.0 + 0.1 * number, 40.0) for number in range(FEWEST_ROUNDS)]
BLOB = Blob(bytes(32), 1)


def test_a_usual_sum_is_believed() -> None:
    assert doubt(Likeness(3.0, 60.0), USUAL) is None


@pytest.mark.parametrize(
    ("sum_now", "words"),
    [
        (Likeness(13.0, 40.0), "norm"),
        (Likeness(float("inf"), 40.0), "not finite"),
        (Likeness(float("nan"), 40.0), "not finite"),
        (Likeness(1.0, 200.0), "weigh 200"),
        (Likeness(1.0, 5.0), "weigh 5"),
    ],
)
def test_a_sum_far_beyond_recent_ones_is_not(sum_now: Likeness, words: str) -> None:
    assert words in (doubt(sum_now, USUAL) or "")


def test_too_few_rounds_tell_nothing() -> None:
    assert doubt(Likeness(1e6, 40.0), USUAL[:-1]) is None


def test_one_odd_round_moves_nothing() -> None:
    assert doubt(Likeness(13.0, 40.0), [*USUAL, Likeness(9.0, 40.0)]) is not None


def test_updates_that_became_zero_are_no_reason_to_doubt_the_next() -> None:
    assert doubt(Likeness(1.0, 40.0), [Likeness(0.0, 40.0)] * FEWEST_ROUNDS) is None


def test_a_task_remembers_its_last_rounds_until_somebody_changes_it() -> None:
    task = tasks.step(None, tasks.TaskCreated(b"", BLOB, 0, 0, ""), 0)
    for number in range(1, REMEMBERED_ROUNDS + 3):
        task = tasks.step(task, tasks.CheckpointCommitted(number, 1, BLOB, None, 4, 40, update_norm=number), number)
    assert task.recent[0] == Likeness(3, 10)
    assert len(task.recent) == REMEMBERED_ROUNDS
    assert tasks.step(task, tasks.TaskEdited(b"", 0, 0, ""), 99).recent == ()
    assert tasks.step(task, tasks.RolledBack(1, BLOB, None, "", ""), 99).recent == ()
