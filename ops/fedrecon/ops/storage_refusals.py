"""What callers are told when the journal, a disk or a blob fails under a service; `lifecycle` registers it."""

from __future__ import annotations

import grpc

from fedrecon.ops.blobs import BlobMissing, CorruptBlob
from fedrecon.ops.boundary import refuse_as
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.journal import DurabilityRefused, HistoryCompacted, JournalUnavailable, LeaseLost, StaleWriter
from fedrecon.ops.sealing import SealBroken
from fedrecon.ops.watched_blobs import BlobsUnavailable

_SOON_MILLISECONDS = (500, 2_000)
"""Another replica has taken over, and answers as soon as it has loaded."""

_LATER_MILLISECONDS = (10_000, 60_000)
"""Somebody has to mend something, or a server starts again."""


def refuse_storage_failures() -> None:
    """Register a refusal for every exception of storage that a call may meet."""
    for moved in (StaleWriter, LeaseLost, HistoryCompacted):
        refuse_as(
            moved,
            grpc.StatusCode.ABORTED,
            "STATE_MOVED",
            "Another replica has changed what this call was about; nothing was done.",
            "Send the call again.",
            retry_milliseconds=_SOON_MILLISECONDS,
        )
    refuse_as(
        JournalUnavailable,
        grpc.StatusCode.UNAVAILABLE,
        "JOURNAL_UNAVAILABLE",
        "The journal does not answer: whether this call was kept is not known.",
        "Send the same call again later; it is not counted twice.",
        retry_milliseconds=_LATER_MILLISECONDS,
    )
    refuse_as(
        DurabilityRefused,
        grpc.StatusCode.FAILED_PRECONDITION,
        "JOURNAL_NOT_DURABLE",
        "The journal's server may lose what it acknowledges, so nothing is written to it.",
        "The operator sees what to change in the service's log, or by `fedrecon doctor`.",
        retry_milliseconds=_LATER_MILLISECONDS,
    )
    refuse_as(
        StorageFull,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "STORAGE_FULL",
        "The service's disk is full; nothing of this call was kept.",
        "Try again later; the operator has to free some space.",
        retry_milliseconds=_LATER_MILLISECONDS,
    )
    refuse_as(
        BlobsUnavailable,
        grpc.StatusCode.UNAVAILABLE,
        "BLOBS_UNAVAILABLE",
        "The store of blobs does not answer, or refuses: whether this call was kept is not known.",
        "Send the same call again later; nothing is kept twice.",
        retry_milliseconds=_LATER_MILLISECONDS,
    )
    refuse_as(
        BlobMissing, grpc.StatusCode.NOT_FOUND, "BLOB_MISSING", "There is no blob with this digest.", "Ask for another."
    )
    for broken in (CorruptBlob, SealBroken):
        refuse_as(
            broken,
            grpc.StatusCode.DATA_LOSS,
            "STORED_BYTES_BROKEN",
            "What was stored is damaged or was sealed with another key; it was not used.",
            "The operator has to restore it, or set the FEDRECON_SEAL_KEY that sealed it.",
        )
