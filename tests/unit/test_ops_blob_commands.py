"""What `fedrecon blobs` prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fedrecon.ops import blob_commands
from fedrecon.ops.command import main
from fedrecon.v1.admin_pb2 import CollectBlobsRequest, CollectBlobsResponse


class Coordinator:
    def __init__(self, answer: CollectBlobsResponse) -> None:
        self.answer = answer
        self.asked: list[CollectBlobsRequest] = []

    def CollectBlobs(self, request: CollectBlobsRequest, timeout: float) -> CollectBlobsResponse:  # noqa: N802
        assert timeout > 0
        self.asked.append(request)
        return self.answer


def serve(monkeypatch: pytest.MonkeyPatch, **found: Any) -> Coordinator:
    coordinator = Coordinator(CollectBlobsResponse(**found))

    @contextlib.contextmanager
    def opened(server: str | None) -> Iterator[Coordinator]:
        assert server == "host:1"
        yield coordinator

    monkeypatch.setattr(blob_commands, "open_admin", opened)
    return coordinator


def test_a_dry_run_tells_what_would_go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    coordinator = serve(monkeypatch, needed=7, needed_bytes=7_000, removed=1_234, removed_bytes=5_000_000, young=2)
    assert main(["blobs", "collect", "--dry-run", "--server", "host:1"]) == 0
    assert coordinator.asked == [CollectBlobsRequest(dry_run=True)]
    told = capsys.readouterr().out
    assert told.startswith("Would remove 1,234 blobs (5,000,000 bytes); 7 are needed (7,000 bytes), 2 are too young")


def test_what_was_removed_is_told_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    coordinator = serve(monkeypatch, removed=3, removed_bytes=30)
    assert main(["blobs", "collect", "--json", "--server", "host:1"]) == 0
    assert coordinator.asked == [CollectBlobsRequest(dry_run=False)]
    told = json.loads(capsys.readouterr().out)
    assert (told["removed"], told["removed_bytes"], told["blocked"]) == ("3", "30", "")


def test_a_collection_that_is_blocked_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, blocked="the journal cannot be read")
    assert main(["blobs", "collect", "--server", "host:1"]) == 1
    assert "Nothing was removed: the journal cannot be read." in capsys.readouterr().out
