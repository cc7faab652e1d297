"""An attempt of a round: what leads where, what is refused, and what the moment calls for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedrecon.coordinator import round_events, round_transitions, rounds
from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    Finish,
    GroupsClosed,
    GroupsMoved,
    IllegalEvent,
    Opened,
    Outcome,
    Part,
    ReportingEnded,
    SessionsFinished,
    Slot,
    Terms,
)
from fedrecon.coordinator.round_state import Fate, Phase, Round, Seen
from fedrecon.coordinator.rounds import due, fate_of, resume, step

TERMS = Terms(
    report_goal=3,
    cohort_size=4,
    minimum_cohort=2,
    minimum_reports=2,
    selection_milliseconds=1_000,
    reporting_milliseconds=10_000,
    aggregating_milliseconds=5_000,
    retry_milliseconds=100,
)
OPENED = Opened("films", 1, 1, TERMS, Blob(b"c" * 32, 9), None, b"spec")
SLOTS = tuple(Slot(bytes([number]) * 16, bytes([100 + number]) * 16) for number in range(4))
ASSIGNED = Assigned(SLOTS, 7, (b"g" * 16,), "here:1", 99_000)
ENDED = ReportingEnded(EndedBecause.GOAL_MET, 3)
CLOSED = GroupsClosed((b"g" * 16,), 3, 0)
COMMITTED = Committed(Blob(b"d" * 32, 9), Blob(b"o" * 32, 5), 3, 30, (("loss", 1.5),), 0.25, b"s" * 32)
ABANDONED = Abandoned("nobody came", 50_000)


def after(*events: round_events.Event, start: int = 0) -> Round:
    attempt = None
    for number, event in enumerate(events):
        attempt, _ = step(attempt, event, start + number)
    assert attempt is not None
    return attempt


def finishes(*sessions: int, outcome: Outcome = Outcome.UPLOADED, attempt: int = 1) -> SessionsFinished:
    return SessionsFinished(attempt, tuple(Finish(SLOTS[number].session, outcome) for number in sessions))


REACHED = {
    Phase.SELECTING: (OPENED,),
    Phase.REPORTING: (OPENED, ASSIGNED),
    Phase.AGGREGATING: (OPENED, ASSIGNED, ENDED),
    Phase.COMMITTED: (OPENED, ASSIGNED, ENDED, CLOSED, COMMITTED),
    Phase.ABANDONED: (OPENED, ASSIGNED, ABANDONED),
}
EXAMPLES: tuple[round_events.Event, ...] = (
    replace(OPENED, attempt=2),
    ASSIGNED,
    GroupsMoved(0, "there:1"),
    finishes(0),
    ENDED,
    CLOSED,
    COMMITTED,
    ABANDONED,
)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_is_legal_exactly_where_the_table_has_it(phase: Phase, event: round_events.Event) -> None:
    attempt = after(*REACHED[phase])
    if isinstance(event, Committed) and phase is Phase.AGGREGATING:
        attempt, _ = step(attempt, CLOSED, 10)
    following = round_transitions.TRANSITIONS.get((phase, type(event)))
    if following is None:
        with pytest.raises(IllegalEvent):
            step(attempt, event, 20)
    else:
        assert step(attempt, event, 20)[0].phase is following


def test_the_diagram_names_every_phase_and_event() -> None:
    drawn = round_transitions.mermaid()
    assert all(phase.value in drawn for phase in Phase)
    assert all(event.__name__ in drawn for event in round_events.EVENT_TYPES)
    assert drawn.count("-->") == len(round_transitions.TRANSITIONS) + 1


@pytest.mark.parametrize(
    "event",
    [
        replace(ASSIGNED, slots=SLOTS[:1]),
        replace(ASSIGNED, slots=(*SLOTS, Slot(b"x" * 16, b"y" * 16))),
        replace(ASSIGNED, slots=(SLOTS[0], replace(SLOTS[1], device=SLOTS[0].device))),
        replace(ASSIGNED, slots=(SLOTS[0], replace(SLOTS[1], session=SLOTS[0].session))),
        replace(ASSIGNED, groups=()),
    ],
    ids=["too few", "too many", "a device twice", "a session twice", "no group"],
)
def test_a_cohort_that_breaks_the_terms_is_refused(event: Assigned) -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED), event, 5)


def test_a_session_ends_once() -> None:
    attempt = after(OPENED, ASSIGNED, finishes(0))
    with pytest.raises(IllegalEvent):
        step(attempt, finishes(0, outcome=Outcome.CANCELLED), 9)
    with pytest.raises(IllegalEvent):
        step(attempt, finishes(1, 1), 9)


def test_a_session_of_another_attempt_does_not_end_here() -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED), finishes(0, attempt=2), 9)


def test_a_stranger_cannot_end_a_session() -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED), SessionsFinished(1, (Finish(b"?" * 16, Outcome.UPLOADED),)), 9)


@pytest.mark.parametrize(
    ("event", "now"),
    [
        (ReportingEnded(EndedBecause.GOAL_MET, 2), 5),
        (ReportingEnded(EndedBecause.WINDOW_ENDED, 2), 5),
        (ReportingEnded(EndedBecause.ALL_FINISHED, 2), 5),
        (ReportingEnded(EndedBecause.WINDOW_ENDED, 1), 20_000),
    ],
)
def test_reporting_does_not_end_without_its_reason(event: ReportingEnded, now: int) -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED), event, now)


def test_a_checkpoint_before_the_groups_are_closed_is_refused() -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED, ENDED), COMMITTED, 9)


def test_a_merge_after_the_round_was_given_up_is_refused() -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED, ENDED, CLOSED, ABANDONED), COMMITTED, 60_000)


def test_groups_of_another_attempt_cannot_close_it() -> None:
    with pytest.raises(IllegalEvent):
        step(after(OPENED, ASSIGNED, ENDED), replace(CLOSED, groups=(b"other group 1234",)), 9)


def test_the_next_attempt_follows_the_abandoned_one() -> None:
    attempt = after(OPENED, ASSIGNED, ABANDONED)
    following, effects = step(attempt, replace(OPENED, attempt=2), 60_000)
    assert (following.attempt, following.phase, following.slots) == (2, Phase.SELECTING, ())
    assert effects == (rounds.Gather(),)
    for wrong in (replace(OPENED, attempt=3), replace(OPENED, number=2, attempt=2)):
        with pytest.raises(IllegalEvent):
            step(attempt, wrong, 60_000)


def test_too_few_devices_begin_the_window_again() -> None:
    attempt = after(OPENED)
    assert due(attempt, Seen(waiting=1, window_ends=1_000), 999) is None
    assert due(attempt, Seen(waiting=1, window_ends=1_000), 1_000) == rounds.Gather()
    assert due(attempt, Seen(waiting=2, window_ends=1_000), 1_000) == rounds.DrawCohort(2)
    assert due(attempt, Seen(waiting=9, window_ends=1_000), 1_000) == rounds.DrawCohort(4)


def test_reporting_ends_with_the_goal_or_the_window_or_the_last_session() -> None:
    attempt = after(OPENED, ASSIGNED)
    assert due(attempt, Seen(reports=2), 100) is None
    assert due(attempt, Seen(reports=3), 100) == ENDED
    assert due(attempt, Seen(reports=2), attempt.reporting_ends) == ReportingEnded(EndedBecause.WINDOW_ENDED, 2)
    few = due(attempt, Seen(reports=1), attempt.reporting_ends)
    assert isinstance(few, Abandoned)
    assert "1 of at least 2" in few.reason
    done = after(OPENED, ASSIGNED, finishes(0, 1), finishes(2, 3, outcome=Outcome.LOCAL_FAILED))
    assert due(done, Seen(reports=2), 100) == ReportingEnded(EndedBecause.ALL_FINISHED, 2)
    assert due(done, Seen(reports=1), 100) is None, "two say they uploaded: the aggregator has not counted both yet"
    assert isinstance(due(done, Seen(reports=1, voided=1), 100), Abandoned)


def test_a_round_waits_for_an_aggregator_that_is_away_as_long_as_aggregating_may_take() -> None:
    attempt = after(OPENED, ASSIGNED)
    patience = attempt.reporting_ends + TERMS.aggregating_milliseconds
    assert due(attempt, Seen(reports=None), patience - 1) is None
    assert rounds.next_instant(attempt, Seen(reports=None)) == patience
    assert isinstance(due(attempt, Seen(reports=None), patience), Abandoned)


def test_aggregating_ends_at_its_deadline_or_when_the_groups_hold_too_little() -> None:
    attempt = after(OPENED, ASSIGNED, ENDED)
    assert due(attempt, Seen(), attempt.aggregating_ends - 1) is None
    assert isinstance(due(attempt, Seen(), attempt.aggregating_ends), Abandoned)
    poor, _ = step(attempt, replace(CLOSED, reports=1, voided=2), 9)
    assert isinstance(due(poor, Seen(), 10), Abandoned)


def test_the_wait_doubles_with_each_attempt_up_to_an_hour() -> None:
    attempt = after(OPENED)
    waits = [
        rounds.abandon(replace(attempt, opened=replace(OPENED, attempt=number)), "why", 1_000).retry_at - 1_000
        for number in (1, 2, 3, 500)
    ]
    assert waits == [100, 200, 400, rounds.LONGEST_RETRY_MILLISECONDS]


def test_resuming_repeats_what_no_event_says_was_done() -> None:
    expected = {
        Phase.SELECTING: (rounds.Gather(),),
        Phase.REPORTING: (rounds.WatchGroups(),),
        Phase.AGGREGATING: (rounds.CloseGroups(),),
        Phase.COMMITTED: (),
        Phase.ABANDONED: (rounds.DiscardGroups(),),
    }
    for phase, events in REACHED.items():
        assert resume(after(*events)) == expected[phase]
    assert resume(after(OPENED, ASSIGNED, ENDED, CLOSED)) == (rounds.MergeGroups((b"g" * 16,)),)
    assert resume(after(OPENED, ABANDONED)) == (), "nothing was opened, so there is nothing to discard"


def test_a_report_is_pending_then_counted_or_void() -> None:
    session = SLOTS[0].session
    told = (OPENED, ASSIGNED, finishes(0))
    assert fate_of(after(OPENED, ASSIGNED), session) is Fate.NONE
    assert fate_of(after(*told), session) is Fate.PENDING
    assert fate_of(after(*told, ENDED, CLOSED, COMMITTED), session) is Fate.COUNTED
    assert fate_of(after(*told, ENDED, CLOSED, ABANDONED), session) is Fate.VOID
    assert fate_of(after(*REACHED[Phase.COMMITTED], finishes(0)), session) is Fate.COUNTED
    failed = after(OPENED, ASSIGNED, finishes(0, outcome=Outcome.LOCAL_FAILED), ENDED, CLOSED, COMMITTED)
    assert fate_of(failed, session) is Fate.NONE


def test_no_report_is_called_counted_when_some_groups_were_given_up() -> None:
    partly = after(OPENED, ASSIGNED, finishes(0), ENDED, replace(CLOSED, voided=1), COMMITTED)
    assert fate_of(partly, SLOTS[0].session) is Fate.NONE


def test_an_attempt_may_be_abandoned_after_its_retry_was_due() -> None:
    attempt, _ = step(after(OPENED, ASSIGNED), Abandoned("decided before the journal was away", 20), 60_000)
    assert attempt.phase is Phase.ABANDONED
    assert due(attempt, Seen(), 60_000) is None


HERE = Part("here:1", (b"g" * 16,), 2, 2)
THERE = Part("there:1", (b"h" * 16,), 2, 1)
IN_PARTS = Assigned(
    tuple(replace(slot, part=number % 2) for number, slot in enumerate(SLOTS)),
    7,
    (b"g" * 16, b"h" * 16),
    "here:1",
    99_000,
    (HERE, THERE),
)


def test_an_attempt_on_one_aggregator_is_one_part() -> None:
    (part,) = after(OPENED, ASSIGNED).parts
    assert part == Part("here:1", (b"g" * 16,), TERMS.cohort_size, TERMS.report_goal)
    assert after(OPENED).parts == ()


def test_a_part_that_moved_is_where_it_moved_to_and_the_others_stay() -> None:
    attempt = after(OPENED, IN_PARTS, GroupsMoved(1, "elsewhere:1"), GroupsMoved(1, "here:1"))
    assert [part.aggregator for part in attempt.parts] == ["here:1", "here:1"]
    assert [part.groups for part in attempt.parts] == [HERE.groups, THERE.groups]


@pytest.mark.parametrize(
    ("assigned", "why"),
    [
        (replace(IN_PARTS, parts=(HERE,)), "other groups"),
        (replace(IN_PARTS, parts=(THERE, HERE), groups=(b"h" * 16, b"g" * 16)), "other groups"),
        (replace(IN_PARTS, slots=(*SLOTS[:3], replace(SLOTS[3], part=2))), "a part that there is not"),
        (replace(ASSIGNED, slots=(*SLOTS[:3], replace(SLOTS[3], part=1))), "a part that there is not"),
    ],
)
def test_parts_that_do_not_fit_their_attempt_are_refused(assigned: Assigned, why: str) -> None:
    with pytest.raises(IllegalEvent, match=why):
        after(OPENED, assigned)
