"""`fedrecon rounds`: list, watch and explain rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fedrecon.ops.admin_client import CALL_SECONDS, WATCH_SECONDS, open_admin
from fedrecon.ops.printing import as_dict, print_json
from fedrecon.ops.task_commands import AsJson, Limit, Name, Server, state_of
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_EVALUATE
from fedrecon.wire.spread import is_spread

rounds = typer.Typer(help="See what rounds do, and why.", no_args_is_help=True)

SHOWN_ROUNDS = 20
_ENDED = (admin.TASK_STATE_COMPLETED, admin.TASK_STATE_CANCELLED)


@rounds.command(name="list")
def list_rounds(
    name: Name,
    limit: Limit = SHOWN_ROUNDS,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List the newest rounds of a task."""
    with open_admin(server) as stub:
        request = admin.ListRoundsRequest(task=name, limit=limit)
        found = stub.ListRounds(request, timeout=CALL_SECONDS).rounds
    if as_json:
        print_json({"rounds": [as_dict(each) for each in found]})
        return
    table = rounds_table()
    for each in reversed(found):
        table.add_row(*row_of(each))
    Console().print(table)


@rounds.command()
def show(
    name: Name,
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="number of the round")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Show the numbers of a round: each attempt from check-in to checkpoint, and how its sessions ended."""
    with open_admin(server) as stub:
        request = admin.ExplainRoundRequest(task=name, round=round_number)
        attempts = stub.ExplainRound(request, timeout=CALL_SECONDS).attempts
    if as_json:
        print_json({"attempts": [as_dict(each) for each in attempts]})
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("attempt", no_wrap=True)
    for each in attempts:
        table.add_column(str(each.key.attempt), overflow="fold")
    for heading, value in _SHOWN:
        table.add_row(heading, *(value(each) for each in attempts))
    Console().print(table)


@rounds.command()
def why(
    name: Name,
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="number of the round")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Tell in words what happened in a round."""
    with open_admin(server) as stub:
        request = admin.ExplainRoundRequest(task=name, round=round_number)
        answer = stub.ExplainRound(request, timeout=CALL_SECONDS)
    if as_json:
        print_json({"attempts": [as_dict(each) for each in answer.attempts], "story": list(answer.story)})
        return
    for sentence in answer.story:
        Console(soft_wrap=True, highlight=False).print(sentence)


@rounds.command()
def watch(name: Name, server: Server = None, as_json: AsJson = False) -> None:
    """Watch a task's rounds live, until the task ends or Ctrl-C."""
    newest: list[admin.Round] = []
    with open_admin(server) as stub, Live(rounds_table(), refresh_per_second=8, transient=as_json) as live:
        for answer in stub.WatchTask(admin.WatchTaskRequest(task=name), timeout=WATCH_SECONDS):
            if as_json:
                print_json(as_dict(answer.task))
            else:
                if not is_known(newest, answer.task.round):
                    request = admin.ListRoundsRequest(task=name, limit=SHOWN_ROUNDS)
                    newest[:] = stub.ListRounds(request, timeout=CALL_SECONDS).rounds
                table = rounds_table(f"{name}: {state_of(answer.task)}")
                for each in reversed(newest):
                    table.add_row(*row_of(each))
                live.update(table)
            if answer.task.state in _ENDED:
                return


def is_known(newest: list[admin.Round], shown: admin.Round) -> bool:
    """Bring the newest attempt up to date; False where another one has begun, and all of them are to be listed again.

    A change may tell of the next round before the last one was seen to end.

    Args:
        newest: what was listed, newest first.
        shown: the attempt that a change is about.
    """
    if not newest or newest[0].key != shown.key:
        return False
    newest[0] = shown
    return True


def rounds_table(title: str = "", *more: str) -> Table:
    """Return an empty table of rounds, with columns for `row_of` and more."""
    table = Table(title=title or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("round", justify="right", no_wrap=True)
    table.add_column("phase")
    for heading in ("assigned", "reported", "dropped", "seconds", "quality", *more):
        table.add_column(heading, justify="right", min_width=max(len(word) for word in heading.split()))
    return table


_COLOURS = {
    admin.ROUND_PHASE_SELECTING: "cyan",
    admin.ROUND_PHASE_REPORTING: "blue",
    admin.ROUND_PHASE_AGGREGATING: "magenta",
    admin.ROUND_PHASE_COMMITTED: "green",
    admin.ROUND_PHASE_ABANDONED: "red",
}


def row_of(shown: admin.Round) -> tuple[str, ...]:
    """Return one attempt as a row of `rounds_table`."""
    phase = admin.RoundPhase.Name(shown.phase).removeprefix("ROUND_PHASE_").lower()
    colour = _COLOURS.get(shown.phase, "white")
    number = str(shown.key.round) + (f".{shown.key.attempt}" if shown.key.attempt > 1 else "")
    seconds = (shown.ended_unix_milliseconds - shown.opened_unix_milliseconds) / 1000
    return (
        number,
        f"[{colour}]{phase}[/]"
        + (", evaluation" if shown.kind == SESSION_KIND_EVALUATE else "")
        + (f" ({shown.reason})" if shown.reason else ""),
        f"{shown.assigned}/{shown.cohort_size}",
        f"{shown.reported}/{shown.report_goal}",
        str(shown.dropped),
        f"{seconds:.1f}" if shown.ended_unix_milliseconds else "",
        metrics_text(shown.metric_sums),
    )


_SHOWN: tuple[tuple[str, Callable[[admin.Round], str]], ...] = (
    ("phase", lambda each: row_of(each)[1]),
    ("waited", lambda each: str(each.waiting)),
    ("assigned", lambda each: f"{each.assigned} of up to {each.cohort_size}"),
    ("reported", lambda each: f"{each.reported}, {each.report_goal} wanted"),
    ("in the checkpoint", lambda each: str(each.counted)),
    ("void", lambda each: str(each.voided)),
    ("dropped out", lambda each: str(each.dropped)),
    ("sessions ended", lambda each: _counts(each.outcomes)),
    ("their shapes", lambda each: _counts(each.shapes)),
    ("seconds", lambda each: row_of(each)[5]),
    ("quality", lambda each: metrics_text(each.metric_sums)),
    ("checkpoint", lambda each: each.checkpoint.digest.hex()[:16]),
)


def _counts(counts: Mapping[str, int]) -> str:
    return escape(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))


def metrics_text(sums: Mapping[str, float]) -> str:
    """Return a round's metrics for people: the RMSE of those who took part, else the mean of every sum."""
    examples = sums.get("examples", 0.0)
    if not examples:
        return ""
    if "squared_error" in sums:
        return f"{math.sqrt(sums['squared_error'] / examples):.4f}"
    means = {name: total / examples for name, total in sums.items() if name != "examples" and not is_spread(name)}
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
