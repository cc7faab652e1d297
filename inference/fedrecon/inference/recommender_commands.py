"""`fedrecon recommenders`: list, admit, promote and roll back what a task serves, and print its model card.

Rules: the coordinator decides and keeps; these commands ask, and judge versions on ratings that lie on this machine.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Name, Reason, Server
from fedrecon.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from fedrecon.inference.versions import Wanted
    from fedrecon.v1.admin_pb2_grpc import AdminStub

recommenders = typer.Typer(help="See and change what a task serves.", no_args_is_help=True)

Blobs = Annotated[str | None, typer.Option("--blobs", help="where blobs are fetched, host:port; beside --server")]
OptionalVersion = Annotated[int, typer.Argument(metavar="[VERSION]", min=0, help="its number")]

_PROMOTE_SECONDS = 120.0
_COLOURS = {
    admin.RECOMMENDER_STAGE_LIVE: "green",
    admin.RECOMMENDER_STAGE_CANARY: "yellow",
    admin.RECOMMENDER_STAGE_CANDIDATE: "cyan",
}
_TOLD = {"rmse": "RMSE", "recall": "recall@10", "ndcg": "NDCG@10", "coverage": "coverage@10", "click_through": "chosen"}


@recommenders.command(name="list")
def list_recommenders(name: Name, server: Server = None, as_json: AsJson = False) -> None:
    """List the versions of what a task serves, with their figures and what stands in their way."""
    with open_admin(server) as stub:
        found = _listed(stub, name)
    if as_json:
        print_json(as_dict(found))
        return
    table = Table("version", "round", "stage", "since", "unseen users", "figures", "by", box=SIMPLE_HEAD)
    for each in found.recommenders:
        colour = _COLOURS.get(each.stage, "white")
        users = f"{each.evidence.users:,}" if each.HasField("evidence") else ""
        told = [*each.evidence.measures, *([each.click_through] if each.HasField("click_through") else [])]
        figures = ", ".join(map(_figure, told))
        who = each.operator or "itself"
        table.add_row(
            str(each.version), str(each.round), f"[{colour}]{_stage(each)}[/]", _since(each), users, figures, who
        )
    Console().print(table)
    for version, why in sorted(found.refusals.items()):
        Console(highlight=False, soft_wrap=True).print(f"Version {version}: {why or 'passes the gate'}.")
    if found.follows_newest:
        Console(highlight=False).print("Nothing was promoted: every committed checkpoint is served as it comes.")


@recommenders.command()
def admit(
    name: Name,
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=0, help="round that made the checkpoint")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make a committed checkpoint a candidate."""
    with open_admin(server) as stub:
        request = admin.AdmitRecommenderRequest(task=name, round=round_number)
        admitted = stub.AdmitRecommender(request, timeout=_PROMOTE_SECONDS).recommender
    if as_json:
        print_json(as_dict(admitted))
        return
    Console().print(f"Round {round_number} is version {admitted.version}, {_stage(admitted)}.")


@recommenders.command()
def promote(
    name: Name,
    version: OptionalVersion = 0,
    users: Annotated[
        Path | None, typer.Option("--users", help="ratings to judge it on: a MovieLens folder, or a CSV file")
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--everybody", help="judge on all users there; by default on the tenth that never trains")
    ] = False,
    canary: Annotated[
        float | None, typer.Option("--canary", min=0, max=100, help="percent of devices that get it; default: all")
    ] = None,
    override: Annotated[str, typer.Option("--override", help="why, whatever the gate says; for the audit log")] = "",
    server: Server = None,
    blobs: Blobs = None,
    as_json: AsJson = False,
) -> None:
    """Serve a version to some devices or to all; by default the canary, or the newest candidate."""
    with open_admin(server) as stub:
        found = _listed(stub, name)
        chosen = _chosen(found, version, name)
        request = admin.PromoteRecommenderRequest(task=name, version=chosen.version, override=override)
        if canary is not None:
            request.canary_places = round(canary * 100)
        if users is not None:
            request.evidence.CopyFrom(_judge(found, chosen, users, server, blobs, everybody=everybody))
        promoted = stub.PromoteRecommender(request, timeout=_PROMOTE_SECONDS).recommender
    if as_json:
        print_json(as_dict(promoted))
        return
    console = Console(highlight=False)
    _print_evidence(console, promoted.evidence)
    if canary is None:
        console.print(f"Version {promoted.version} (round {promoted.round}) is live.")
    else:
        console.print(f"Version {promoted.version} (round {promoted.round}) is the canary of {canary:g}% of devices.")


