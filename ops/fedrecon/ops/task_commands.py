"""`fedrecon task`: create, list, show, edit, pause, resume and cancel tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, open_admin, put_blob
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.plan_folders import blob_file, manifest_file, signature_file
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_specs import build_spec, edit_spec
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Manifest
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_TRUSTED, TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import BadSignatureError, MalformedPlanError, blobs_of, read_manifest, read_signature
from fedrecon.wire.row_sets import MalformedRowSetError, read_row_set
from fedrecon.wire.vocabularies import MalformedVocabularyError, read_vocabulary

task = typer.Typer(help="Create and steer tasks.", no_args_is_help=True)

_CREATE_SECONDS = 120.0
"""What a privacy budget allows is computed then, and on a busy machine that takes a while."""
EDIT_TRIES = 5
"""A task changes with every commit, and an edit starts from what it says now."""

Server = Annotated[str | None, typer.Option("--server", help="coordinator, host:port; default: the stack here")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
_COMPLETION_SECONDS = 2.0


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of tasks that begin so, for a shell; none where nobody can be asked quickly."""
    try:
        with open_admin(context.params.get("server")) as stub:
            tasks = stub.ListTasks(admin.ListTasksRequest(), timeout=_COMPLETION_SECONDS).tasks
    except (UserMistake, grpc.RpcError):
        return []
    return [each.spec.name for each in tasks if each.spec.name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="name of the task", autocompletion=complete_task)]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="at most so many, newest first")]
Rows = Annotated[
    list[str] | None,
    typer.Option("--rows", help="a public row set, items=FILE: reports hold its rows only (`fedrecon data rows`)"),
]
Reason = Annotated[str, typer.Option("--reason", help="why, for the audit log")]


