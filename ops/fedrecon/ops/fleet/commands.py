"""`fedrecon fleet`: simulated devices over the real protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedrecon.ops.printing import print_json
from fedrecon.ops.task_commands import AsJson, Server

if TYPE_CHECKING:
    from fedrecon.ops.fleet.running import Tally

_SEED = 1
_MADE_UP_ITEMS = 500


def fleet(
    population: Annotated[str, typer.Option("--population", help="population that the devices check in to")] = "demo",
    devices: Annotated[int, typer.Option("--devices", min=1, help="devices; fewer if the data has fewer users")] = 300,
    place: Annotated[Path | None, typer.Option("--data", help="MovieLens folder; default: made-up ratings")] = None,
    awake: Annotated[int, typer.Option("--awake", min=1, help="devices that take part at once")] = 160,
    dropout: Annotated[float, typer.Option("--dropout", min=0, max=1, help="share of assigned that vanish")] = 0.1,
    median_seconds: Annotated[float, typer.Option("--median-seconds", min=0, help="median training time")] = 0.05,
    spread: Annotated[float, typer.Option("--spread", min=0, help="deviation of the logarithm of that time")] = 0.5,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0, help="end after so long; default: Ctrl-C")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="end when this task has completed, or no longer runs")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of data made up and of behaviour")] = _SEED,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Let simulated devices take part until Ctrl-C, and say how their sessions went."""
    import asyncio
    import tempfile

    from fedrecon.datasets import generate
    from fedrecon.ops.admin_client import CALL_SECONDS, find_targets, open_admin, read_authority, require_answer
    from fedrecon.ops.fleet.behaviour import Behaviour
    from fedrecon.ops.fleet.people import people_of
    from fedrecon.ops.fleet.running import Fleet, Tally
    from fedrecon.ops.rating_files import load_ratings
    from fedrecon.ops.up import stop_on_signals
    from fedrecon.v1 import admin_pb2 as admin

    users = max(devices * 5 // 4 + 1, 10)  # four of five take part
    ratings = load_ratings(place) if place is not None else generate(users, _MADE_UP_ITEMS, seed)
    people = people_of(ratings).training[:devices]
    coordinator = find_targets(server).coordinator
    authority = read_authority(coordinator)
    require_answer(coordinator)
    stopped = stop_on_signals()
    console = Console(stderr=as_json)

    def is_over(task: str) -> bool:
        state = stub.GetTask(admin.GetTaskRequest(task=task), timeout=CALL_SECONDS).task.state
        return state != admin.TASK_STATE_RUNNING

    async def run(folder: Path, live: Live) -> Tally:
        stopping = asyncio.Event()
        running = Fleet(
            people=people,
            coordinator=coordinator,
            population=population,
            behaviour=Behaviour(dropout, median_seconds, spread),
            awake=awake,
            seed=seed,
            cache_folder=folder,
            authority=authority,
        )
        work = asyncio.create_task(running.run(stopping, lambda _: live.update(_table(len(people), running.tally))))
        began = asyncio.get_running_loop().time()
        while not work.done() and not stopped.is_set():
            if seconds is not None and asyncio.get_running_loop().time() - began >= seconds:
                break
            if until is not None and await asyncio.to_thread(is_over, until):
                break
            await asyncio.sleep(0.1)
        stopping.set()
        return await work

    with (
        open_admin(server) as stub,
        tempfile.TemporaryDirectory(prefix="fedrecon-fleet-") as folder,
        Live(_table(len(people), Tally()), console=console, refresh_per_second=4) as live,
    ):
        tally = asyncio.run(run(Path(folder), live))
    for outcome, message in sorted(tally.messages.items()):
        console.print(f"{outcome}, the last one: {message}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({"devices": len(people), "outcomes": dict(tally.outcomes), "left_bytes": dict(tally.left_bytes)})


def _table(devices: int, tally: Tally) -> Table:
    table = Table("outcome", "sessions", title=f"{devices} devices")
    for outcome, count in sorted(tally.outcomes.items()):
        table.add_row(outcome, str(count))
    table.add_row("all", str(sum(tally.outcomes.values())), style="bold")
    return table