@recommenders.command()
def rollback(
    name: Name, version: OptionalVersion = 0, reason: Reason = "", server: Server = None, as_json: AsJson = False
) -> None:
    """Take the canary back, or make the version live again that was before."""
    with open_admin(server) as stub:
        request = admin.RollBackRecommenderRequest(task=name, version=version, reason=reason)
        answer = stub.RollBackRecommender(request, timeout=_PROMOTE_SECONDS)
    if as_json:
        print_json(as_dict(answer))
        return
    if answer.HasField("recommender"):
        live = answer.recommender
        Console(highlight=False).print(f"Live is version {live.version} (round {live.round}).")
    else:
        Console(highlight=False).print("The canary is taken back; nothing was promoted.")


@recommenders.command()
def card(
    name: Name,
    version: OptionalVersion = 0,
    server: Server = None,
    blobs: Blobs = None,
    as_json: AsJson = False,
) -> None:
    """Print the model card of a version, by default of what is live; its file is made and proved for it."""
    from fedrecon.inference.cards import card_markdown

    with open_admin(server) as stub:
        wanted = _wanted(stub, name, version)
        made = _card(stub, wanted, server, blobs)
    if as_json:
        print_json(made)
    else:
        typer.echo(card_markdown(made))


def _listed(stub: AdminStub, name: str) -> admin.ListRecommendersResponse:
    return stub.ListRecommenders(admin.ListRecommendersRequest(task=name), timeout=CALL_SECONDS)


def _chosen(found: admin.ListRecommendersResponse, version: int, name: str) -> admin.Recommender:
    """Returns the version that was named, else the canary, else the newest candidate."""
    if version:
        named = next((each for each in found.recommenders if each.version == version), None)
        if named is None:
            raise UserMistake(f"Task {name!r} has no version {version}.", f"`fedrecon recommenders list {name}`.")
        return named
    for stage in (admin.RECOMMENDER_STAGE_CANARY, admin.RECOMMENDER_STAGE_CANDIDATE):
        for each in found.recommenders:
            if each.stage == stage:
                return each
    raise UserMistake(
        f"Task {name!r} has no candidate.",
        f"Make a round's checkpoint one: `fedrecon recommenders admit {name} ROUND`.",
    )


def _judge(
    found: admin.ListRecommendersResponse,
    chosen: admin.Recommender,
    users: Path,
    server: str | None,
    blobs: str | None,
    *,
    everybody: bool,
) -> admin.Evidence:
    """Judges a version, and the live one beside it, on ratings."""
    import numpy as np
    from rich.progress import Progress

    from fedrecon.datasets import split_users
    from fedrecon.inference.bundles import NotExportableError
    from fedrecon.inference.collecting import export_versions
    from fedrecon.inference.judging import UnjudgeableError, evidence_of, judge_users, raters_of
    from fedrecon.inference.recommending import OpenRecommender
    from fedrecon.inference.versions import promoted_of
    from fedrecon.ops.rating_files import load_ratings
    from fedrecon.wire.vocabularies import read_vocabulary

    ratings = load_ratings(users)
    count = len(ratings.user_keys)
    raters = raters_of(ratings, np.arange(count) if everybody else split_users(count).test)
    live = next((each for each in found.recommenders if each.stage == admin.RECOMMENDER_STAGE_LIVE), None)
    versions = [chosen] if live is None else [chosen, live]
    try:
        exported = export_versions([promoted_of(each) for each in versions], server, blobs)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("judging", total=len(raters) * len(exported))
            judged = [
                judge_users(
                    OpenRecommender.open(each.recommender, read_vocabulary(each.items)),
                    raters,
                    lambda: bar.advance(task),
                )
                for each in exported
            ]
    except (NotExportableError, UnjudgeableError) as error:
        raise UserMistake(f"Version {chosen.version} cannot be judged: {error}.", "Nothing has changed.") from error
    which = "all users" if everybody else "users who never train"
    return evidence_of(
        judged[0], None if live is None else judged[1], 0 if live is None else live.version, f"{which} of {users.name}"
    )


