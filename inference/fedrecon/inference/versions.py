"""What a task wants served: pure, from what the coordinator tells of it.

Before anything was promoted every committed checkpoint is served as it comes, as version 0, unless the task wants
promotion: then nothing is. From the first promotion on, the live version is served, the canary beside it, and the one
that was live before, for whoever holds to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.v1.admin_pb2 import (
    RECOMMENDER_STAGE_CANARY,
    RECOMMENDER_STAGE_LIVE,
    RECOMMENDER_STAGE_RETIRED,
    Evidence,
    Measured,
    Recommender,
    Task,
)
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import TaskSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version that is to be served.

    Attributes:
        version: its number; 0: the newest committed checkpoint.
        round: the round that made its checkpoint.
        checkpoint: the checkpoint.
        spec: what it is made by: plan, vocabularies, work.
        evidence: what it was promoted by; None if it was not.
        promoted_unix_milliseconds: since when it is what it is; 0: it was not promoted.
        click_through: share of its recommendations that were chosen, as devices told; None: it is not known here.
        shown: recommendations that this is of.
    """

    version: int
    round: int
    checkpoint: BlobReference
    spec: TaskSpec
    evidence: Evidence | None = None
    promoted_unix_milliseconds: int = 0
    click_through: Measured | None = None
    shown: int = 0

    @property
    def shape(self) -> tuple[bytes, ...]:
        """What its recommender depends on: it is made again when any of it changes."""
        named = sorted(self.spec.vocabularies.items())
        return (
            self.version.to_bytes(8, "little"),
            self.checkpoint.digest,
            self.spec.plan.digest,
            self.spec.work.SerializeToString(deterministic=True),
            *(part for name, reference in named for part in (name.encode(), reference.digest)),
        )


@dataclass(frozen=True, slots=True)
class Wishes:
    """All that a task wants served.

    Attributes:
        live: what answers; None: nothing may.
        canary: what some devices get.
        places: of 10,000, those that get it.
        before: what was live before.
    """

    live: Wanted | None
    canary: Wanted | None
    places: int
    before: Wanted | None


def wishes_of(task: Task) -> Wishes:
    """Returns what a task wants served."""
    by_stage = {each.stage: each for each in task.recommenders}
    live, canary = by_stage.get(RECOMMENDER_STAGE_LIVE), by_stage.get(RECOMMENDER_STAGE_CANARY)
    before = by_stage.get(RECOMMENDER_STAGE_RETIRED)
    return Wishes(
        live=_newest(task) if live is None else promoted_of(live),
        canary=None if canary is None else promoted_of(canary),
        places=0 if canary is None else canary.canary_places,
        before=None if before is None else promoted_of(before),
    )


def _newest(task: Task) -> Wanted | None:
    if not task.checkpoint.digest or task.spec.serving.by_promotion:
        return None
    return Wanted(0, task.live_round, task.checkpoint, task.spec)


def promoted_of(version: Recommender) -> Wanted:
    """Returns a version as what is to be served."""
    evidence = version.evidence if version.HasField("evidence") else None
    since = version.since_unix_milliseconds
    told = version.click_through if version.HasField("click_through") else None
    return Wanted(
        version.version, version.round, version.checkpoint, version.spec, evidence, since, told, version.shown
    )
