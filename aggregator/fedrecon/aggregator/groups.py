"""The life of a sum group, as a pure function of its events.

    JOINING -> SHARING -> UPLOADING -> UNMASKING -> CLOSED
                              `--------------------->'
    every phase but ABORTED -> ABORTED

`trusted` begins in UPLOADING and goes from there to CLOSED; a masked protocol goes through all of them. A closed group
may still be given up, until its round is committed: its coordinator may fail to merge it. Another aggregator may take a
group over in any phase; what it holds stays as it is.

Rules: `step` takes an event that is in the journal (or is about to be) and gives the new state and what is to be done
about it; an illegal event raises and changes nothing. Instants are in the events, so replay needs no clock. An
`Accepted` event covers a whole batch and names the snapshot that holds the sum up to and with it; `Aborted` makes all
of the group's reports void at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedrecon.aggregator.group_events import (
    Aborted,
    Accepted,
    Closed,
    Config,
    Event,
    Opened,
    Phase,
    RosterFrozen,
    SharesFixed,
    TakenOver,
    UploadsEnded,
)

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
class RemoveFiles:
    """Remove these sealed files: the group needs them no more."""

    digests: frozenset[bytes]


Effect = Acknowledge | RemoveFiles


@dataclass(frozen=True, slots=True)
class Group:
    """State of a group.

    Attributes:
        group: its id.
        config: what it is for.
        holder: the aggregator that holds it.
        phase: its phase.
        reports: digest of the vector of every acknowledged session.
        snapshot: digest of the sealed file that holds the sum; empty while there are no reports.
        sum_digest: SHA-256 of that sum's vector; empty while there are no reports.
        aborted_because: why it was given up; empty if it was not.
        ended_milliseconds: when it was closed or given up; 0 before.
        phase_since_milliseconds: when it entered its phase.
        roster: its members and their ring; None before it is frozen, and where there is none.
        shared: whose masks are in the sum; None before that is fixed, and where there are none.
        indices: place in the roster, by session.
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
    phase_since_milliseconds: int = 0
    roster: RosterFrozen | None = None
    shared: SharesFixed | None = None
    indices: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def survivors(self) -> frozenset[int]:
        """Indices of the members whose report is in the sum."""
        return frozenset(self.indices[session] for session in self.reports)

    @property
    def files(self) -> frozenset[bytes]:
        """Digests of the sealed files that it needs."""
        if self.phase is Phase.ABORTED:
            return frozenset()
        kept = {self.snapshot}
        if self.phase is not Phase.CLOSED:
            kept |= {self.roster.roster if self.roster else b"", self.shared.shares if self.shared else b""}
        return frozenset(kept - {b""})

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
    if isinstance(event, Opened):
        if group is not None or event.phase not in FIRST_PHASES:
            raise IllegalEventError(f"a group was opened twice, or in phase {event.phase.name}")
        opened = Group(event.group, event.config, event.holder, event.phase)
        return replace(opened, phase_since_milliseconds=event.at_milliseconds), ()
    if group is None:
        raise IllegalEventError(f"{type(event).__name__} of a group that was never opened")
    after = _apply(group, event)
    effects: list[Effect] = []
    if unneeded := group.files - after.files:
        effects.append(RemoveFiles(unneeded))
    if isinstance(event, Accepted):
        effects.append(Acknowledge(tuple(report.session for report in event.reports)))
    return after, tuple(effects)


def _apply(group: Group, event: Event) -> Group:  # noqa: PLR0911 - by event
    match event:
        case TakenOver():
            return replace(group, holder=event.holder)
        case RosterFrozen():
            return _freeze(group, event)
        case SharesFixed():
            return _fix(group, event)
        case Accepted():
            return _accept(group, event)
        case UploadsEnded():
            if group.phase is not Phase.UPLOADING or group.shared is None or not group.reports:
                raise IllegalEventError(f"there is nothing to unmask in a group in phase {group.phase.name}")
            return _moved(group, Phase.UNMASKING, event.at_milliseconds)
        case Closed():
            return _close(group, event)
        case Aborted():
            return replace(_moved(group, Phase.ABORTED, event.at_milliseconds), aborted_because=event.reason)
        case Opened():
            raise IllegalEventError("a group was opened twice")


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


def _freeze(group: Group, event: RosterFrozen) -> Group:
    count = len(event.sessions)
    indices = {session: index for index, session in enumerate(event.sessions)}
    if len(indices) != count or sorted(event.ring) != list(range(count)):
        raise IllegalEventError("a member is in the roster twice, or the ring is not one of its members")
    if not 0 < event.threshold <= event.neighbours < count <= group.config.maximum_reports:
        raise IllegalEventError(
            f"a roster of {count} with {event.neighbours} neighbours and threshold {event.threshold} cannot be"
        )
    return replace(_moved(group, Phase.SHARING, event.at_milliseconds), roster=event, indices=indices)


def _fix(group: Group, event: SharesFixed) -> Group:
    if list(event.sharers) != sorted(set(event.sharers) & set(group.indices.values())) or not event.sharers:
        raise IllegalEventError("those who shared are not members, or not in order")
    return replace(_moved(group, Phase.UPLOADING, event.at_milliseconds), shared=event)


def _accept(group: Group, event: Accepted) -> Group:
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
    if group.shared is not None and not {group.indices.get(session) for session in batch} <= set(group.shared.sharers):
        raise IllegalEventError("a report was accepted whose masks nobody can take away")
    return replace(group, reports=reports, snapshot=event.snapshot, sum_digest=event.sum_digest)


def _close(group: Group, event: Closed) -> Group:
    unmasks = group.phase is Phase.UNMASKING
    if event.reports != len(group.reports) or not group.reports or bool(event.snapshot) != unmasks:
        raise IllegalEventError(f"a sum of {event.reports} reports cannot close a group that has {len(group.reports)}")
    if group.shared is not None and not unmasks:
        raise IllegalEventError("a sum was closed with its masks on")
    if not unmasks and event.sum_digest != group.sum_digest:
        raise IllegalEventError("a sum was closed that is not the group's")
    after = _moved(group, Phase.CLOSED, event.at_milliseconds)
    return replace(after, snapshot=event.snapshot or group.snapshot, sum_digest=event.sum_digest)


def _moved(group: Group, phase: Phase, at_milliseconds: int) -> Group:
    if phase not in TRANSITIONS[group.phase]:
        raise IllegalEventError(f"a group cannot go from {group.phase.name} to {phase.name}")
    ended = at_milliseconds if phase in {Phase.CLOSED, Phase.ABORTED} else 0
    return replace(group, phase=phase, phase_since_milliseconds=at_milliseconds, ended_milliseconds=ended)
