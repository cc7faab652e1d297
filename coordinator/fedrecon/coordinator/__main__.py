"""The coordinator as a program: `python -m fedrecon.coordinator`."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

from fedrecon.coordinator.admin import ROLES, AdminService
from fedrecon.coordinator.aggregators import Aggregators
from fedrecon.coordinator.answers import NotDrawn
from fedrecon.coordinator.attestation import load_attestation
from fedrecon.coordinator.collecting import Collector
from fedrecon.coordinator.draining import load_drained
from fedrecon.coordinator.enrolment_service import EnrolmentService
from fedrecon.coordinator.forgotten import Forgotten
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.nonces import Nonces
from fedrecon.coordinator.peers import Peers
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.service import CandidatesService, CoordinatorService
from fedrecon.coordinator.settings import CoordinatorSettings
from fedrecon.coordinator.speakers import Speakers
from fedrecon.coordinator.sums import Sums
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.lifecycle import Service, run_service
from fedrecon.ops.limits import Limits
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.storage import connect_journal, open_blob_store
from fedrecon.ops.tls import open_service_channel
from fedrecon.v1.admin_pb2_grpc import add_AdminServicer_to_server
from fedrecon.v1.coordinator_pb2_grpc import add_CandidatesServicer_to_server, add_CoordinatorServicer_to_server
from fedrecon.v1.enrolment_pb2_grpc import add_EnrolmentServicer_to_server

_BURST_SECONDS = 10


async def start(service: Service[CoordinatorSettings]) -> None:
    """Opens the coordinator's resources, adds its servicers and runs its tasks."""
    settings = service.settings
    keys, ledger_key = settings.round_token_keys, settings.ledger_key_bytes
    if keys is None or ledger_key is None:
        raise UserMistake(
            "FEDRECON_ROUND_TOKEN_KEY is not set: aggregators could not tell assigned devices from others.",
            "Set the same 64 hex digits for coordinator and aggregator: `openssl rand -hex 32` makes them.",
        )
    attestation = load_attestation(settings.attestation)
    watch = service.watch_storage()
    journal = await connect_journal(settings, watch)
    service.resources.push_async_callback(journal.close)
    if not settings.aggregator_targets:
        raise UserMistake(
            "FEDRECON_AGGREGATOR_TARGET names no aggregator.", "Name one, or several with commas between."
        )
    channels = {target: open_service_channel(target, settings) for target in settings.aggregator_targets}
    for channel in channels.values():
        service.resources.push_async_callback(channel.close, None)
    peers = Peers(lambda target: open_service_channel(target, settings))
    service.resources.push_async_callback(peers.close)
    blobs = await open_blob_store(settings, watch)
    around = Surroundings(
        journal=journal,
        blobs=blobs,
        aggregators=Aggregators(
            {target: Sums(channel) for target, channel in channels.items()}, partial(load_drained, journal)
        ),
        clock=SystemClock(),
        measures=Measures(service.metrics),
        key=ledger_key,
        token_keys=keys,
        peers=peers,
        target=settings.coordinator_advertised or service.address,
        blobs_target=settings.blobs_target,
        kept_rounds=settings.kept_rounds,
        kept_checkpoints=settings.kept_checkpoints,
        blobs_grace_milliseconds=round(settings.blobs_grace_hours * 3_600_000),
    )
    roster = Roster(around)
    idle_milliseconds = round(settings.idle_retry_seconds * 1000)
    forgotten = Forgotten(journal, ledger_key, around.clock)
    await forgotten.load()
    is_required = settings.enrolment == "required"
    rate = settings.device_calls_per_second
    limits = Limits(rate, max(round(rate * _BURST_SECONDS), 1), time.monotonic)
    speakers = Speakers(keys, Nonces(journal), forgotten, limits, around.clock, is_required=is_required)
    coordinating = CoordinatorService(roster, idle_milliseconds, speakers, proves_sessions=is_required)
    service.add(add_CoordinatorServicer_to_server, coordinating)
    token_milliseconds = round(settings.enrolment_token_minutes * 60_000)
    enrolling = EnrolmentService(around, speakers, forgotten, token_milliseconds, attestation)
    service.add(add_EnrolmentServicer_to_server, enrolling)
    service.run("follow forgotten keys", forgotten.follow())
    service.add(add_CandidatesServicer_to_server, CandidatesService(roster), internal=True)
    service.add(add_AdminServicer_to_server, AdminService(roster, service.stopping), internal=True, roles=ROLES)
    service.run("run all tasks", roster.run())
    service.run("collect blobs", Collector(around).run())
    service.run("watch storage", watch.keep_watch(journal, blobs, settings.tls_certificate))
    service.run("let waiting devices go", _let_go(roster, service.stopping))


async def _let_go(roster: Roster, stopping: asyncio.Event) -> None:
    """Answers devices that wait when the service drains: otherwise each would hold it up for half a minute."""
    await stopping.wait()
    for runner in roster.runners.values():
        runner.waiting.answer_all(NotDrawn("this coordinator is being restarted"))


if __name__ == "__main__":
    sys.exit(run_service("coordinator", start, CoordinatorSettings, "coordinator_port"))
