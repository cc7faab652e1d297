"""Puts an aggregator together: opens what it stands on, finds its sums again, and answers."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from fedrecon.aggregator.attempts import Attempts
from fedrecon.aggregator.device_service import DeviceService
from fedrecon.aggregator.holding import Holding
from fedrecon.aggregator.ingest import Staging
from fedrecon.aggregator.leftovers import Leftovers
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.messages import protocol_of
from fedrecon.aggregator.settings import AggregatorSettings
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.aggregator.summing import Storage
from fedrecon.aggregator.sums_service import SumsService
from fedrecon.ops.blob_service import BlobService
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.clock import Clock, SystemClock
from fedrecon.ops.journal import Journal
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.lifecycle import Service
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.storage import connect_journal, open_blob_store, open_place
from fedrecon.v1.aggregator_pb2_grpc import add_AggregatorServicer_to_server, add_SumsServicer_to_server
from fedrecon.v1.blobs_pb2_grpc import add_BlobsServicer_to_server

Key = TypeVar("Key", bytes, KeyRing)

_TIDY_MILLISECONDS = 1_000
_LEFTOVERS_MILLISECONDS = 600_000
_HOUR_MILLISECONDS = 3_600_000


async def start(service: Service[AggregatorSettings]) -> None:
    """Opens an aggregator's resources, adds its services and runs its background task.

    Raises:
        UserMistake: a setting is missing, or another aggregator has the folder.
        JournalUnavailable: Redis does not answer.
    """
    settings = service.settings
    seal_key = _key(settings.seal_key_bytes, "FEDRECON_SEAL_KEY", "seals running sums on disk")
    _key(settings.round_token_keys, "FEDRECON_ROUND_TOKEN_KEY", "is the one that the coordinator signs with")
    watch = service.watch_storage()
    place = await open_place(settings.sums_place, "FEDRECON_AGGREGATOR_SUMS_URL", watch)
    snapshots = await asyncio.to_thread(Snapshots, settings.folder, seal_key, place)
    service.resources.callback(snapshots.close)
    journal = await connect_journal(settings, watch)
    service.resources.push_async_callback(journal.close)
    blobs = await open_blob_store(settings, watch)
    await assemble(service, journal, snapshots, blobs, SystemClock())
    service.run("watch storage", watch.keep_watch(journal, blobs, settings.tls_certificate))


async def assemble(
    service: Service[AggregatorSettings], journal: Journal, snapshots: Snapshots, blobs: BlobStore, clock: Clock
) -> None:
    """Puts an aggregator together on given storage.

    Args:
        service: where it runs.
        journal: events of groups.
        snapshots: running sums.
        blobs: checkpoints and optimizer states.
        clock: the time.
    """
    settings = service.settings
    measures = Measures(service.metrics)
    storage = Storage(journal, snapshots, clock, measures)
    keep_milliseconds = round(settings.aggregator_keep_hours * _HOUR_MILLISECONDS)
    holding = Holding(snapshots.holder, journal, clock)
    await holding.begin()
    service.resources.push_async_callback(holding.end)
    attempts = Attempts(storage, protocol_of, keep_milliseconds, holding)
    await attempts.recover()
    service.resources.push_async_callback(attempts.stop)
    staging = Staging(settings.aggregator_staging_bytes, time.monotonic, measures.pending_bytes.set)
    token_keys = _key(settings.round_token_keys, "FEDRECON_ROUND_TOKEN_KEY", "is the coordinator's")
    target = settings.aggregator_advertised or service.address
    proves = settings.enrolment == "required"
    devices = DeviceService(attempts, staging, token_keys, clock, measures, proves_sessions=proves)
    service.add(add_AggregatorServicer_to_server, devices)
    sums = SumsService(attempts, storage, staging, blobs, target, measures, service.stopping)
    service.add(add_SumsServicer_to_server, sums, internal=True)
    service.add(add_BlobsServicer_to_server, BlobService(blobs, service.metrics))
    service.run("keep the lease", holding.keep(attempts.confirm))
    service.run("tidy", _tidy(attempts, staging, clock))
    leftovers = Leftovers(attempts, journal, snapshots, keep_milliseconds)
    service.run("remove leftovers", _remove_leftovers(leftovers, clock))


async def _tidy(attempts: Attempts, staging: Staging, clock: Clock) -> None:
    while True:
        await clock.sleep_until(clock.now_milliseconds() + _TIDY_MILLISECONDS)
        await attempts.tidy()
        staging.drop_ended(attempts.takes_reports)


async def _remove_leftovers(leftovers: Leftovers, clock: Clock) -> None:
    while True:
        await leftovers.remove(clock.now_milliseconds())
        await clock.sleep_until(clock.now_milliseconds() + _LEFTOVERS_MILLISECONDS)


def _key(key: Key | None, variable: str, purpose: str) -> Key:
    if key is None:
        raise UserMistake(
            f"{variable} is not set: this key {purpose}.",
            "`openssl rand -hex 32` makes one; `fedrecon up` keeps its own.",
        )
    return key
