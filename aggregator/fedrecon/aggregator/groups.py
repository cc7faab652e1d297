"""The life of a sum group, as a pure function of its events.

    JOINING -> SHARING -> UPLOADING -> UNMASKING -> CLOSED
                              `--------------------->'
    every phase but ABORTED -> ABORTED

`trusted` begins in UPLOADING and goes from there to CLOSED. A closed group may still be given up, until its round is
committed: its coordinator may fail to merge it.

Rules: `step` takes an event that is in the journal (or is about to be) and gives the new state and what is to be done
about it; an illegal event raises and changes nothing. Instants are in the events, so replay needs no clock. An
`Accepted` event covers a whole batch and names the snapshot that holds the sum up to and with it; `Aborted` makes all
of the group's reports void at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedrecon.aggregator.group_events import Aborted, Accepted, Closed, Config, Event, Opened, Phase

TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.JOINING: frozenset({Phase.SHARING, Phase.ABORTED}),
    Phase.SHARING: frozenset({Phase.UPLOADING, Phase.ABORTED}),
    Phase.UPLOADING: frozenset({Phase.UNMASKING, Phase.CLOSED, Phase.ABORTED}),
    Phase.UNMASKING: frozenset({Phase.CLOSED, Phase.ABORTED}),
    Phase.CLOSED: frozenset({Phase.ABORTED}),
    Phase.ABORTED: frozenset(),
}
"""Where a group may go from each phase."""

FIRST_PHASES = frozenset({Phase.JOINING, Phase.UPLOADING})
"""Where a group may begin, depending on its protocol."""


class IllegalEventError(Exception):
    """An event that cannot follow on a group's state: a fault of the program or a damaged journal."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Answer these sessions: their reports count exactly once if the group closes."""

    sessions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KeepOnlySnapshot:
    """Remove the group's snapshots but this one."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class RemoveSnapshots:
    """Remove all of the group's snapshots."""


Effect = Acknowledge | KeepOnlySnapshot | RemoveSnapshots


@dataclass(frozen=True, slots=True)
class Group:
    """State of a group.

    Attributes:
        group: its id.
        config: what it is for.
        holder: the aggregator on whose disk its sum lies.
        phase: its phase.
        reports: digest of the vector of every acknowledged session.
        snapshot: digest of the sealed file that holds the sum; empty while there are no reports.
        sum_digest: SHA-256 of that sum's vector; empty while there are no reports.
        aborted_because: why it was given up; empty if it was not.
        ended_milliseconds: when it was closed or given up; 0 before.
    """

    group: bytes
    config: Config
    holder: str
    phase: Phase
    reports: Mapping[bytes, bytes] = field(default_factory=dict)
    snapshot: bytes = b""
    sum_digest: bytes = b""
    aborted_because: str = ""
    ended_milliseconds: int = 0

    @property
    def ended(self) -> bool:
        """Whether it takes no more reports, for good."""
        return self.phase in {Phase.CLOSED, Phase.ABORTED}


def step(group: Group | None, event: Event) -> tuple[Group, tuple[Effect, ...]]:
    """Returns a group after an event, and what is to be done.

    Args:
        group: its state; None before `Opened`.
        event: what happened.

    Raises:
        IllegalEventError: it cannot have happened in this state.
    """
    match event:
        case Opened():
            if group is not None or event.phase not in FIRST_PHASES:
                raise IllegalEventError(f"a group was opened twice, or in phase {event.phase.name}")
            return Group(event.group, event.config, event.holder, event.phase), ()
        case _ if group is None:
            raise IllegalEventError(f"{type(event).__name__} of a group that was never opened")
        case Accepted():
            return _accept(group, event)
        case Closed():
            if event.reports != len(group.reports) or event.sum_digest != group.sum_digest or not group.reports:
                raise IllegalEventError(
                    f"a sum of {event.reports} reports cannot close a group that has {len(group.reports)}"
                )
            return replace(_moved(group, Phase.CLOSED), ended_milliseconds=event.at_milliseconds), ()
        case Aborted():
            after = _moved(group, Phase.ABORTED)
            return (
                replace(after, aborted_because=event.reason, ended_milliseconds=event.at_milliseconds),
                (RemoveSnapshots(),),
            )


def replay(events: Iterable[Event]) -> Group | None:
    """Returns the state that events lead to; None if there are none.

    Raises:
        IllegalEventError: they contradict each other.
    """
    group: Group | None = None
    for event in events:
        group, _ = step(group, event)
    return group


def end(group: Group, now_milliseconds: int, *, discard: bool) -> Closed | Aborted | None:
    """Returns what ending the uploads of a group makes of it; None if it has ended that way already.

    Args:
        group: its state.
        now_milliseconds: Unix milliseconds.
        discard: whether it is given up; a closed group may be, an aborted one stays aborted.
    """
    if group.phase is Phase.ABORTED or (group.phase is Phase.CLOSED and not discard):
        return None
    if discard:
        return Aborted("DISCARDED", len(group.reports), now_milliseconds)
    if len(group.reports) < max(1, group.config.minimum_group):
        return Aborted("TOO_FEW_REPORTS", len(group.reports), now_milliseconds)
    return Closed(len(group.reports), group.sum_digest, now_milliseconds)


def expire(group: Group, now_milliseconds: int) -> Aborted | None:
    """Returns the end of a group that nobody closed in time; None if it has ended, or has time left."""
    if group.ended or now_milliseconds < group.config.expires_milliseconds:
        return None
    return Aborted("EXPIRED", len(group.reports), now_milliseconds)


def _accept(group: Group, event: Accepted) -> tuple[Group, tuple[Effect, ...]]:
    if group.phase is not Phase.UPLOADING:
        raise IllegalEventError(f"reports were accepted by a group in phase {group.phase.name}")
    batch = {report.session: report.digest for report in event.reports}
    reports = {**group.reports, **batch}
    if not batch or len(batch) != len(event.reports) or len(reports) != len(group.reports) + len(batch):
        raise IllegalEventError("a report was accepted twice, or a batch is empty")
    if event.total != len(reports) or event.total > group.config.maximum_reports:
        raise IllegalEventError(
            f"the sum holds {event.total} reports, the journal {len(reports)}, "
            f"and {group.config.maximum_reports} are allowed"
        )
    after = replace(group, reports=reports, snapshot=event.snapshot, sum_digest=event.sum_digest)
    return after, (KeepOnlySnapshot(event.snapshot), Acknowledge(tuple(batch)))


def _moved(group: Group, phase: Phase) -> Group:
    if phase not in TRANSITIONS[group.phase]:
        raise IllegalEventError(f"a group cannot go from {group.phase.name} to {phase.name}")
    return replace(group, phase=phase)
