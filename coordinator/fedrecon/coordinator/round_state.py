"""An attempt of a round as its events have left it, and what memory knows beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Committed,
    Finish,
    GroupsClosed,
    Kind,
    Opened,
    Outcome,
    Part,
    ReportingEnded,
    Slot,
    Terms,
)


class Phase(StrEnum):
    """Where an attempt stands."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class Fate(StrEnum):
    """What became of a report; the names are those of `fedrecon.v1.ReportFate`."""

    NONE = "UNSPECIFIED"
    PENDING = "PENDING"
    COUNTED = "COUNTED"
    VOID = "VOID"


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
        reporting_ended_at: When reporting ended with enough reports.
        moved: Where parts of it lie that do not lie where they were opened.
        by_device: Places of its cohort by the mark of their device.
        by_session: The same by their session.
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
    reporting_ended_at: int = 0
    moved: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    by_device: Mapping[bytes, Slot] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)
    by_session: Mapping[bytes, Slot] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)

    @property
    def number(self) -> int:
        """Number of the round."""
        return self.opened.number

    @property
    def attempt(self) -> int:
        """Attempt of the round."""
        return self.opened.attempt

    @property
    def kind(self) -> Kind:
        """What its sessions are for."""
        return self.opened.kind

    @property
    def terms(self) -> Terms:
        """What it goes by."""
        return self.opened.terms

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Places of its cohort."""
        return () if self.assigned is None else self.assigned.slots

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its groups by the aggregator that holds them now; one part where all are on one, none before a cohort."""
        if self.assigned is None:
            return ()
        whole = Part(self.assigned.aggregator, self.assigned.groups, self.terms.cohort_size, self.terms.report_goal)
        return tuple(
            replace(part, aggregator=self.moved.get(number, part.aggregator))
            for number, part in enumerate(self.assigned.parts or (whole,))
        )

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
        return self.by_device.get(device)

    def has_session(self, session: bytes) -> bool:
        """Whether a session was assigned in this attempt."""
        return session in self.by_session


@dataclass(frozen=True, slots=True)
class Seen:
    """What memory knows, and no event tells.

    Attributes:
        waiting: Devices that wait to be drawn.
        window_ends: When the selection window ends.
        reports: Reports acknowledged, as the aggregator counts; None while it cannot be asked.
        voided: Reports made void, likewise.
        groups_ended: Whether all groups have ended before anybody closed them: a masked sum does when all its members
            have reported, or are lost.
    """

    waiting: int = 0
    window_ends: int = 0
    reports: int | None = None
    voided: int = 0
    groups_ended: bool = False