def _wanted(stub: AdminStub, name: str, version: int) -> Wanted:
    from fedrecon.inference.versions import promoted_of, wishes_of

    found = _listed(stub, name)
    if version:
        return promoted_of(_chosen(found, version, name))
    for each in found.recommenders:
        if each.stage == admin.RECOMMENDER_STAGE_LIVE:
            return promoted_of(each)
    live = wishes_of(stub.GetTask(admin.GetTaskRequest(task=name), timeout=CALL_SECONDS).task).live
    if live is None:
        raise UserMistake(
            f"Task {name!r} serves nothing yet.", f"Name a version: `fedrecon recommenders card {name} 1`."
        )
    return live


def _card(stub: AdminStub, wanted: Wanted, server: str | None, blobs: str | None) -> dict[str, object]:
    from fedrecon.inference.bundles import NotExportableError
    from fedrecon.inference.cards import card_of
    from fedrecon.inference.collecting import export_versions
    from fedrecon.v1.common_pb2 import BlobReference
    from fedrecon.wire.digests import digest_of

    privacy = stub.GetPrivacy(admin.GetPrivacyRequest(task=wanted.spec.name), timeout=CALL_SECONDS)
    try:
        (exported,) = export_versions([wanted], server, blobs)
    except NotExportableError as error:
        raise UserMistake(f"This cannot become a recommender: {error}.", "See the plan of the task.") from error
    files = [BlobReference(digest=digest_of(each), size=len(each)) for each in (exported.recommender, exported.items)]
    return card_of(
        wanted, privacy, recommender=files[0], items=files[1], largest_difference=exported.largest_difference
    )


def _print_evidence(console: Console, evidence: admin.Evidence) -> None:
    if not evidence.measures:
        return
    against = f"version {evidence.live_version}" if evidence.live_version else ""
    table = Table("measure", "value", "95% interval", against, "difference", box=SIMPLE_HEAD)
    for each in evidence.measures:
        row = [_TOLD.get(each.name, each.name), f"{each.value:.4f}", f"{each.lowest:.4f} to {each.highest:.4f}"]
        if evidence.live_version:
            row += [f"{each.live_value:.4f}", f"{each.lowest_difference:+.4f} to {each.highest_difference:+.4f}"]
        table.add_row(*row)
    console.print(f"Judged on {evidence.users:,} users: {evidence.source}.")
    console.print(table)


def _figure(measured: admin.Measured) -> str:
    half = (measured.highest - measured.lowest) / 2
    return f"{_TOLD.get(measured.name, measured.name)} {measured.value:.4f} ± {half:.4f}"


def _stage(version: admin.Recommender) -> str:
    name = admin.RecommenderStage.Name(version.stage).removeprefix("RECOMMENDER_STAGE_").lower()
    return f"{name} of {version.canary_places / 100:g}%" if version.stage == admin.RECOMMENDER_STAGE_CANARY else name


def _since(version: admin.Recommender) -> str:
    return f"{datetime.fromtimestamp(version.since_unix_milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"
