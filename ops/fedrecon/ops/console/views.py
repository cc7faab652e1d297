"""Messages of Admin as the console's pages take them: small, flat, with what charts need worked out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedrecon.ops.quality import quality_of
from fedrecon.ops.standing import warnings_of, warnings_of_aggregators
from fedrecon.ops.task_commands import protocol_of, state_of
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_EVALUATE

_PLACES = 10_000
"""Places of devices, of which a canary has some."""

_TRAINED = "]"
"""What the shape of a session has whose work was done."""


def task_view(task: admin.Task, privacy: admin.GetPrivacyResponse | None, now: int) -> dict[str, Any]:
    """Return a task, with what an operator sees first.

    Args:
        task: As it stands.
        privacy: What is claimed for it; None: not asked.
        now: Unix milliseconds.
    """
    spec, rounds, ended = task.spec, task.spec.rounds, task.committed + task.abandoned
    return {
        "name": spec.name,
        "population": spec.population,
        "state": state_of(task),
        "reason": task.reason,
        "now": now,
        "created": task.created_unix_milliseconds,
        "round": round_view(task.round) if task.HasField("round") else None,
        "committed": task.committed,
        "abandoned": task.abandoned,
        "share_committed": task.committed / ended if ended else None,
        "last_commit": task.committed_unix_milliseconds,
        "abandoned_in_a_row": task.abandoned_in_a_row,
        "retry": task.retry_unix_milliseconds,
        "leader": task.leader,
        "live_round": task.live_round,
        "checkpoint": task.checkpoint.digest.hex(),
        "maximum_rounds": rounds.maximum_rounds,
        "report_goal": rounds.report_goal,
        "minimum_reports": rounds.minimum_reports,
        "minimum_cohort": rounds.minimum_cohort,
        "over_selection": rounds.over_selection,
        "evaluates_every": spec.evaluation.every_rounds,
        "sum": protocol_of(spec),
        "plan": spec.plan.digest.hex(),
        "publisher": spec.signature.publisher_key.hex(),
        "warnings": [{"what": each.what, "advice": each.advice} for each in warnings_of(task, privacy, now)],
        "privacy": None if privacy is None else privacy_view(task, privacy),
    }


def privacy_view(task: admin.Task, privacy: admin.GetPrivacyResponse) -> dict[str, Any]:
    """Return what privacy is claimed."""
    return {
        "statement": privacy.statement,
        "guaranteed": task.spec.HasField("privacy"),
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "budget": task.spec.privacy.epsilon_budget,
        "assumptions": list(privacy.assumptions),
    }


def round_view(attempt: admin.Round) -> dict[str, Any]:
    """Return an attempt."""
    trained = sum(count for shape, count in attempt.shapes.items() if _TRAINED in shape)
    return {
        "round": attempt.key.round,
        "attempt": attempt.key.attempt,
        "kind": "evaluation" if attempt.kind == SESSION_KIND_EVALUATE else "training",
        "phase": admin.RoundPhase.Name(attempt.phase).removeprefix("ROUND_PHASE_").lower(),
        "waiting": max(attempt.waiting, attempt.assigned),
        "assigned": attempt.assigned,
        "trained": max(trained, attempt.reported),
        "reported": attempt.reported,
        "counted": attempt.counted,
        "dropped": attempt.dropped,
        "voided": attempt.voided,
        "goal": attempt.report_goal,
        "cohort": attempt.cohort_size,
        "opened": attempt.opened_unix_milliseconds,
        "assigned_at": attempt.assigned_unix_milliseconds,
        "reporting_ended": attempt.reporting_ended_unix_milliseconds,
        "phase_ends": attempt.phase_ends_unix_milliseconds,
        "ended": attempt.ended_unix_milliseconds,
        "reason": attempt.reason,
        "quality": _quality(attempt.metric_sums, attempt.weight),
        "outcomes": dict(attempt.outcomes),
        "shapes": dict(attempt.shapes),
        "checkpoint": attempt.checkpoint.digest.hex(),
        "weight": attempt.weight,
        "update_norm": attempt.update_norm,
        "expected_share": attempt.report_share,
    }


def point_view(point: admin.HistoryPoint) -> dict[str, Any]:
    """Return neighbouring rounds as charts take them: means, and None where there is nothing to divide by."""
    return {
        "first": point.first_round,
        "last": point.last_round,
        "committed": point.committed,
        "abandoned": point.abandoned,
        "ended": point.ended_unix_milliseconds,
        "seconds": _ratio(point.milliseconds / 1000, point.committed),
        "dropout": None if not point.assigned else max(1 - point.counted / point.assigned, 0.0),
        "over_selection": _ratio(point.assigned, point.report_goal),
        "training": _quality(point.training.metric_sums, point.training.weight),
        "evaluation": _quality(point.evaluation.metric_sums, point.evaluation.weight),
    }


def checkpoint_view(checkpoint: admin.Checkpoint) -> dict[str, Any]:
    """Return a checkpoint."""
    return {
        "round": checkpoint.round,
        "digest": checkpoint.blob.digest.hex(),
        "bytes": checkpoint.blob.size,
        "committed": checkpoint.committed_unix_milliseconds,
        "live": checkpoint.live,
    }


def recommenders_view(listed: admin.ListRecommendersResponse) -> dict[str, Any]:
    """Return the versions of what a task serves, newest first."""
    return {
        "follows_newest": listed.follows_newest,
        "recommenders": [
            {
                "version": each.version,
                "stage": admin.RecommenderStage.Name(each.stage).removeprefix("RECOMMENDER_STAGE_").lower(),
                "round": each.round,
                "share": each.canary_places / _PLACES,
                "since": each.since_unix_milliseconds,
                "operator": each.operator,
                "reason": each.reason,
                "refusal": listed.refusals.get(each.version, ""),
            }
            for each in listed.recommenders
        ],
    }


def audit_view(entry: admin.AuditEntry) -> dict[str, Any]:
    """Return a change by an operator."""
    return {
        "at": entry.unix_milliseconds,
        "operator": entry.operator,
        "action": entry.action,
        "task": entry.task,
        "reason": entry.reason,
    }


def aggregators_view(aggregators: Iterable[admin.AggregatorState]) -> dict[str, Any]:
    """Return the aggregators, and what is wrong with them."""
    listed = list(aggregators)
    return {
        "aggregators": [
            {"target": each.target, "drained": each.drained, "answers": each.answers, "groups": each.open_groups}
            for each in listed
        ],
        "warnings": [{"what": each.what, "advice": each.advice} for each in warnings_of_aggregators(listed)],
    }


def _ratio(amount: float, of: float) -> float | None:
    return amount / of if of else None


def _quality(sums: Mapping[str, float], weight: float) -> dict[str, Any] | None:
    quality = quality_of(sums, weight)
    return None if quality is None else {"name": quality.name, "value": quality.value}
