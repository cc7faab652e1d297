"""What happens to a sum group: the events of its journal, and the values that they hold.

The names of the classes are the names on disk (`fedrecon.ops.journal.codec`): none is ever renamed, and fields are only
added, with a default. What follows from an event, and when it is legal, is `groups.step`'s to say.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedrecon.ops.traces import Attempt
from fedrecon.wire.fixed_point import FixedPoint
from fedrecon.wire.fixed_point import Segment as FixedPointSegment
from fedrecon.wire.sum_context import expected_members, groups_needed

Key = tuple[str, int, int, int]
"""Task, round, attempt, part."""


class Phase(enum.IntEnum):
    """Phases of a group: names and numbers of `GroupPhase` in the contract."""

    JOINING = 1
    SHARING = 2
    UPLOADING = 3
    UNMASKING = 4
    CLOSED = 5
    ABORTED = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of vector elements.

    Attributes:
        parameter: the global parameter that they change.
        elements: how many.
        bound: contribution bound of one element.
        row_set_digest: the public row set whose rows they are, in its order; empty where they are all rows.
    """

    parameter: str
    elements: int
    bound: float
    row_set_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric sum of the vector's tail.

    Attributes:
        name: its name.
        bound: largest absolute value that one example adds.
    """

    name: str
    bound: float


@dataclass(frozen=True, slots=True)
class Config:
    """What a group was opened for; the same for all groups of an attempt.

    Attributes:
        task: name of the task.
        round: number of the round.
        attempt: attempt of the round.
        kind: `SessionKind` of its sessions.
        protocol: `SumProtocol` of the sum.
        segments: body of the vectors, in order.
        metrics: metric sums of the tail, in order.
        ring_bits: bits of the body's ring.
        maximum_reports: most reports in one group.
        maximum_weight: largest weight of one report.
        minimum_group: fewest reports for which the sum is opened.
        cohort_size: devices that are assigned to the attempt.
        plan_digest: the plan.
        checkpoint_digest: the checkpoint that updates start from.
        expires_milliseconds: when a group that nobody closed is given up, Unix milliseconds.
        report_goal: reports that are wanted of all groups; 0 where no roster is gathered.
        joining_ends_milliseconds: when a masked group begins with the members it has, Unix milliseconds.
        phase_milliseconds: how long each later phase of a masked group may take.
        part: part of the attempt that its groups are.
        drop_out: share of the members that may be lost after they shared; 0: the default's.
    """

    task: str
    round: int
    attempt: int
    kind: int
    protocol: int
    segments: tuple[Segment, ...]
    metrics: tuple[Metric, ...]
    ring_bits: int
    maximum_reports: int
    maximum_weight: int
    minimum_group: int
    cohort_size: int
    plan_digest: bytes
    checkpoint_digest: bytes
    expires_milliseconds: int
    report_goal: int = 0
    joining_ends_milliseconds: int = 0
    phase_milliseconds: int = 0
    part: int = 0
    drop_out: float = 0.0

    @property
    def key(self) -> Key:
        """Names the part of the attempt."""
        return self.task, self.round, self.attempt, self.part

    @property
    def traced(self) -> Attempt:
        """Whose trace it belongs to."""
        return Attempt(self.task, self.round, self.attempt)

    @property
    def fixed_point(self) -> FixedPoint:
        """How reports of this group become integers.

        Raises:
            ValueError: under these numbers a sum could overflow or carry nothing.
        """
        return FixedPoint(
            segments=tuple(FixedPointSegment(one.elements, one.bound, one.row_set_digest) for one in self.segments),
            metric_bounds=tuple(metric.bound for metric in self.metrics),
            maximum_reports=self.maximum_reports,
            maximum_weight=self.maximum_weight,
            ring_bits=self.ring_bits,
        )

    @property
    def expected_members(self) -> int:
        """Devices that all groups of the part together wait for."""
        return expected_members(self.cohort_size, self.report_goal)

    @property
    def group_count(self) -> int:
        """Groups that an attempt of this size needs."""
        return groups_needed(self.expected_members, self.maximum_reports)

    @property
    def group_members(self) -> int:
        """Members with which a masked group begins at once."""
        return -(-self.expected_members // self.group_count)


@dataclass(frozen=True, slots=True)
class Opened:
    """A group exists.

    Attributes:
        group: its id, 16 random bytes.
        config: what it is for.
        holder: the aggregator that holds it.
        phase: where it begins.
        at_milliseconds: when, Unix milliseconds.
    """

    group: bytes
    config: Config
    holder: str
    phase: Phase
    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Another aggregator holds the group from now on, since the one that held it was gone.

    Attributes:
        holder: who holds it now.
        at_milliseconds: when, Unix milliseconds.
    """

    holder: str
    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class RosterFrozen:
    """The members of a masked group are known, and who is whose neighbour; nobody is told before.

    Attributes:
        sessions: whose places they are, in order of their index.
        roster: digest of the sealed file that holds their keys; device keys are never in the journal.
        ring: their order on the ring, drawn after the members were known.
        neighbours: k, neighbours of each.
        threshold: t, shares that recover a secret.
        server_nonce: random bytes, part of the context that binds keys and masks.
        at_milliseconds: when, Unix milliseconds.
    """

    sessions: tuple[bytes, ...]
    roster: bytes
    ring: tuple[int, ...]
    neighbours: int
    threshold: int
    server_nonce: bytes
    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class SharesFixed:
    """Whose masks will be in the sum: members whose neighbours hold shares of their secrets.

    Attributes:
        sharers: their indices, ascending.
        shares: digest of the sealed file that holds the shares, which only their addressees can open.
        at_milliseconds: when, Unix milliseconds.
    """

    sharers: tuple[int, ...]
    shares: bytes
    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class UploadsEnded:
    """The survivors are those whose report is in the sum; only now are members asked to unmask it, and only once.

    Attributes:
        at_milliseconds: when, Unix milliseconds.
    """

    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class Report:
    """A report in a sum.

    Attributes:
        session: whose it is.
        digest: SHA-256 of its vector.
    """

    session: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch of reports is in the sum, and the sum is on disk.

    Attributes:
        reports: the batch.
        total: reports in the sum, with this batch.
        snapshot: digest of the sealed file that holds the sum.
        sum_digest: SHA-256 of the sum's vector.
        at_milliseconds: when, Unix milliseconds.
    """

    reports: tuple[Report, ...]
    total: int
    snapshot: bytes
    sum_digest: bytes
    at_milliseconds: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The sum is final.

    Attributes:
        reports: reports in it.
        sum_digest: SHA-256 of its vector, without masks.
        at_milliseconds: when, Unix milliseconds.
        snapshot: digest of the sealed file that holds the sum without masks; empty where it never had any.
    """

    reports: int
    sum_digest: bytes
    at_milliseconds: int
    snapshot: bytes = b""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The group was given up: all its reports are void.

    Attributes:
        reason: why, a stable word.
        voided: how many reports that makes void.
        at_milliseconds: when, Unix milliseconds.
    """

    reason: str
    voided: int
    at_milliseconds: int


Event = Opened | TakenOver | RosterFrozen | SharesFixed | Accepted | UploadsEnded | Closed | Aborted
