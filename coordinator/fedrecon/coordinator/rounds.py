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

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

LONGEST_RETRY_MILLISECONDS = 60 * 60 * 1000
"""Largest wait before the next attempt, however many were abandoned."""

_MOST_DOUBLINGS = 32


class IllegalEvent(Exception):  # noqa: N818 - named for what happened, as events are
    """An event that cannot happen to a round as it stands. Nothing was changed."""


class Phase(StrEnum):
    """Where an attempt stands."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class EndedBecause(StrEnum):
    """Why no more reports are waited for."""

    GOAL_MET = "goal met"
    ALL_FINISHED = "all finished"
    WINDOW_ENDED = "window ended"


class Outcome(StrEnum):
    """How a session ended, as its device tells; the names are those of `fedrecon.v1.SessionOutcome`."""

    UPLOADED = "UPLOADED"
    LOCAL_FAILED = "LOCAL_FAILED"
    NOT_ELIGIBLE = "NOT_ELIGIBLE"
    LOCAL_TIMEOUT = "LOCAL_TIMEOUT"
    UPLOAD_TIMEOUT = "UPLOAD_TIMEOUT"
    CANCELLED = "CANCELLED"
    REFUSED = "REFUSED"
    TOO_LATE = "TOO_LATE"


class Fate(StrEnum):
    """What became of a report; the names are those of `fedrecon.v1.ReportFate`."""

    NONE = "UNSPECIFIED"
    PENDING = "PENDING"
    COUNTED = "COUNTED"
    VOID = "VOID"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob by its digest.

    Attributes:
        digest: SHA-256, 32 bytes.
        size: Length in bytes.
    """

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Terms:
    """The numbers that an attempt goes by, fixed when it opens.

    Attributes:
        report_goal: Reports wanted.
        cohort_size: Devices assigned at most.
        minimum_cohort: Devices without which none is assigned.
        minimum_reports: Reports without which the attempt is abandoned.
        selection_milliseconds: How long devices are gathered.
        reporting_milliseconds: How long reports are waited for.
        aggregating_milliseconds: How long closing and merging may take.
        retry_milliseconds: Wait after the first abandoned attempt; it doubles with each.
    """

    report_goal: int
    cohort_size: int
    minimum_cohort: int
    minimum_reports: int
    selection_milliseconds: int
    reporting_milliseconds: int
    aggregating_milliseconds: int
    retry_milliseconds: int


def cohort_size_of(report_goal: int, over_selection: float) -> int:
    """Devices to assign so that enough of them report.

    Args:
        report_goal: Reports wanted.
        over_selection: Devices for each report, at least 1.

    Returns:
        `ceil(report_goal * over_selection)`, without the noise of floating point.

    Example:
        >>> cohort_size_of(100, 1.3), cohort_size_of(100, 1.1), cohort_size_of(3, 1.0)
        (130, 110, 3)
    """
    return math.ceil(round(report_goal * over_selection, 9))


