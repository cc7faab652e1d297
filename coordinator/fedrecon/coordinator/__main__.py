"""The coordinator as a program: `python -m fedrecon.coordinator`."""

from __future__ import annotations

import asyncio
import sys

from fedrecon.coordinator.admin import AdminService
from fedrecon.coordinator.answers import NotDrawn
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.runner import Surroundings
from fedrecon.coordinator.service import CoordinatorService
from fedrecon.coordinator.settings import CoordinatorSettings
from fedrecon.coordinator.sums import Sums
from fedrecon.ops.blobs import BlobStore, open_blobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal import DurabilityRefused
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.lifecycle import Service, run_service
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.tls import open_service_channel
from fedrecon.v1.admin_pb2_grpc import add_AdminServicer_to_server
from fedrecon.v1.coordinator_pb2_grpc import add_CoordinatorServicer_to_server


async def start(service: Service[CoordinatorSettings]) -> None:
    """Opens the coordinator's resources, adds its servicers and runs its tasks."""
    settings = service.settings
    key = settings.round_token_key_bytes
    if key is None:
        raise UserMistake(
            "FEDRECON_ROUND_TOKEN_KEY is not set: aggregators could not tell assigned devices from others.",
            "Set the same 64 hex digits for coordinator and aggregator: `openssl rand -hex 32` makes them.",
        )
    if not settings.redis_url:
        raise UserMistake(
            "FEDRECON_REDIS_URL is not set: the coordinator keeps its journal there.",
            "Set it, or start the whole stack with `fedrecon up`, which brings its own.",
        )
    journal = await _connect(settings)
    service.resources.push_async_callback(journal.close)
    channel = open_service_channel(settings.aggregator_target, settings)
    service.resources.push_async_callback(channel.close, None)
    around = Surroundings(
        journal=journal,
        blobs=await asyncio.to_thread(_open_blobs, settings),
        sums=Sums(channel),
        clock=SystemClock(),
        measures=Measures(service.metrics),
        key=key,
        blobs_target=settings.blobs_target,
    )
    roster = Roster(around)
    idle_milliseconds = round(settings.idle_retry_seconds * 1000)
    service.add(add_CoordinatorServicer_to_server, CoordinatorService(roster, idle_milliseconds))
    service.add(add_AdminServicer_to_server, AdminService(roster, service.stopping))
    service.run("run all tasks", roster.run())
    service.run("let waiting devices go", _let_go(roster, service.stopping))


async def _connect(settings: CoordinatorSettings) -> RedisJournal:
    is_accepted = settings.redis_durability == "accepted-loss"
    try:
        return await RedisJournal.connect(settings.redis_url, accepted_loss=is_accepted)
    except DurabilityRefused as error:
        raise UserMistake(f"FEDRECON_REDIS_URL: {error}.", "See the text above.") from error


def _open_blobs(settings: CoordinatorSettings) -> BlobStore:
    try:
        return open_blobs(settings.blobs_place)
    except (ValueError, ImportError) as error:
        raise UserMistake(f"FEDRECON_BLOBS_URL: {error}.", "Name a folder or an object store.") from error


async def _let_go(roster: Roster, stopping: asyncio.Event) -> None:
    """Answers devices that wait when the service drains: otherwise each would hold it up for half a minute."""
    await stopping.wait()
    for runner in roster.runners.values():
        runner.waiting.answer_all(NotDrawn("this coordinator is being restarted"))


if __name__ == "__main__":
    sys.exit(run_service("coordinator", start, CoordinatorSettings, "coordinator_port"))