@task.command()
def create(
    name: Name,
    plan: Annotated[Path, typer.Option("--plan", help="folder of the compiled plan")],
    spec: Annotated[Path | None, typer.Option("--spec", help="TOML file with the names of TaskSpec")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="one value, rounds.report_goal=20")] = None,
    rows: Rows = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Store a plan and register a task that trains it."""
    asked = build_spec(name, spec, assignments or [])
    row_sets = [_read_row_set(each) for each in rows or ()]
    with open_admin(server) as stub:
        for vocabulary, content in row_sets:
            asked.row_sets[vocabulary].CopyFrom(put_blob(stub, content))
        created = create_task(stub, asked, plan)
    _show(created, as_json=as_json)
    open_rows = sorted(_summed_whole(created.spec, read_manifest(manifest_file(plan).read_bytes())))
    if open_rows:
        typer.echo(
            f"All rows of {', '.join(open_rows)} are summed, also those of a single device. Apps take part only if "
            "they say min_contributors=0; `fedrecon data rows` makes a public row set for --rows.",
            err=True,
        )


def create_task(stub: AdminStub, spec: TaskSpec, plan: Path) -> admin.Task:
    """Store the plan's blobs and register the task.

    Args:
        stub: The deployment's Admin service.
        spec: What is asked for, without its plan.
        plan: Folder of the compiled plan: `manifest.json`, `signature.json`, `blobs/`.

    Raises:
        UserMistake: The folder is not a plan, or a part of it is damaged.
    """
    try:
        content = manifest_file(plan).read_bytes()
        manifest = read_manifest(content)
        signature = read_signature(signature_file(plan).read_bytes())
    except OSError as error:
        raise UserMistake(f"{plan} is no plan: {_unreadable(error)}.", "`fedrecon plan compile` makes one.") from error
    except MalformedPlanError as error:
        raise UserMistake(f"{plan} is no plan for this version: {error}.", "Compile the plan again.") from error
    except BadSignatureError as error:
        raise UserMistake(f"{signature_file(plan)} is damaged: {error}.", "Compile the plan again.") from error
    parts = [part for _, part in blobs_of(manifest)]
    # All are looked at before the first is stored: a plan that is not whole leaves nothing behind.
    for part in parts:
        _read_part(plan, part)
    for part in parts:
        put_blob(stub, _read_part(plan, part))
    asked = TaskSpec()
    asked.CopyFrom(spec)
    asked.plan.CopyFrom(put_blob(stub, content))
    asked.signature.CopyFrom(signature)
    return stub.CreateTask(admin.CreateTaskRequest(spec=asked), timeout=_CREATE_SECONDS).task


def _summed_whole(spec: TaskSpec, manifest: Manifest) -> set[str]:
    """Return the vocabularies of which a masked sum may hold a row that one device alone has updated."""
    if spec.secure_sum.protocol == SUM_PROTOCOL_TRUSTED:
        return set()  # there is nothing that it hides
    reported = {segment.parameter for segment in manifest.layout.segments}
    return {each.vocabulary for each in manifest.parameters if each.vocabulary and each.name in reported} - set(
        spec.row_sets
    )


def _read_vocabulary(assignment: str) -> tuple[str, bytes]:
    """Return the name and the bytes of a vocabulary that `--vocabulary` names."""
    name, _, file = assignment.partition("=")
    try:
        content = Path(file).read_bytes()
        found = read_vocabulary(content).name
    except OSError as error:
        raise UserMistake(f"{_unreadable(error)}.", "Write it as --vocabulary items=FILE.") from error
    except MalformedVocabularyError as error:
        raise UserMistake(f"{file} is no vocabulary: {error}.", "`fedrecon.wire.vocabularies` writes them.") from error
    if found != name:
        raise UserMistake(f"{file} is the vocabulary {found!r}, not {name!r}.", f"Write --vocabulary {found}={file}.")
    return name, content


def _read_row_set(assignment: str) -> tuple[str, bytes]:
    """Return the vocabulary and the bytes of a row set that `--rows` names."""
    name, _, file = assignment.partition("=")
    try:
        content = Path(file).read_bytes()
        read_row_set(content)
    except OSError as error:
        raise UserMistake(f"{_unreadable(error)}.", "Write it as --rows items=FILE.") from error
    except MalformedRowSetError as error:
        raise UserMistake(f"{file} is no row set: {error}.", "`fedrecon data rows` makes one.") from error
    return name, content


def _edit(
    stub: AdminStub,
    name: str,
    file: Path | None,
    assignments: Sequence[str],
    vocabularies: Mapping[str, BlobReference],
    row_sets: Mapping[str, BlobReference],
) -> admin.Task:
    """Read a task and change what it says now: again, where a round was committed in between."""
    for tries_left in reversed(range(EDIT_TRIES)):
        now = stub.GetTask(admin.GetTaskRequest(task=name), timeout=CALL_SECONDS).task
        asked = TaskSpec()
        asked.CopyFrom(now.spec)
        for vocabulary, blob in vocabularies.items():
            asked.vocabularies[vocabulary].CopyFrom(blob)
        for vocabulary, blob in row_sets.items():
            asked.row_sets[vocabulary].CopyFrom(blob)
        if file is not None or assignments or asked == now.spec:
            asked = edit_spec(asked, file, assignments)
        request = admin.EditTaskRequest(spec=asked, version=now.version)
        try:
            return stub.EditTask(request, timeout=CALL_SECONDS).task
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _read_part(plan: Path, part: BlobReference) -> bytes:
    path = blob_file(plan, part.digest)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserMistake(f"{plan} is not whole: {_unreadable(error)}.", "Compile the plan again.") from error
    if digest_of(content) != part.digest:
        raise UserMistake(f"{path} is damaged: its SHA-256 is not its name.", "Compile the plan again.")
    return content


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}"


@task.command(name="list")
def list_tasks(server: Server = None, as_json: AsJson = False) -> None:
    """List all tasks."""
    with open_admin(server) as stub:
        tasks = stub.ListTasks(admin.ListTasksRequest(), timeout=CALL_SECONDS).tasks
    if as_json:
        print_json({"tasks": [as_dict(each) for each in tasks]})
        return
    table = Table("task", "population", "state", "round", "committed", "abandoned", "sum")
    for each in tasks:
        table.add_row(
            each.spec.name,
            each.spec.population,
            state_of(each),
            str(each.round.key.round),
            str(each.committed),
            str(each.abandoned),
            protocol_of(each.spec),
        )
    Console().print(table)


@task.command()
def show(name: Name, server: Server = None, as_json: AsJson = False) -> None:
    """Show a task as it stands."""
    with open_admin(server) as stub:
        _show(stub.GetTask(admin.GetTaskRequest(task=name), timeout=CALL_SECONDS).task, as_json=as_json)


@task.command()
def edit(
    name: Name,
    spec: Annotated[Path | None, typer.Option("--spec", help="TOML file with what changes")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="one value, rounds.report_goal=20")] = None,
    vocabularies: Annotated[
        list[str] | None, typer.Option("--vocabulary", help="a newer vocabulary, items=FILE: rows appended or retired")
    ] = None,
    rows: Rows = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Change what a task is asked for, from its next round on."""
    newer = [_read_vocabulary(each) for each in vocabularies or ()]
    row_sets = [_read_row_set(each) for each in rows or ()]
    with open_admin(server) as stub:
        stored = {vocabulary: put_blob(stub, content) for vocabulary, content in newer}
        stored_rows = {vocabulary: put_blob(stub, content) for vocabulary, content in row_sets}
        _show(_edit(stub, name, spec, assignments or [], stored, stored_rows), as_json=as_json)