@dataclass(frozen=True, slots=True)
class Slot:
    """One device's place in an attempt.

    Attributes:
        session: Random id of the assignment, 16 bytes.
        device: Mark of the device, different in every round, so that the journal links no device over rounds.
    """

    session: bytes
    device: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one session.

    Attributes:
        session: Which.
        outcome: How it ended.
        shape: Its course, one character for each step.
    """

    session: bytes
    outcome: Outcome
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """An attempt began: devices are gathered.

    Attributes:
        task: Name of the task.
        number: Number of the round, from 1.
        attempt: Attempt of the round, from 1.
        terms: What it goes by.
        checkpoint: What updates start from.
        optimizer_state: State of the server optimizer that belongs to it; None before the first commit.
        spec: The task's `TaskSpec` as it was then, serialised.
    """

    task: str
    number: int
    attempt: int
    terms: Terms
    checkpoint: Blob
    optimizer_state: Blob | None
    spec: bytes


@dataclass(frozen=True, slots=True)
class Assigned:
    """A cohort was drawn; it is told only after this was kept.

    Attributes:
        slots: The devices' places.
        waiting: Devices that it was drawn from.
        groups: Sum groups opened for it.
        aggregator: Target where devices reach them.
        groups_expire_at: When groups that nobody closes are given up.
    """

    slots: tuple[Slot, ...]
    waiting: int
    groups: tuple[bytes, ...]
    aggregator: str
    groups_expire_at: int


@dataclass(frozen=True, slots=True)
class SessionsFinished:
    """Sessions ended on their devices.

    Attributes:
        attempt: The attempt that they belong to: it need not be the last one.
        finished: Their ends.
    """

    attempt: int
    finished: tuple[Finish, ...]


@dataclass(frozen=True, slots=True)
class ReportingEnded:
    """No more reports are waited for, and there are enough.

    Attributes:
        because: What ended it.
        reports: Reports acknowledged by then.
    """

    because: EndedBecause
    reports: int


@dataclass(frozen=True, slots=True)
class GroupsClosed:
    """The sums are there.

    Attributes:
        groups: The groups whose sums count.
        reports: Reports in them.
        voided: Reports of groups that were given up.
    """

    groups: tuple[bytes, ...]
    reports: int
    voided: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The checkpoint is live.

    Attributes:
        checkpoint: The new checkpoint.
        optimizer_state: The optimizer's new state.
        reports: Reports in it.
        weight: Sum of their weights.
        metric_sums: Sums over the reports, by name.
        update_norm: Euclidean norm of the mean update.
        sum_digest: SHA-256 of the summed vector.
    """

    checkpoint: Blob
    optimizer_state: Blob | None
    reports: int
    weight: int
    metric_sums: tuple[tuple[str, float], ...]
    update_norm: float
    sum_digest: bytes


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The attempt was given up: all its reports are void.

    Attributes:
        reason: Why, for people.
        retry_at: Earliest moment of the next attempt.
    """

    reason: str
    retry_at: int


Event = Opened | Assigned | SessionsFinished | ReportingEnded | GroupsClosed | Committed | Abandoned
EVENT_TYPES = (Opened, Assigned, SessionsFinished, ReportingEnded, GroupsClosed, Committed, Abandoned)


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


@dataclass(frozen=True, slots=True)
class Round:
    """An attempt as its events have left it. Instants are Unix milliseconds; 0 where not there yet.

    Attributes:
        opened: How it began.
        phase: Where it stands.
        opened_at: When it began.
        phase_since: When it entered its phase.
        assigned_at: When its cohort was told.
        ended_at: When it was committed or abandoned.
        assigned: Its cohort and groups.
        finishes: Ends of its sessions.
        reporting_ended: Why and with how many reports reporting ended.
        closed: Its sums.
        committed: What it made.
        abandoned: Why it was given up.
    """

    opened: Opened
    phase: Phase
    opened_at: int
    phase_since: int
    assigned_at: int = 0
    ended_at: int = 0
    assigned: Assigned | None = None
    finishes: Mapping[bytes, Finish] = field(default_factory=lambda: MappingProxyType({}))
    reporting_ended: ReportingEnded | None = None
    closed: GroupsClosed | None = None
    committed: Committed | None = None
    abandoned: Abandoned | None = None

    @property
    def number(self) -> int:
        """Number of the round."""
        return self.opened.number

    @property
    def attempt(self) -> int:
        """Attempt of the round."""
        return self.opened.attempt

    @property
    def terms(self) -> Terms:
        """What it goes by."""
        return self.opened.terms

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Places of its cohort."""
        return () if self.assigned is None else self.assigned.slots

    @property
    def reporting_ends(self) -> int:
        """When reports stop being waited for."""
        return self.assigned_at + self.terms.reporting_milliseconds

    @property
    def aggregating_ends(self) -> int:
        """When an attempt that aggregates is given up."""
        return self.phase_since + self.terms.aggregating_milliseconds

    @property
    def is_over(self) -> bool:
        """Whether it was committed or abandoned."""
        return self.phase in {Phase.COMMITTED, Phase.ABANDONED}

    @property
    def uploaded(self) -> int:
        """Sessions that say their report was acknowledged."""
        return sum(finish.outcome is Outcome.UPLOADED for finish in self.finishes.values())

    def slot_of_device(self, device: bytes) -> Slot | None:
        """Returns the place of a device, by its mark."""
        return next((slot for slot in self.slots if slot.device == device), None)

    def has_session(self, session: bytes) -> bool:
        """Whether a session was assigned in this attempt."""
        return any(slot.session == session for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Seen:
    """What memory knows, and no event tells.

    Attributes:
        waiting: Devices that wait to be drawn.
        window_ends: When the selection window ends.
        reports: Reports acknowledged, as the aggregator counts; None while it cannot be asked.
        voided: Reports made void, likewise.
    """

    waiting: int = 0
    window_ends: int = 0
    reports: int | None = None
    voided: int = 0


TRANSITIONS: Mapping[tuple[Phase | None, type[Event]], Phase] = MappingProxyType(
    {
        (None, Opened): Phase.SELECTING,
        (Phase.ABANDONED, Opened): Phase.SELECTING,
        (Phase.SELECTING, Assigned): Phase.REPORTING,
        (Phase.SELECTING, Abandoned): Phase.ABANDONED,
        (Phase.REPORTING, SessionsFinished): Phase.REPORTING,
        (Phase.REPORTING, ReportingEnded): Phase.AGGREGATING,
        (Phase.REPORTING, Abandoned): Phase.ABANDONED,
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
    phase = None if attempt is None else attempt.phase
    following = TRANSITIONS.get((phase, type(event)))
    if following is None:
        where = "before the round's first attempt" if attempt is None else f"in a round that is {attempt.phase}"
        raise IllegalEvent(f"{type(event).__name__} {where}")
    if isinstance(event, Opened):
        _check_opened(attempt, event)
        return Round(event, following, now, now), (Gather(),)
    assert attempt is not None  # noqa: S101 - only Opened is legal without an attempt
    after = replace(attempt, phase=following, phase_since=attempt.phase_since if following == phase else now)
    match event:
        case Assigned():
            _check_assigned(attempt, event)
            return replace(after, assigned=event, assigned_at=now), (SendAssignments(), WatchGroups())
        case SessionsFinished():
            _check_finished(attempt, event)
            ends = {finish.session: finish for finish in event.finished}
            return replace(after, finishes=MappingProxyType({**attempt.finishes, **ends})), ()
        case ReportingEnded():
            _check_reporting_ended(attempt, event, now)
            return replace(after, reporting_ended=event), (CloseGroups(),)
        case GroupsClosed():
            _check_closed(attempt, event)
            after = replace(after, closed=event)
            return after, resume(after)
        case Committed():
            _check_committed(attempt, event)
            return replace(after, committed=event, ended_at=now), ()
        case Abandoned():
            if event.retry_at < now:
                raise IllegalEvent("the next attempt cannot come before this one is abandoned")
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


def _check_finished(attempt: Round, event: SessionsFinished) -> None:
    if event.attempt != attempt.attempt:
        raise IllegalEvent(f"sessions of attempt {event.attempt} do not end in attempt {attempt.attempt}")
    sessions = {finish.session for finish in event.finished}
    if len(sessions) != len(event.finished) or not sessions.isdisjoint(attempt.finishes):
        raise IllegalEvent("a session ends once")
    if not sessions <= {slot.session for slot in attempt.slots}:
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
