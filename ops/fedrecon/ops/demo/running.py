"""Runs the demo: stack up, plan, task, fleet, export, recommend, everything down again.

Plans are compiled, recommenders exported and recommendations made by the same commands that a user would type, as
processes of their own; what this module adds is people with phones and somebody who watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedrecon.datasets import Ratings, generate
from fedrecon.device_sdk import Recommendation, Recommender
from fedrecon.device_sdk.plans import load_plan
from fedrecon.ops.admin_client import CALL_SECONDS, open_sync_channel
from fedrecon.ops.blobs import open_blobs
from fedrecon.ops.demo.configuration import MADE_UP, MOVIELENS, Configuration
from fedrecon.ops.demo.progress import Progress
from fedrecon.ops.fleet.behaviour import Behaviour
from fedrecon.ops.fleet.evaluation import evaluate
from fedrecon.ops.fleet.people import ITEM, RATING, People, Person, people_of, user_mean_rmse
from fedrecon.ops.fleet.running import VANISHED, Fleet
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.plan_folders import blob_file, manifest_file
from fedrecon.ops.rating_files import load_ratings
from fedrecon.ops.round_commands import SHOWN_ROUNDS, is_known
from fedrecon.ops.settings import Settings, load_settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.ops.tls import open_service_channel, server_authority
from fedrecon.ops.up import console_link
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.wire.vocabularies import Items, read_vocabulary

TASK = "demo"
_SEED = 7
_USERS, _ITEMS = 1_000, 500
_RATED_TITLES = 5
_RECOMMENDED = 10
_LOOK_SECONDS = 0.2
_WATCH_SECONDS = 3600.0
_DONE = (admin.TASK_STATE_COMPLETED, admin.TASK_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class Result:
    """What a demo came to.

    Attributes:
        task: the task at its end.
        progress: what was shown.
        devices: devices in the fleet.
        seconds: time from the start of the stack to the last recommendation.
        recommender: the exported file.
        stack: what it ran on.
    """

    task: admin.Task
    progress: Progress
    devices: int
    seconds: float
    recommender: Path
    stack: Stack

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        rmse = [self.progress.unseen_rmse[key] for key in sorted(self.progress.unseen_rmse)]
        return {
            "rounds": self.task.spec.rounds.maximum_rounds,
            "committed": self.task.committed,
            "abandoned": self.task.abandoned,
            "devices": self.devices,
            "dropped": self.progress.tally.outcomes[VANISHED],
            "rmse_first": round(rmse[0], 4),
            "rmse_last": round(rmse[-1], 4),
            "rmse_user_mean": round(self.progress.baseline, 4),
            "seconds": round(self.seconds, 1),
            "recommender": str(self.recommender),
        }


@contextlib.contextmanager
def demo_run(place: Path | None, rounds: int | None, console: Console, *, watched: bool) -> Iterator[Result]:
    """Run the whole demo; its stack lives until the context ends.

    Args:
        place: MovieLens folder or file of ratings; None makes ratings up.
        rounds: rounds to commit; the configuration's own by default.
        console: where it is shown.
        watched: whether the stack has a web console, too.

    Yields:
        What it came to.

    Raises:
        UserMistake: the ratings cannot be read, or a service cannot start.
    """
    configuration = MADE_UP if place is None else MOVIELENS
    if rounds is not None:
        configuration = replace(configuration, rounds=rounds)
    with console.status("reading ratings"):
        ratings = load_ratings(place) if place is not None else generate(users=_USERS, items=_ITEMS, seed=_SEED)
        people = people_of(ratings)
    console.print(
        f"[bold]{len(ratings):,}[/] ratings of {len(ratings.item_keys):,} titles by {len(ratings.user_keys):,} users; "
        f"{len(people.training):,} have a device that takes part, {len(people.unseen):,} are never seen in training"
    )
    console.print(f"[dim]{configuration.describe()}[/]")
    settings = load_settings(Settings)
    home = settings.home.absolute() / "demo"
    shutil.rmtree(home, ignore_errors=True)
    began = time.monotonic()
    with console.status("compiling the plan: PyTorch to ONNX, verified against torch, signed"):
        plan = _compile_plan(home, ratings, configuration)
    console.print("plan compiled, verified against torch, and signed")
    make = Stack.with_console if watched else Stack
    stack = make(settings.model_copy(update={"home": home}))
    with console.status("starting the stack: valkey, aggregator, coordinator, inference"):
        stack.start()
    try:
        if watched:
            console.print(f"Watch it in the console: {console_link(stack)}", soft_wrap=True, markup=False)
        with open_sync_channel(stack.roles["coordinator"].address, stack.home) as channel:
            create_task(AdminStub(channel), build_spec(TASK, None, configuration.assignments()), plan)
        progress = Progress(user_mean_rmse(people.unseen))
        with Live(progress, console=console, refresh_per_second=8):
            task = asyncio.run(_train(stack, plan, people, configuration, progress))
        recommender = _export(stack, home)
        seconds = time.monotonic() - began
        console.print()
        _recommend(recommender, people, console)
        result = Result(task, progress, len(people.training), seconds, recommender, stack)
        _tell_what_left(result, console)
        yield result
    finally:
        stack.stop()


def command(home: Path, *arguments: str) -> None:
    """Run a `fedrecon` command on a home as a process of its own.

    Raises:
        UserMistake: it failed, with what it said.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "fedrecon.ops", *arguments],
        env={**os.environ, "FEDRECON_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise UserMistake(f"`fedrecon {' '.join(arguments)}` failed:\n{ended.stderr or ended.stdout}")


def _compile_plan(home: Path, ratings: Ratings, configuration: Configuration) -> Path:
    home.mkdir(parents=True)
    items, key, plan = home / "items.csv", home / "publisher.pem", home / "plan"
    with items.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "title"])
        rows.writerows(zip(ratings.item_keys, ratings.titles or ratings.item_keys, strict=True))
    command(home, "plan", "keygen", str(key))
    command(
        home,
        *("plan", "compile", "--model", "matrix-factorization", "--items", str(items)),
        *("--factors", str(configuration.factors), "--mean", str(configuration.mean), "--bias"),
        *("--reconstruction", "ridge", "--key", str(key), "--out", str(plan)),
    )
    return plan


