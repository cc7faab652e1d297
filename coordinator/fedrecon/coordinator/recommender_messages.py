"""Versions of what a task serves as messages of the Admin service, and what operators changed about them."""

from __future__ import annotations

from fedrecon.coordinator.assignments import reference_to
from fedrecon.coordinator.entries import Entry
from fedrecon.coordinator.recommenders import (
    CanaryBegun,
    CanaryTakenBack,
    CandidateAdmitted,
    Event,
    Evidence,
    Measured,
    RecommenderPromoted,
    RecommenderRolledBack,
    Stage,
    Version,
)
from fedrecon.v1 import admin_pb2
from fedrecon.v1.task_pb2 import TaskSpec

_STAGES = {
    Stage.CANDIDATE: admin_pb2.RECOMMENDER_STAGE_CANDIDATE,
    Stage.CANARY: admin_pb2.RECOMMENDER_STAGE_CANARY,
    Stage.LIVE: admin_pb2.RECOMMENDER_STAGE_LIVE,
    Stage.RETIRED: admin_pb2.RECOMMENDER_STAGE_RETIRED,
}


def recommender_message(
    version: Version, evidence: Evidence | None = None, outcome: tuple[Measured, int] | None = None
) -> admin_pb2.Recommender:
    """Returns a version as operators see it.

    Args:
        version: The version.
        evidence: What is known of its quality.
        outcome: Its click-through, and how many of its recommendations were shown.
    """
    return admin_pb2.Recommender(
        version=version.version,
        stage=_STAGES[version.stage],
        round=version.number,
        checkpoint=reference_to(version.checkpoint),
        spec=TaskSpec.FromString(version.spec),
        canary_places=version.places,
        admitted_unix_milliseconds=version.admitted_at,
        since_unix_milliseconds=version.since,
        operator=version.operator,
        reason=version.reason,
        evidence=None if evidence is None else evidence_message(evidence),
        click_through=None if outcome is None else _measured_message(outcome[0]),
        shown=0 if outcome is None else outcome[1],
    )


def evidence_message(evidence: Evidence) -> admin_pb2.Evidence:
    """Returns what is known of a version's quality as a message."""
    return admin_pb2.Evidence(
        source=evidence.source,
        users=evidence.users,
        live_version=evidence.live_version,
        measures=map(_measured_message, evidence.measures),
    )


def _measured_message(measured: Measured) -> admin_pb2.Measured:
    return admin_pb2.Measured(
        name=measured.name,
        value=measured.value,
        lowest=measured.lowest,
        highest=measured.highest,
        live_value=measured.live_value,
        lowest_difference=measured.lowest_difference,
        highest_difference=measured.highest_difference,
    )


def evidence_of(message: admin_pb2.Evidence) -> Evidence:
    """Returns the evidence that a message holds."""
    return Evidence(
        source=message.source,
        users=message.users,
        live_version=message.live_version,
        measures=tuple(
            Measured(
                each.name,
                each.value,
                each.lowest,
                each.highest,
                each.live_value,
                each.lowest_difference,
                each.highest_difference,
            )
            for each in message.measures
        ),
    )


def recommender_audit(name: str, entries: list[Entry[Event]]) -> list[admin_pb2.AuditEntry]:
    """Returns what operators changed about what a task serves, oldest first."""
    audit = []
    for entry in entries:
        match entry.event:
            case CandidateAdmitted(version=version, number=number, operator=operator) if operator:
                action, told = "AdmitRecommender", f"version {version}: round {number}"
            case CanaryBegun(version=version, places=places, reason=why, operator=operator):
                action, told = "PromoteRecommender", _told(f"version {version}, canary of {places / 100:g}%", why)
            case RecommenderPromoted(version=version, reason=why, operator=operator):
                action, told = "PromoteRecommender", _told(f"version {version}", why)
            case CanaryTakenBack(version=version, reason=why, operator=operator):
                action, told = "RollBackRecommender", _told(f"canary, version {version}", why)
            case RecommenderRolledBack(version=version, reason=why, operator=operator):
                action, told = "RollBackRecommender", _told(f"to version {version}", why)
            case _:
                continue
        audit.append(
            admin_pb2.AuditEntry(unix_milliseconds=entry.at, operator=operator, action=action, task=name, reason=told)
        )
    return audit


def _told(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
