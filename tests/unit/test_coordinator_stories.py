"""A round's story stays short, whatever the size of its cohort."""

from __future__ import annotations

from fedrecon.coordinator import round_events
from fedrecon.coordinator.round_events import EndedBecause, Finish, Outcome
from fedrecon.coordinator.stories import tell_all


def finished(outcome: Outcome, number: int) -> round_events.SessionsFinished:
    return round_events.SessionsFinished(attempt=1, finished=(Finish(bytes([number]) * 16, outcome, ""),))


def test_ends_of_sessions_that_follow_each_other_are_told_together() -> None:
    entries: list[tuple[int, round_events.Event]] = [
        (1000, finished(Outcome.UPLOADED, 1)),
        (2000, finished(Outcome.UPLOADED, 2)),
        (3000, finished(Outcome.TOO_LATE, 3)),
        (4000, round_events.ReportingEnded(EndedBecause.GOAL_MET, 2)),
        (5000, finished(Outcome.TOO_LATE, 4)),
    ]
    story = tell_all(entries)
    assert len(story) == 3
    assert "3 sessions of attempt 1 ended: 2 uploaded, 1 came too late." in story[0]
    assert story[0].endswith("The last at 1970-01-01 00:00:03.000 UTC.")
    assert "the report goal was met" in story[1]
    assert "1 session of attempt 1 ended" in story[2]
