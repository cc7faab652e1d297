"""What happens to an attempt of a round: the events of its journal, and the values that they hold.

The names of the classes are the names on disk (`fedrecon.ops.journal.codec`): none is ever renamed, and fields are only
added, with a default. What follows from an event, and when it is legal, is `rounds.step`'s to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class IllegalEvent(Exception):  # noqa: N818 - named for what happened, as events are
    """An event that cannot happen to a round as it stands. Nothing was changed."""


class EndedBecause(StrEnum):
    """Why no more reports are waited for."""

    GOAL_MET = "goal met"
    ALL_FINISHED = "all finished"
    WINDOW_ENDED = "window ended"
    GROUPS_CLOSED = "groups closed"


class Kind(StrEnum):
    """What the sessions of a round are for; the names are those of `fedrecon.v1.SessionKind`."""

    TRAIN = "TRAIN"
    EVALUATE = "EVALUATE"


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
        part: Part of the attempt that it reports to.
    """

    session: bytes
    device: bytes
    part: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The groups of an attempt that one aggregator opened.

    Attributes:
        aggregator: Target where devices reach it.
        groups: The groups.
        cohort_size: Devices that they were opened for.
        report_goal: Reports wanted of them.
    """

    aggregator: str
    groups: tuple[bytes, ...]
    cohort_size: int
    report_goal: int


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
        report_share: Share of assigned devices that are expected to report, learned from earlier attempts; 0: nothing
            is known.
        kind: What its sessions are for.
        clip_norm: What updates are clipped to; 0: they are not.
        outcome_versions: Versions of what is served whose outcomes reports tell.
    """

    task: str
    number: int
    attempt: int
    terms: Terms
    checkpoint: Blob
    optimizer_state: Blob | None
    spec: bytes
    report_share: float = 0.0
    kind: Kind = Kind.TRAIN
    clip_norm: float = 0.0
    outcome_versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Assigned:
    """A cohort was drawn; it is told only after this was kept.

    Attributes:
        slots: The devices' places.
        waiting: Devices that it was drawn from.
        groups: Sum groups opened for it.
        aggregator: Target where devices reach them, or those of the first part.
        groups_expire_at: When groups that nobody closes are given up.
        parts: Which groups were opened where, if on several aggregators; empty: all on one.
    """

    slots: tuple[Slot, ...]
    waiting: int
    groups: tuple[bytes, ...]
    aggregator: str
    groups_expire_at: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupsMoved:
    """Another aggregator holds groups of the attempt, since the one that held them was gone.

    Attributes:
        part: The part of the attempt.
        aggregator: Target where devices reach it from now on.
    """

    part: int
    aggregator: str


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
        clip_norm: Clip norm of the next round; 0 without privacy.
    """

    checkpoint: Blob
    optimizer_state: Blob | None
    reports: int
    weight: int
    metric_sums: tuple[tuple[str, float], ...]
    update_norm: float
    sum_digest: bytes
    clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The attempt was given up: all its reports are void.

    Attributes:
        reason: Why, for people.
        retry_at: Earliest moment of the next attempt.
    """

    reason: str
    retry_at: int


Event = Opened | Assigned | GroupsMoved | SessionsFinished | ReportingEnded | GroupsClosed | Committed | Abandoned


EVENT_TYPES = (Opened, Assigned, GroupsMoved, SessionsFinished, ReportingEnded, GroupsClosed, Committed, Abandoned)
