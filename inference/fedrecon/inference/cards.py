"""The model card of a version: what it was made of, what is known of it, and what is claimed; as JSON and Markdown.

Rules: pure. Nothing is said that is not known: a figure that nobody measured is left out, and where no privacy is
claimed the card says so. Digests name every part, so that the card is the bundle's manifest, too.

After Mitchell et al. 2019, Model Cards for Model Reporting (arXiv 1810.03993), without what an app team must add.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fedrecon.inference.publishing import Publication
from fedrecon.inference.versions import Wanted
from fedrecon.v1.admin_pb2 import Evidence, GetPrivacyResponse, Measured
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import SumProtocol

_NO_DATA_STATEMENT = "Not stated: the task's `serving.data_statement` is empty."
_MEASURES = {
    "rmse": "RMSE",
    "recall": "recall@10",
    "ndcg": "NDCG@10",
    "coverage": "coverage@10",
}


def make_card(publication: Publication, privacy: GetPrivacyResponse) -> dict[str, Any]:
    """Returns the card of a version that answers, as JSON has it.

    Args:
        publication: the version.
        privacy: what is claimed for its task.
    """
    return card_of(
        publication.wanted,
        privacy,
        recommender=publication.recommender,
        items=publication.vocabulary,
        largest_difference=publication.largest_difference,
    )


def card_of(
    wanted: Wanted,
    privacy: GetPrivacyResponse,
    *,
    recommender: BlobReference,
    items: BlobReference,
    largest_difference: float,
) -> dict[str, Any]:
    """Returns the card of a version, as JSON has it.

    Args:
        wanted: the version.
        privacy: what is claimed for its task.
        recommender: its ONNX file.
        items: its vocabulary.
        largest_difference: of a score from the plan's own graphs, when the file was proved.
    """
    spec = wanted.spec
    card: dict[str, Any] = {
        "task": spec.name,
        "version": wanted.version,
        "round": wanted.round,
        "data": spec.serving.data_statement or _NO_DATA_STATEMENT,
        "training": {
            "population": spec.population,
            "reports_of_a_round": spec.rounds.report_goal,
            "sum": SumProtocol.Name(spec.secure_sum.protocol).removeprefix("SUM_PROTOCOL_").lower(),
            "smallest_group": spec.secure_sum.minimum_group,
        },
        "privacy": privacy.statement or "Not known: the coordinator did not answer.",
        "privacy_assumptions": list(privacy.assumptions),
        "quality": None if wanted.evidence is None else _quality(wanted.evidence),
        "outcomes": None if wanted.click_through is None else _outcomes(wanted.click_through, wanted.shown),
        "promoted": _moment(wanted.promoted_unix_milliseconds),
        "files": {
            "recommender": _file(recommender),
            "items": _file(items),
            "checkpoint": _file(wanted.checkpoint),
            "plan": _file(spec.plan),
        },
        "largest_difference_from_plan": largest_difference,
    }
    return card


def card_markdown(card: dict[str, Any]) -> str:
    """Returns a card for people.

    Args:
        card: as `card_of` gives it.
    """
    name = f"version {card['version']}" if card["version"] else "the newest checkpoint"
    lines = [
        f"# {card['task']}, {name}",
        "",
        f"Made by round {card['round']}" + (f", promoted {card['promoted']}." if card["promoted"] else "."),
        "",
        "## Data",
        card["data"],
        "",
        "## Training",
        _training_line(card["training"]),
        "",
        "## Privacy",
        card["privacy"],
        *(f"- {each}" for each in card["privacy_assumptions"]),
        "",
        "## Quality",
        *_quality_lines(card["quality"]),
        *_outcome_lines(card["outcomes"]),
        "",
        "## Files",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
        *(f"| {name} | {file['size']:,} | `{file['digest']}` |" for name, file in card["files"].items()),
        "",
        f"The ONNX file's scores differ from the plan's own by at most {card['largest_difference_from_plan']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def _training_line(training: dict[str, Any]) -> str:
    seen = (
        "each device's update was readable by the aggregator"
        if training["sum"] == "trusted"
        else f"the aggregator saw only sums of at least {training['smallest_group']} devices' updates"
    )
    return (
        f"Federated, on devices of the population `{training['population']}`: {training['reports_of_a_round']} reports "
        f"a round; {seen}."
    )


def _outcomes(click_through: Measured, shown: int) -> dict[str, Any]:
    ends = [click_through.lowest, click_through.highest]
    return {"shown": shown, "click_through": click_through.value, "interval_95": ends}


def _outcome_lines(outcomes: dict[str, Any] | None) -> list[str]:
    if outcomes is None:
        return []
    of, share = f"Of {outcomes['shown']:,} recommendations that held-out devices showed", outcomes["click_through"]
    return ["", f"{of}, {share:.1%} were chosen ({_interval(outcomes['interval_95'])})."]


def _quality(evidence: Evidence) -> dict[str, Any]:
    return {
        "source": evidence.source,
        "unseen_users": evidence.users,
        "compared_with_version": evidence.live_version,
        "measures": [
            {
                "name": each.name,
                "value": each.value,
                "interval_95": [each.lowest, each.highest],
                **(
                    {
                        "live_value": each.live_value,
                        "difference_95": [each.lowest_difference, each.highest_difference],
                    }
                    if evidence.live_version
                    else {}
                ),
            }
            for each in evidence.measures
        ],
    }


def _quality_lines(quality: dict[str, Any] | None) -> list[str]:
    if quality is None:
        return ["Not judged before it was served."]
    lines = [f"On {quality['unseen_users']} users never trained on ({quality['source']}), with 95% intervals:", ""]
    versus = quality["compared_with_version"]
    lines += [
        f"| measure | value | interval |{f' version {versus} | difference |' if versus else ''}",
        f"|---|---|---|{'---|---|' if versus else ''}",
    ]
    for each in quality["measures"]:
        row = (
            f"| {_MEASURES.get(each['name'], each['name'])} | {each['value']:.4f} | {_interval(each['interval_95'])} |"
        )
        if versus:
            row += f" {each['live_value']:.4f} | {_interval(each['difference_95'])} |"
        lines.append(row)
    return lines


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def _file(blob: BlobReference) -> dict[str, Any]:
    return {"digest": blob.digest.hex(), "size": blob.size}


def _moment(unix_milliseconds: int) -> str | None:
    if not unix_milliseconds:
        return None
    return f"{datetime.fromtimestamp(unix_milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"
