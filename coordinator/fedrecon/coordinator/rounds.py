"""One attempt of one round, as a pure state machine.

Phases: SELECTING -> REPORTING -> AGGREGATING -> COMMITTED | ABANDONED (after Bonawitz et al. 2019, "Towards Federated
Learning at Scale", section 2.2). `step` applies an event, `due` says which event or action the passing of time and the
facts in memory call for, `resume` names the actions to take up after a replay.

Rules:
- Every event is journalled, with its time, before its effects are performed. State is the fold of `step`, so a replay
  gives it again, and `resume` gives the effects whose completion no event has told yet.
- An illegal event raises `IllegalEvent` and changes nothing: a merge that ends after its deadline, a report counted
  after the round was given up, a session finished twice.
- What waits and what the aggregator counts is not state but `Seen`: both can be asked for again after a crash.
- An attempt that was abandoned is followed by the next attempt of the same round; a committed round is final.
- Sessions may end long after their attempt has: that is noted in every phase, and moves none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Committed,
    EndedBecause,
    Event,
    GroupsClosed,
    GroupsMoved,
    Opened,
    Outcome,
    ReportingEnded,
    SessionsFinished,
)
from fedrecon.coordinator.round_state import Fate, Phase, Round, Seen
from fedrecon.coordinator.round_transitions import next_phase

LONGEST_RETRY_MILLISECONDS = 60 * 60 * 1000
"""Largest wait before the next attempt, however many were abandoned."""


_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Gather:
    """Begin a selection window."""


@dataclass(frozen=True, slots=True)
class DrawCohort:
    """Open groups, draw a cohort of this size, and record `Assigned`."""

    size: int


@dataclass(frozen=True, slots=True)
class SendAssignments:
    """Answer the devices that were drawn, and those that were not."""


@dataclass(frozen=True, slots=True)
class WatchGroups:
    """Follow the aggregator's count of reports."""


@dataclass(frozen=True, slots=True)
class CloseGroups:
    """End the uploads, and record `GroupsClosed`."""


@dataclass(frozen=True, slots=True)
class MergeGroups:
    """Make the checkpoint of these groups, and record `Committed`."""

    groups: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class DiscardGroups:
    """Make all reports of the attempt void."""


Effect = Gather | DrawCohort | SendAssignments | WatchGroups | CloseGroups | MergeGroups | DiscardGroups


def step(attempt: Round | None, event: Event, now: int) -> tuple[Round, tuple[Effect, ...]]:  # noqa: PLR0911 - by event
    """Applies an event.

    Args:
        attempt: The attempt as it stands; None before a round's first.
        event: What happened.
        now: When, Unix milliseconds.

    Returns:
        The attempt after it, and what to do once the event is kept, in order.

    Raises:
        IllegalEvent: It cannot happen now; nothing was changed.
    """
    following = next_phase(attempt, event, now)
    if isinstance(event, Opened):
        return Round(event, following, now, now), (Gather(),)
    assert attempt is not None  # noqa: S101 - only Opened is legal without an attempt
    after = replace(attempt, phase=following, phase_since=attempt.phase_since if following == attempt.phase else now)
    match event:
        case Assigned():
            after = replace(
                after,
                assigned=event,
                assigned_at=now,
                by_device=MappingProxyType({slot.device: slot for slot in event.slots}),
                by_session=MappingProxyType({slot.session: slot for slot in event.slots}),
            )
            return after, (SendAssignments(), WatchGroups())
        case GroupsMoved():
            return replace(after, moved=MappingProxyType({**attempt.moved, event.part: event.aggregator})), ()
        case SessionsFinished():
            ends = {finish.session: finish for finish in event.finished}
            return replace(after, finishes=MappingProxyType({**attempt.finishes, **ends})), ()
        case ReportingEnded():
            return replace(after, reporting_ended=event, reporting_ended_at=now), (CloseGroups(),)
        case GroupsClosed():
            after = replace(after, closed=event)
            return after, resume(after)
        case Committed():
            return replace(after, committed=event, ended_at=now), ()
        case Abandoned():
            after = replace(after, abandoned=event, ended_at=now)
            return after, resume(after)


def resume(attempt: Round) -> tuple[Effect, ...]:
    """Returns what must be done again after a replay: effects of which no event tells that they were done.

    Assignments are not sent again: a device that never heard asks again, and gets the same one.
    """
    match attempt.phase:
        case Phase.SELECTING:
            return (Gather(),)
        case Phase.REPORTING:
            return (WatchGroups(),)
        case Phase.AGGREGATING:
            return _aggregating_effects(attempt)
        case Phase.ABANDONED if attempt.assigned is not None:
            return (DiscardGroups(),)
        case _:
            return ()


