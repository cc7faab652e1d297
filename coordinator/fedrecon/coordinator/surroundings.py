"""What the runners of one coordinator share."""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.coordinator.aggregators import Aggregators
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.peers import Peers
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.clock import Clock
from fedrecon.ops.journal import Journal
from fedrecon.ops.key_ring import KeyRing


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all runners of a coordinator share.

    Attributes:
        journal: Where events are kept.
        blobs: Where plans and vocabularies lie.
        aggregators: All of them.
        clock: The time.
        measures: What is counted.
        key: Of marks, tickets and the names of devices in ledgers: it is never replaced.
        token_keys: Of tokens and session keys, which are.
        peers: The other coordinators.
        target: Where other coordinators reach this one; empty where there are none.
        blobs_target: Target of a Blobs service told to devices; empty: the aggregator's.
        kept_rounds: Newest rounds of a task whose every event stays in the journal.
        kept_checkpoints: Newest commits of a task that can be rolled back to.
        blobs_grace_milliseconds: Age below which no blob is removed.
    """

    journal: Journal
    blobs: BlobStore
    aggregators: Aggregators
    clock: Clock
    measures: Measures
    key: bytes
    token_keys: KeyRing
    peers: Peers
    target: str = ""
    blobs_target: str = ""
    kept_rounds: int = 100
    kept_checkpoints: int = 20
    blobs_grace_milliseconds: int = 24 * 3_600_000
