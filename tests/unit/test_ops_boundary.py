"""Refusals as values: what may be said, and how it is read."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from fedrecon.ops import boundary
from fedrecon.ops.blobs import BlobMissing, CorruptBlob
from fedrecon.ops.boundary import Refusal, refusal_for, refusal_of, refuse_as
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.journal import DurabilityRefused, HistoryCompacted, JournalUnavailable, Lease, LeaseLost, StaleWriter
from fedrecon.ops.sealing import SealBroken
from fedrecon.ops.storage_refusals import refuse_storage_failures


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED],
)
def test_a_code_that_grpc_itself_makes_is_no_refusal(code: grpc.StatusCode) -> None:
    with pytest.raises(ValueError, match="not a code of refusals"):
        Refusal(code, "REASON", "message", "advice")


@pytest.mark.parametrize("reason", ["", "unknown_task", "UNKNOWN TASK", "9TASKS"])
def test_a_reason_is_an_upper_case_word(reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        Refusal(grpc.StatusCode.NOT_FOUND, reason, "message", "advice")


def test_a_retry_window_travels() -> None:
    refusal = Refusal(grpc.StatusCode.ABORTED, "ROUND_OVER", "Over.", "Wait.", retry_milliseconds=(5, 9))
    explained = refusal.error_info()
    assert (explained.retry.min_milliseconds, explained.retry.max_milliseconds) == (5, 9)


def test_long_text_stays_within_the_metadata_of_a_call() -> None:
    refusal = Refusal(grpc.StatusCode.ABORTED, "LONG", "é" * 100_000, "é" * 100_000)
    assert len(refusal.error_info().SerializeToString()) < 8 * 1024


def test_the_nearest_registered_base_class_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_refusals_of_exceptions", {})
    refuse_as(LookupError, grpc.StatusCode.NOT_FOUND, "NOT_THERE", "Not there.", "Look elsewhere.")
    refuse_as(KeyError, grpc.StatusCode.ABORTED, "NO_KEY", "No key.", "Bring one.")
    reasons = [refusal and refusal.reason for refusal in map(refusal_for, (KeyError(), IndexError(), ValueError()))]
    assert reasons == ["NO_KEY", "NOT_THERE", None]


def test_a_refusal_is_its_own_refusal() -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "REASON", "message", "advice")
    assert refusal_for(refusal) is refusal


def test_a_refusal_from_a_task_group_is_found() -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "REASON", "message", "advice")
    assert refusal_for(ExceptionGroup("tasks", [ExceptionGroup("inner", [refusal])])) is refusal
    assert refusal_for(ExceptionGroup("tasks", [refusal, ValueError()])) is None


def test_every_failure_of_storage_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_refusals_of_exceptions", {})
    refuse_storage_failures()
    lease = Lease(task="films", name="rounds", holder="one", token=1, milliseconds=5, until_milliseconds=9)
    reasons = {
        type(error).__name__: refusal and refusal.reason
        for error in (
            StaleWriter("rounds", 1, 2),
            LeaseLost(lease),
            HistoryCompacted("rounds", 1, 5),
            JournalUnavailable(),
            DurabilityRefused(),
            StorageFull(),
            BlobMissing(),
            CorruptBlob(),
            SealBroken(),
        )
        for refusal in [refusal_for(error)]
    }
    assert reasons == {
        "StaleWriter": "STATE_MOVED",
        "LeaseLost": "STATE_MOVED",
        "HistoryCompacted": "STATE_MOVED",
        "JournalUnavailable": "JOURNAL_UNAVAILABLE",
        "DurabilityRefused": "JOURNAL_NOT_DURABLE",
        "StorageFull": "STORAGE_FULL",
        "BlobMissing": "BLOB_MISSING",
        "CorruptBlob": "STORED_BYTES_BROKEN",
        "SealBroken": "STORED_BYTES_BROKEN",
    }
    assert refusal_for(OSError()) is None


class BrokenConnectionError(grpc.RpcError):
    def trailing_metadata(self) -> Any:
        return (("server", "proxy"),)


def test_an_error_of_grpc_itself_has_no_reason() -> None:
    assert refusal_of(BrokenConnectionError()) is None
    assert refusal_of(grpc.RpcError()) is None