def due(attempt: Round, seen: Seen, now: int) -> Gather | DrawCohort | ReportingEnded | Abandoned | None:
    """Returns what the moment calls for: an event to record, or an action that leads to one.

    Args:
        attempt: The attempt as it stands.
        seen: What memory knows.
        now: Unix milliseconds.
    """
    match attempt.phase:
        case Phase.SELECTING if now >= seen.window_ends:
            enough = seen.waiting >= attempt.terms.minimum_cohort
            return DrawCohort(min(attempt.terms.cohort_size, seen.waiting)) if enough else Gather()
        case Phase.REPORTING:
            return _reporting_due(attempt, seen, now)
        case Phase.AGGREGATING:
            return _aggregating_due(attempt, now)
        case _:
            return None


def next_instant(attempt: Round, seen: Seen) -> int | None:
    """Returns when `due` may answer otherwise although nothing happens; None if never."""
    match attempt.phase:
        case Phase.SELECTING:
            return seen.window_ends
        case Phase.REPORTING:
            return attempt.reporting_ends if seen.reports is not None else _patience_ends(attempt)
        case Phase.AGGREGATING:
            return attempt.aggregating_ends
        case _:
            return None


def fate_of(attempt: Round, session: bytes) -> Fate:
    """Returns what became of a session's report, as far as the journal of the round tells.

    Where some groups were given up and others count, only the aggregator knows which one a session was in: the answer
    is NONE then, and the device asks there.

    Args:
        attempt: The attempt that it was assigned in.
        session: The session; it has ended.
    """
    finish = attempt.finishes.get(session)
    if finish is None or finish.outcome is not Outcome.UPLOADED:
        return Fate.NONE
    match attempt.phase:
        case Phase.COMMITTED:
            return Fate.COUNTED if attempt.closed is not None and attempt.closed.voided == 0 else Fate.NONE
        case Phase.ABANDONED:
            return Fate.VOID
        case _:
            return Fate.PENDING


def abandon(attempt: Round, reason: str, now: int) -> Abandoned:
    """Returns the event that gives an attempt up, with the next one's earliest moment.

    Args:
        attempt: Which.
        reason: Why, for people.
        now: Unix milliseconds.
    """
    doubled = attempt.terms.retry_milliseconds << min(attempt.attempt - 1, _MOST_DOUBLINGS)
    return Abandoned(reason, now + min(doubled, LONGEST_RETRY_MILLISECONDS))


def _reporting_due(attempt: Round, seen: Seen, now: int) -> ReportingEnded | Abandoned | None:
    terms = attempt.terms
    if seen.reports is None:
        if now >= _patience_ends(attempt):
            return abandon(attempt, "the aggregator could not be asked for its count of reports in time", now)
        return None
    if seen.reports >= terms.report_goal:
        return ReportingEnded(EndedBecause.GOAL_MET, seen.reports)
    if len(attempt.finishes) == len(attempt.slots) and seen.reports + seen.voided >= attempt.uploaded:
        because, told = EndedBecause.ALL_FINISHED, "all sessions have ended"
    elif seen.groups_ended:
        because = EndedBecause.GROUPS_CLOSED
        told = "all groups have ended" if seen.reports else "the aggregator gave all groups up, and reporting ended"
    elif now >= attempt.reporting_ends:
        because, told = EndedBecause.WINDOW_ENDED, "the reporting window has ended"
    else:
        return None
    if seen.reports >= terms.minimum_reports:
        return ReportingEnded(because, seen.reports)
    return abandon(attempt, f"{told} with {seen.reports} of at least {terms.minimum_reports} reports", now)


def _aggregating_due(attempt: Round, now: int) -> Abandoned | None:
    closed, terms = attempt.closed, attempt.terms
    if closed is not None and closed.reports < terms.minimum_reports:
        reason = f"the closed groups hold {closed.reports} of at least {terms.minimum_reports} reports"
        return abandon(attempt, f"{reason} ({closed.voided} were made void)", now)
    if now >= attempt.aggregating_ends:
        doing = "closing the groups" if closed is None else "making the checkpoint"
        return abandon(attempt, f"{doing} took longer than {terms.aggregating_milliseconds / 1000:g} s", now)
    return None


def _aggregating_effects(attempt: Round) -> tuple[Effect, ...]:
    if attempt.closed is None:
        return (CloseGroups(),)
    enough = attempt.closed.reports >= attempt.terms.minimum_reports
    return (MergeGroups(attempt.closed.groups),) if enough else ()


def _patience_ends(attempt: Round) -> int:
    """How long an aggregator that is away is waited for: as long as it would have had for its own work."""
    return attempt.reporting_ends + attempt.terms.aggregating_milliseconds
