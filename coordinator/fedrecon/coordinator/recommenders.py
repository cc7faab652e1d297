"""What a task serves, as a pure fold of its own stream: versions that are candidates, canary, live or retired.

A version is a checkpoint with what shapes its recommender: plan, vocabularies, work. At most one is live and at most
one is the canary; all others may be served again.

    CANDIDATE -> CANARY -> LIVE -> RETIRED -> LIVE (rolled back to)
    CANDIDATE ----------> LIVE
    CANARY -> CANDIDATE (taken back, or another one took its place)

Rules: `step` raises `IllegalEvent` before anything changes; whether a promotion is wise was judged before (`gating`),
and what it was judged by is in its event. Of candidates and of retired versions the newest `KEPT_VERSIONS` are kept:
older ones cannot be served again, and their checkpoints may be collected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.wire.places import PLACES

KEPT_VERSIONS = 20
"""Candidates that are kept, and as many retired versions."""


class Stage(StrEnum):
    """What a version is."""

    CANDIDATE = "candidate"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of a version, with 95% intervals.

    Attributes:
        name: `rmse`, `recall`, `ndcg` or `coverage`; `click_through` tells, and no gate asks for it.
        value: The version's.
        lowest: Lower end of its interval.
        highest: Upper end.
        live_value: The live version's; 0 where there is none to compare with.
        lowest_difference: Of the version's value less the live one's.
        highest_difference: Upper end.
    """

    name: str
    value: float
    lowest: float
    highest: float
    live_value: float = 0.0
    lowest_difference: float = 0.0
    highest_difference: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """How good a version is on users never seen.

    Attributes:
        source: Where it comes from, for people.
        users: Judged.
        live_version: That it was compared with; 0: none.
        measures: Of the version.
    """

    source: str
    users: int
    live_version: int
    measures: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class CandidateAdmitted:
    """A committed checkpoint may be promoted.

    Attributes:
        version: Its number, the next one.
        number: The round that made it.
        checkpoint: The checkpoint.
        spec: `TaskSpec` that it was evaluated under, serialised.
        operator: Who; empty: the task itself, after an evaluation round.
    """

    version: int
    number: int
    checkpoint: Blob
    spec: bytes
    operator: str = ""


@dataclass(frozen=True, slots=True)
class CanaryBegun:
    """A share of the devices gets a version; another canary ends.

    Attributes:
        version: Which.
        places: Of 10,000 that devices have by a keyed hash of their own (`fedrecon.wire.places`), those that get it.
        checkpoint: With rows for the items in force.
        spec: With the vocabularies in force.
        evidence: What it was judged by; None: nothing was known, and the gate was overridden.
        reason: Why the gate was overridden; empty: it was not.
        operator: Who.
    """

    version: int
    places: int
    checkpoint: Blob
    spec: bytes
    evidence: Evidence | None
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class RecommenderPromoted:
    """A version became the live one; attributes as of `CanaryBegun`."""

    version: int
    checkpoint: Blob
    spec: bytes
    evidence: Evidence | None
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class CanaryTakenBack:
    """The canary is a candidate again.

    Attributes:
        version: Which.
        reason: Why.
        operator: Who.
    """

    version: int
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class RecommenderRolledBack:
    """A version that was live became so again; attributes as of `CanaryBegun`."""

    version: int
    checkpoint: Blob
    spec: bytes
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class ItemsRenewed:
    """The task's items changed: a version that is served has them from now on; attributes as of `CanaryBegun`."""

    version: int
    checkpoint: Blob
    spec: bytes


Event = CandidateAdmitted | CanaryBegun | CanaryTakenBack | RecommenderPromoted | RecommenderRolledBack | ItemsRenewed
EVENT_TYPES = (
    CandidateAdmitted,
    CanaryBegun,
    CanaryTakenBack,
    RecommenderPromoted,
    RecommenderRolledBack,
    ItemsRenewed,
)


@dataclass(frozen=True, slots=True)
class Version:
    """One version. Instants are Unix milliseconds.

    Attributes:
        version: Its number.
        number: The round that made its checkpoint.
        checkpoint: With rows for the items in force when it was last served.
        spec: What it is made by: a `TaskSpec`, serialised.
        stage: What it is.
        admitted_at: When it became a candidate.
        since: Since when it is what it is.
        places: Those that get it while it is the canary.
        operator: Who made it so; empty: the task itself.
        reason: Why, where a reason was given.
        evidence: What it was promoted by, if it was.
    """

    version: int
    number: int
    checkpoint: Blob
    spec: bytes
    stage: Stage
    admitted_at: int
    since: int
    places: int = 0
    operator: str = ""
    reason: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Recommenders:
    """What a task serves, as its events have left it.

    Attributes:
        versions: Those that are kept, oldest first.
        last: Number of the newest version there ever was.
    """

    versions: tuple[Version, ...] = ()
    last: int = 0

    @property
    def live(self) -> Version | None:
        """The live version; None before the first promotion."""
        return self._only(Stage.LIVE)

    @property
    def canary(self) -> Version | None:
        """The canary."""
        return self._only(Stage.CANARY)

    @property
    def newest_retired(self) -> Version | None:
        """The one that was live before: what a roll-back returns to."""
        retired = [each for each in self.versions if each.stage is Stage.RETIRED]
        return max(retired, key=lambda each: each.since, default=None)

    @property
    def served(self) -> tuple[Version, ...]:
        """Live, canary, and the one before, which devices may still hold to."""
        return tuple(each for each in (self.live, self.canary, self.newest_retired) if each is not None)

    def find(self, version: int) -> Version | None:
        """Returns a version; None if it is unknown or was dropped."""
        return next((each for each in self.versions if each.version == version), None)

    def _only(self, stage: Stage) -> Version | None:
        return next((each for each in self.versions if each.stage is stage), None)


