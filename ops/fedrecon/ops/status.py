"""`fedrecon status`: a whole deployment on one screen, and an exit code for programs.

Exit code 0: all is well; 1: something should be looked into, and is said; 3: the coordinator cannot be reached.
"""

from __future__ import annotations

from typing import Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, find_targets, open_sync_channel
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.printing import print_json
from fedrecon.ops.settings import Settings, load_settings
from fedrecon.ops.stack import CONSOLE, ROLES, read_stack_file
from fedrecon.ops.standing import Warned, span, warnings_of, warnings_of_aggregators
from fedrecon.ops.task_commands import AsJson, Server, state_of
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub

EXIT_LOOK = 1
_HEALTH_SECONDS = 3.0
_COLOURS = {"running": "green", "completed": "green", "paused": "yellow", "cancelled": "red"}


def status(server: Server = None, as_json: AsJson = False) -> None:
    """Show services, tasks, rounds and what should be looked into; exit code 1 if anything should."""
    targets = find_targets(server)
    services = [] if server is not None else _services()
    with open_sync_channel(targets.coordinator) as channel:
        stub = AdminStub(channel)
        tasks = list(stub.ListTasks(admin.ListTasksRequest(), timeout=CALL_SECONDS).tasks)
        claims = {
            each.spec.name: stub.GetPrivacy(admin.GetPrivacyRequest(task=each.spec.name), timeout=CALL_SECONDS)
            for each in tasks
        }
        aggregators = list(stub.ListAggregators(admin.ListAggregatorsRequest(), timeout=CALL_SECONDS).aggregators)
    now = SystemClock().now_milliseconds()
    found = found_wrong(services, aggregators, tasks, claims, now)
    if as_json:
        print_json(
            {
                "fine": not found,
                "services": services,
                "aggregators": [
                    {"target": each.target, "answers": each.answers, "open_groups": each.open_groups}
                    for each in aggregators
                ],
                "tasks": [_task_told(each, claims[each.spec.name], now) for each in tasks],
                "warnings": [{"of": of, "what": each.what, "advice": each.advice} for of, each in found],
            }
        )
    else:
        _show(services, aggregators, tasks, claims, found, now)
    if found:
        raise typer.Exit(EXIT_LOOK)


def found_wrong(
    services: list[dict[str, str]],
    aggregators: list[admin.AggregatorState],
    tasks: list[admin.Task],
    claims: dict[str, admin.GetPrivacyResponse],
    now: int,
) -> list[tuple[str, Warned]]:
    """Return what should be looked into, each with what it is about.

    Args:
        services: Of this machine, each with `name` and `state`.
        aggregators: Of the deployment.
        tasks: All of them.
        claims: What privacy is claimed, by task.
        now: Unix milliseconds.
    """
    found = [
        (each["name"], Warned(f"It is {each['state']}.", f"`fedrecon logs {each['name']}` tells why."))
        for each in services
        if each["state"] != "serving"
    ]
    found += [("aggregators", each) for each in warnings_of_aggregators(aggregators)]
    for task in tasks:
        found += [(task.spec.name, each) for each in warnings_of(task, claims.get(task.spec.name), now)]
    return found


def _services() -> list[dict[str, str]]:
    """Return the services of the stack on this machine, as their own health says."""
    running = read_stack_file(load_settings(Settings).home.absolute()) or {}
    names = [name for name in (*ROLES, CONSOLE) if running.get(name)]
    return [{"name": name, "address": running[name], "state": _health(running[name])} for name in names]


def _health(target: str) -> str:
    with open_sync_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        except grpc.RpcError:
            return "away"
    return "serving" if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving"


def _task_told(task: admin.Task, privacy: admin.GetPrivacyResponse, now: int) -> dict[str, Any]:
    ended = task.committed + task.abandoned
    return {
        "name": task.spec.name,
        "state": state_of(task),
        "round": task.round.key.round,
        "attempt": task.round.key.attempt,
        "phase": _phase_of(task),
        "reported": task.round.reported,
        "report_goal": task.round.report_goal,
        "committed": task.committed,
        "abandoned": task.abandoned,
        "share_committed": task.committed / ended if ended else None,
        "last_commit_milliseconds_ago": now - task.committed_unix_milliseconds if task.committed else None,
        "epsilon": privacy.epsilon if task.spec.HasField("privacy") else None,
        "epsilon_budget": task.spec.privacy.epsilon_budget or None,
    }


def _phase_of(task: admin.Task) -> str:
    return admin.RoundPhase.Name(task.round.phase).removeprefix("ROUND_PHASE_").lower()


def _show(
    services: list[dict[str, str]],
    aggregators: list[admin.AggregatorState],
    tasks: list[admin.Task],
    claims: dict[str, admin.GetPrivacyResponse],
    found: list[tuple[str, Warned]],
    now: int,
) -> None:
    console = Console()
    if services:
        told = (
            f"{each['name']} [{'green' if each['state'] == 'serving' else 'red'}]{each['state']}[/]"
            for each in services
        )
        console.print("services: " + ", ".join(told))
    answering = sum(each.answers for each in aggregators)
    console.print(f"aggregators: {answering} of {len(aggregators)} answer")
    if not tasks:
        console.print("no task yet: `fedrecon task create` registers one", markup=False)
    else:
        console.print(_table(tasks, claims, now))
    for of, each in found:
        console.print(f"[yellow]{escape(of)}[/]: {escape(each.what)} {escape(each.advice)}", soft_wrap=True)
    if not found:
        console.print("[green]nothing to look into[/]")


def _table(tasks: list[admin.Task], claims: dict[str, admin.GetPrivacyResponse], now: int) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("task", "state", "round", "reports", "last commit", "committed", "epsilon"):
        table.add_column(heading, overflow="fold")
    for task in tasks:
        told = _task_told(task, claims[task.spec.name], now)
        share = (
            ""
            if told["share_committed"] is None
            else f"{told['share_committed']:.1%} of {task.committed + task.abandoned}"
        )
        ago = told["last_commit_milliseconds_ago"]
        state = told["state"]
        budget = f" of {told['epsilon_budget']:g}" if told["epsilon_budget"] else ""
        table.add_row(
            task.spec.name,
            f"[{_COLOURS[state]}]{state}[/]",
            f"{told['round']} {told['phase']}" if told["round"] else "none yet",
            f"{told['reported']}/{told['report_goal']}" if told["round"] else "",
            "none yet" if ago is None else f"{span(ago)} ago",
            share,
            "no guarantee" if told["epsilon"] is None else f"{told['epsilon']:.3g}{budget}",
        )
    return table