@task.command()
def pause(name: Name, reason: Reason = "", server: Server = None, as_json: AsJson = False) -> None:
    """Stop new rounds; the running one ends."""
    with open_admin(server) as stub:
        request = admin.PauseTaskRequest(task=name, reason=reason)
        _show(stub.PauseTask(request, timeout=CALL_SECONDS).task, as_json=as_json)


@task.command()
def resume(name: Name, server: Server = None, as_json: AsJson = False) -> None:
    """Go on with a paused task."""
    with open_admin(server) as stub:
        _show(stub.ResumeTask(admin.ResumeTaskRequest(task=name), timeout=CALL_SECONDS).task, as_json=as_json)


@task.command()
def cancel(name: Name, reason: Reason = "", server: Server = None, as_json: AsJson = False) -> None:
    """End a task for good; its checkpoints stay."""
    with open_admin(server) as stub:
        request = admin.CancelTaskRequest(task=name, reason=reason)
        _show(stub.CancelTask(request, timeout=CALL_SECONDS).task, as_json=as_json)


def state_of(task: admin.Task) -> str:
    """Return a task's state as a word."""
    return admin.TaskState.Name(task.state).removeprefix("TASK_STATE_").lower()


def protocol_of(spec: TaskSpec) -> str:
    """Return how a task's reports are summed, with what that reveals."""
    if spec.secure_sum.protocol == SUM_PROTOCOL_TRUSTED:
        return "trusted (the aggregator sees each update)"
    return "SecAgg+ (the aggregator sees sums only)"


def _show(shown: admin.Task, *, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(shown))
        return
    spec = shown.spec
    table = Table(show_header=False, title=spec.name, box=SIMPLE)
    table.add_column()
    table.add_column(overflow="fold")
    rounds = spec.rounds
    table.add_row("state", state_of(shown) + (f": {shown.reason}" if shown.reason else ""))
    table.add_row("population", spec.population)
    table.add_row(
        "rounds", f"{shown.committed} committed, {shown.abandoned} abandoned, now round {shown.round.key.round}"
    )
    table.add_row(
        "a round",
        f"{rounds.report_goal} reports wanted, at least {rounds.minimum_reports}, "
        f"over-selection {rounds.over_selection:g}"
        + (f" to {rounds.maximum_over_selection:g}, learned" if rounds.maximum_over_selection else ""),
    )
    if spec.evaluation.every_rounds:
        held_out = f"{spec.evaluation.held_out_share:.0%} of devices, held out from training"
        table.add_row("evaluation", f"after every {spec.evaluation.every_rounds} training rounds, by {held_out}")
    table.add_row("sum", protocol_of(spec))
    if spec.row_sets:
        table.add_row("rows", f"of {', '.join(sorted(spec.row_sets))} a public row set, all rows of the others")
    table.add_row("privacy", "no DP guarantee" if not spec.HasField("privacy") else "differential privacy")
    table.add_row("plan", spec.plan.digest.hex())
    table.add_row("publisher", spec.signature.publisher_key.hex() or "unsigned")
    table.add_row("live checkpoint", shown.checkpoint.digest.hex())
    Console().print(table)
