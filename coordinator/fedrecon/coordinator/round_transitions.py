"""Which events are legal in which phase of an attempt, where they lead, and what each must hold.

Rules: an event is legal if `TRANSITIONS` has it and its own check passes; nothing here changes a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Committed,
    EndedBecause,
    Event,
    GroupsClosed,
    GroupsMoved,
    IllegalEvent,
    Opened,
    ReportingEnded,
    SessionsFinished,
)
from fedrecon.coordinator.round_state import Phase, Round

TRANSITIONS: Mapping[tuple[Phase | None, type[Event]], Phase] = MappingProxyType(
    {
        (None, Opened): Phase.SELECTING,
        (Phase.ABANDONED, Opened): Phase.SELECTING,
        (Phase.SELECTING, Assigned): Phase.REPORTING,
        (Phase.SELECTING, Abandoned): Phase.ABANDONED,
        (Phase.REPORTING, GroupsMoved): Phase.REPORTING,
        (Phase.REPORTING, SessionsFinished): Phase.REPORTING,
        (Phase.REPORTING, ReportingEnded): Phase.AGGREGATING,
        (Phase.REPORTING, Abandoned): Phase.ABANDONED,
        (Phase.AGGREGATING, GroupsMoved): Phase.AGGREGATING,
        (Phase.AGGREGATING, SessionsFinished): Phase.AGGREGATING,
        (Phase.AGGREGATING, GroupsClosed): Phase.AGGREGATING,
        (Phase.AGGREGATING, Committed): Phase.COMMITTED,
        (Phase.AGGREGATING, Abandoned): Phase.ABANDONED,
        (Phase.COMMITTED, SessionsFinished): Phase.COMMITTED,
        (Phase.ABANDONED, SessionsFinished): Phase.ABANDONED,
    }
)
"""Every legal event, and the phase it leads to. The diagram of the documentation is drawn from it."""


def mermaid() -> str:
    """Returns the diagram of the phases in Mermaid's language, drawn from `TRANSITIONS`."""
    lines = ["stateDiagram-v2"]
    for (phase, event), following in TRANSITIONS.items():
        lines.append(f"    {'[*]' if phase is None else phase} --> {following}: {event.__name__}")
    return "\n".join([*lines, "    committed --> [*]"])


def next_phase(attempt: Round | None, event: Event, now: int) -> Phase:
    """Returns the phase that a legal event leads to.

    Args:
        attempt: The attempt as it stands; None before a round's first.
        event: What happened.
        now: When, Unix milliseconds.

    Raises:
        IllegalEvent: It cannot happen now, or contradicts the attempt.
    """
    following = TRANSITIONS.get((None if attempt is None else attempt.phase, type(event)))
    if following is None:
        where = "before the round's first attempt" if attempt is None else f"in a round that is {attempt.phase}"
        raise IllegalEvent(f"{type(event).__name__} {where}")
    if isinstance(event, Opened):
        _check_opened(attempt, event)
        return following
    assert attempt is not None  # noqa: S101 - only Opened is legal without an attempt
    match event:
        case Assigned():
            _check_assigned(attempt, event)
        case GroupsMoved():
            _check_moved(attempt, event)
        case SessionsFinished():
            _check_finished(attempt, event)
        case ReportingEnded():
            _check_reporting_ended(attempt, event, now)
        case GroupsClosed():
            _check_closed(attempt, event)
        case Committed():
            _check_committed(attempt, event)
    return following


def _check_opened(before: Round | None, event: Opened) -> None:
    if event.number < 1:
        raise IllegalEvent(f"rounds count from 1, not {event.number}")
    if before is None:
        if event.attempt != 1:
            raise IllegalEvent(f"the first attempt is 1, not {event.attempt}")
        return
    if (event.task, event.number, event.attempt) != (before.opened.task, before.number, before.attempt + 1):
        raise IllegalEvent(
            f"attempt {event.attempt} of round {event.number} cannot follow attempt {before.attempt} "
            f"of round {before.number}"
        )


def _check_assigned(attempt: Round, event: Assigned) -> None:
    terms = attempt.terms
    if not terms.minimum_cohort <= len(event.slots) <= terms.cohort_size:
        raise IllegalEvent(
            f"a cohort of {len(event.slots)}; it holds {terms.minimum_cohort} to {terms.cohort_size} devices"
        )
    if len({slot.session for slot in event.slots}) != len(event.slots):
        raise IllegalEvent("two slots share a session")
    if len({slot.device for slot in event.slots}) != len(event.slots):
        raise IllegalEvent("a device has two slots")
    if not event.groups:
        raise IllegalEvent("a cohort without a sum group")
    in_parts = tuple(group for part in event.parts for group in part.groups)
    if event.parts and (in_parts != event.groups or event.parts[0].aggregator != event.aggregator):
        raise IllegalEvent("the parts of an attempt have other groups than the attempt")
    if not all(0 <= slot.part < max(len(event.parts), 1) for slot in event.slots):
        raise IllegalEvent("a device reports to a part that there is not")


def _check_moved(attempt: Round, event: GroupsMoved) -> None:
    if not 0 <= event.part < len(attempt.parts):
        raise IllegalEvent(f"part {event.part} of an attempt that has {len(attempt.parts)} cannot move")
    if event.aggregator == attempt.parts[event.part].aggregator:
        raise IllegalEvent(f"part {event.part} is at {event.aggregator} already")


def _check_finished(attempt: Round, event: SessionsFinished) -> None:
    if event.attempt != attempt.attempt:
        raise IllegalEvent(f"sessions of attempt {event.attempt} do not end in attempt {attempt.attempt}")
    sessions = {finish.session for finish in event.finished}
    if len(sessions) != len(event.finished) or not sessions.isdisjoint(attempt.finishes):
        raise IllegalEvent("a session ends once")
    if not sessions <= attempt.by_session.keys():
        raise IllegalEvent("a session that was not assigned cannot end")


def _check_reporting_ended(attempt: Round, event: ReportingEnded, now: int) -> None:
    terms = attempt.terms
    if event.reports < terms.minimum_reports:
        raise IllegalEvent(f"{event.reports} reports are fewer than {terms.minimum_reports}")
    match event.because:
        case EndedBecause.GOAL_MET if event.reports < terms.report_goal:
            raise IllegalEvent(f"{event.reports} reports do not meet the goal of {terms.report_goal}")
        case EndedBecause.ALL_FINISHED if len(attempt.finishes) < len(attempt.slots):
            raise IllegalEvent("sessions are still under way")
        case EndedBecause.WINDOW_ENDED if now < attempt.reporting_ends:
            raise IllegalEvent("the reporting window has not ended")
        case _:
            return


def _check_closed(attempt: Round, event: GroupsClosed) -> None:
    if attempt.closed is not None:
        raise IllegalEvent("the groups are closed already")
    if attempt.assigned is None or not set(event.groups) <= set(attempt.assigned.groups):
        raise IllegalEvent("a group that was not opened for this attempt cannot be closed")


def _check_committed(attempt: Round, event: Committed) -> None:
    if attempt.closed is None:
        raise IllegalEvent("a checkpoint before the groups are closed")
    if event.reports < attempt.terms.minimum_reports:
        raise IllegalEvent(f"a checkpoint of {event.reports} reports, fewer than {attempt.terms.minimum_reports}")