def step(recommenders: Recommenders, event: Event, now: int) -> Recommenders:
    """Applies an event.

    Args:
        recommenders: As they stand.
        event: What happened.
        now: When, Unix milliseconds.

    Raises:
        IllegalEvent: It cannot happen now; nothing was changed.
    """
    match event:
        case CandidateAdmitted():
            return _admit(recommenders, event, now)
        case CanaryBegun():
            if not 0 <= event.places <= PLACES:
                raise IllegalEvent(f"{event.places} places: 0 to {PLACES} are there")
            found = _require(recommenders, event.version, Stage.CANDIDATE, Stage.CANARY)
            others = _moved(recommenders, Stage.CANARY, Stage.CANDIDATE, now)
            served = _served(found, event, Stage.CANARY, now)
            return _with(others, replace(served, places=event.places, evidence=event.evidence))
        case CanaryTakenBack():
            found = _require(recommenders, event.version, Stage.CANARY)
            taken_back = replace(found, stage=Stage.CANDIDATE, since=now, places=0)
            return _with(recommenders, replace(taken_back, operator=event.operator, reason=event.reason))
        case RecommenderPromoted():
            found = _require(recommenders, event.version, Stage.CANDIDATE, Stage.CANARY)
            others = _moved(recommenders, Stage.LIVE, Stage.RETIRED, now)
            return _with(others, replace(_served(found, event, Stage.LIVE, now), evidence=event.evidence))
        case RecommenderRolledBack():
            found = _require(recommenders, event.version, Stage.RETIRED)
            others = _moved(recommenders, Stage.LIVE, Stage.RETIRED, now)
            return _with(others, _served(found, event, Stage.LIVE, now))
        case ItemsRenewed():
            found = _require(recommenders, event.version, Stage.LIVE, Stage.CANARY)
            return _with(recommenders, replace(found, checkpoint=event.checkpoint, spec=event.spec))


def _admit(recommenders: Recommenders, event: CandidateAdmitted, now: int) -> Recommenders:
    if event.version != recommenders.last + 1:
        raise IllegalEvent(f"version {event.version} is admitted, but {recommenders.last + 1} is the next")
    admitted = Version(
        version=event.version,
        number=event.number,
        checkpoint=event.checkpoint,
        spec=event.spec,
        stage=Stage.CANDIDATE,
        admitted_at=now,
        since=now,
        operator=event.operator,
    )
    return Recommenders(_pruned((*recommenders.versions, admitted)), event.version)


def _require(recommenders: Recommenders, version: int, *stages: Stage) -> Version:
    found = recommenders.find(version)
    if found is None:
        raise IllegalEvent(f"there is no version {version}, or not any more")
    if found.stage not in stages:
        raise IllegalEvent(f"version {version} is {found.stage}, not {' or '.join(stages)}")
    return found


def _served(
    found: Version, event: CanaryBegun | RecommenderPromoted | RecommenderRolledBack, stage: Stage, now: int
) -> Version:
    return replace(
        found,
        stage=stage,
        since=now,
        places=0,
        checkpoint=event.checkpoint,
        spec=event.spec,
        operator=event.operator,
        reason=event.reason,
    )


def _moved(recommenders: Recommenders, before: Stage, after: Stage, now: int) -> Recommenders:
    """Returns the same with whatever is in one stage moved to another."""
    moved = (
        replace(each, stage=after, since=now, places=0) if each.stage is before else each
        for each in recommenders.versions
    )
    return replace(recommenders, versions=tuple(moved))


def _with(recommenders: Recommenders, changed: Version) -> Recommenders:
    versions = tuple(changed if each.version == changed.version else each for each in recommenders.versions)
    return replace(recommenders, versions=_pruned(versions))


def _pruned(versions: tuple[Version, ...]) -> tuple[Version, ...]:
    """Returns the versions without the candidates and retired ones that are too old."""
    candidates = [each for each in versions if each.stage is Stage.CANDIDATE]
    retired = sorted((each for each in versions if each.stage is Stage.RETIRED), key=lambda each: each.since)
    dropped = {each.version for old in (candidates, retired) for each in old[:-KEPT_VERSIONS]}
    return tuple(each for each in versions if each.version not in dropped)