async def _train(
    stack: Stack, plan_folder: Path, people: People, configuration: Configuration, progress: Progress
) -> admin.Task:
    """Let the fleet take part until the task is complete; watch, evaluate, and mend what dies."""
    stopping = asyncio.Event()
    fleet = Fleet(
        people=people.training,
        coordinator=stack.roles["coordinator"].address,
        population="demo",
        behaviour=Behaviour(dropout=configuration.dropout),
        awake=configuration.awake,
        seed=_SEED,
        cache_folder=stack.home / "devices",
        authority=server_authority(stack.settings),
        tally=progress.tally,
    )
    devices = asyncio.create_task(fleet.run(stopping))
    mending = asyncio.create_task(_mend(stack, progress, stopping))
    observer = _Observer(stack, plan_folder, people.unseen, progress)
    watching = asyncio.create_task(_watch_to_the_end(stack, observer))
    try:
        await asyncio.wait({devices, mending, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        if not watching.done():
            watching.cancel()
        ended = await asyncio.gather(devices, mending, watching, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
    return watching.result()


async def _mend(stack: Stack, progress: Progress, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        progress.mended += await asyncio.to_thread(stack.mend)
        await asyncio.sleep(_LOOK_SECONDS)


async def _watch_to_the_end(stack: Stack, observer: _Observer) -> admin.Task:
    """Follow the task until it is complete and its last checkpoint is evaluated."""
    evaluating: asyncio.Task[None] | None = None
    async for task in _states(stack, observer.progress):
        done = task.state in _DONE
        if evaluating is not None and (done or evaluating.done()):
            await evaluating
            evaluating = None
        if evaluating is None and task.committed > observer.evaluated:
            evaluating = asyncio.create_task(asyncio.to_thread(observer.evaluate, task))
        if done:
            if evaluating is not None:
                await evaluating
            return task
    raise RuntimeError("the task's states ended before the task")


async def _states(stack: Stack, progress: Progress) -> AsyncIterator[admin.Task]:
    """Yield the task after every change, also across restarts of the coordinator."""
    async with open_service_channel(stack.roles["coordinator"].address, stack.settings) as channel:
        stub = AdminStub(channel)
        while True:
            try:
                async for answer in stub.WatchTask(admin.WatchTaskRequest(task=TASK), timeout=_WATCH_SECONDS):
                    if not is_known(progress.newest, answer.task.round):
                        request = admin.ListRoundsRequest(task=TASK, limit=SHOWN_ROUNDS)
                        progress.newest[:] = (await stub.ListRounds(request, timeout=CALL_SECONDS)).rounds
                    yield answer.task
            except grpc.aio.AioRpcError:
                await asyncio.sleep(_LOOK_SECONDS)  # it is being started again


class _Observer:
    """Evaluates checkpoints on unseen users."""

    def __init__(self, stack: Stack, plan_folder: Path, unseen: tuple[Person, ...], progress: Progress) -> None:
        self.progress = progress
        self.evaluated = 0
        self._unseen = unseen
        self._blobs = open_blobs(stack.settings.blobs_place)

        def part(digest: bytes) -> bytes:
            return blob_file(plan_folder, digest).read_bytes()

        self._plan = load_plan(manifest_file(plan_folder).read_bytes(), part)
        named = self._plan.manifest.vocabularies.items()
        self._vocabularies: dict[str, Items] = {name: read_vocabulary(part(blob.digest)) for name, blob in named}

    def evaluate(self, task: admin.Task) -> None:
        """Score the task's live checkpoint."""
        round_number = task.committed
        content = self._blobs.read(task.checkpoint.digest)
        quality = evaluate(self._plan, content, self._vocabularies, task.spec.work, self._unseen)
        self.progress.unseen_rmse[round_number] = quality.rmse
        self.evaluated = round_number


def _export(stack: Stack, home: Path) -> Path:
    recommender = home / "recommender.onnx"
    coordinator, blobs = stack.roles["coordinator"].address, stack.roles["aggregator"].address
    command(home, "export", TASK, "--server", coordinator, "--blobs", blobs, "--out", str(recommender))
    return recommender


def _recommend(file: Path, people: People, console: Console) -> None:
    """Let an unseen user rate a handful of titles and show what the file recommends."""
    recommender = Recommender(file)
    person = next(person for person in people.unseen if person.examples >= 2 * _RATED_TITLES)
    order = np.argsort(-person.columns[RATING], kind="stable")
    rated = np.concatenate([order[: _RATED_TITLES - 1], order[-1:]])
    columns = {name: column[rated] for name, column in person.columns.items()}
    table = Table("an unseen user rated", "", title=f"{file.name}: one ONNX file, on the device", title_justify="left")
    for key, stars in zip(columns[ITEM], columns[RATING], strict=True):
        table.add_row(recommender.items.title_of(recommender.items.rows[key]), f"{stars:g} stars")
    console.print(table)
    recommended = Table("#", "is recommended", "predicted")
    found: list[Recommendation] = recommender.recommend(columns, _RECOMMENDED)
    for place, each in enumerate(found, start=1):
        recommended.add_row(str(place), each.title, f"{each.score:.2f}")
    console.print(recommended)


def _tell_what_left(result: Result, console: Console) -> None:
    last = result.progress.tally.last
    if last is None:
        return
    report = sum(departure.bytes for departure in last.receipt if departure.message == "Upload")
    others = last.receipt.bytes - report
    console.print(
        f"What left each device in a round: one report of {report:,} bytes (the weighted update, fixed-point) and "
        f"{others:,} bytes of protocol. Ratings and user vectors were in no message, and each report was masked: the "
        "aggregator learned the sum of a round's reports, not one of them. [yellow]The sum still tells something[/]: "
        "where only one device of a round rated a title, that title's row of the sum is that device's alone."
    )
