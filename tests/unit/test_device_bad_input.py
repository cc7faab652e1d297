"""Whatever a device finds on its disk, its clock or the network: a typed error with advice, and the next run works."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecon.device_sdk import BackgroundJob, Conditions, Outcome, Participation
from fedrecon.device_sdk.errors import DamagedExamplesError, FedreconError, StorageFailedError
from fedrecon.device_sdk.testing import FakeServices, FakeTransport
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from support.toy_devices import toy_device, toy_store

YEAR = 365 * 86_400.0
FREE = Conditions(idle=lambda: True, charging=lambda: True, battery=lambda: True)


def plain() -> FakeTransport:
    return FakeTransport(FakeServices(secure_sum=False))


def take_part(transport: FakeTransport, home: Path, **changes: Any) -> Participation:
    return toy_device(transport, home, secure_sum="allowed", **changes).participate()


def works(transport: FakeTransport, home: Path) -> None:
    """Raises unless the next run works."""
    ended = take_part(transport, home)
    assert ended.outcome is Outcome.UPLOADED, ended


def blobs_of(home: Path) -> list[Path]:
    return [path for path in (home / "blobs").iterdir() if len(path.name) == 64]


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    transport = plain()
    works(transport, tmp_path)
    for path in blobs_of(tmp_path):
        path.write_bytes(path.read_bytes() + b"?")
    fetched = transport.services.calls.count("Fetch")
    works(transport, tmp_path)
    assert transport.services.calls.count("Fetch") == 2 * fetched
    works(transport, tmp_path)
    assert transport.services.calls.count("Fetch") == 2 * fetched


def test_a_cache_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"no folder")
    ended = take_part(plain(), tmp_path)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "STORAGE_FAILED")
    assert "make room" in ended.message
    (tmp_path / "blobs").unlink()
    works(plain(), tmp_path)


@pytest.mark.parametrize("name", ["state.json", "assignment.bin", "enrolment.json", "history.jsonl", "leaving.jsonl"])
def test_a_damaged_file_of_the_memory_is_written_anew(name: str, tmp_path: Path) -> None:
    works(plain(), tmp_path)
    (tmp_path / name).write_bytes(b"\xff\x00damaged\n" * 9)
    works(plain(), tmp_path)
    works(plain(), tmp_path)


def test_a_damaged_device_key_says_what_to_do(tmp_path: Path) -> None:
    works(plain(), tmp_path)
    (tmp_path / "device.key").write_bytes(b"short")
    with pytest.raises(FedreconError, match="remove the file") as raised:
        take_part(plain(), tmp_path)
    assert raised.value.reason == "DAMAGED_KEY"
    (tmp_path / "device.key").unlink()
    works(plain(), tmp_path)


def test_a_database_that_is_damaged_while_it_is_open_is_a_typed_error(tmp_path: Path) -> None:
    path, transport = tmp_path / "examples.db", plain()
    store = toy_store(path)
    store.extend({"item": f"film-{number % 6}", "rating": 3.0} for number in range(500))
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(DamagedExamplesError) as raised:
        take_part(transport, tmp_path, examples=store)
    assert "open the store again" in raised.value.advice
    store.close()
    assert toy_store(path).count() == 5  # a new one, filled again
    works(transport, tmp_path)


@pytest.mark.parametrize("wrong", [YEAR, -YEAR])
def test_a_clock_that_is_wrong_by_a_year_stops_nobody(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, right = plain(), time.time
    job = BackgroundJob(toy_device(transport, tmp_path, secure_sum="allowed"), FREE)
    assert job.take_turn().outcome is Outcome.UPLOADED
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: right() + wrong)
        assert job.take_turn().outcome is Outcome.UPLOADED
        assert job.take_turn().reason == "TOO_EARLY"
    assert job.take_turn().outcome is Outcome.UPLOADED
    moments = [each.ended for each in job._device.history()]
    assert len(moments) == 3
    assert abs(moments[1] - moments[0] - wrong) < 60


def full(wanted: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files of some names not be written: the disk is full."""
    replace, opened = Path.replace, os.open

    def guarded(path: Path, target: Any) -> Path:
        if wanted(Path(target).name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    def guarded_open(path: Any, flags: int, *mode: Any, **more: Any) -> int:
        if flags & os.O_WRONLY and wanted(Path(path).name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(Path, "replace", guarded)
    monkeypatch.setattr(os, "open", guarded_open)


@pytest.mark.parametrize(
    ("what", "outcome"),
    [("leaving.jsonl", Outcome.FAILED), ("session.json", Outcome.FAILED), ("a blob", Outcome.FAILED)],
)
def test_without_room_on_the_disk_nothing_leaves_unnoted_and_the_next_run_works(
    what: str, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = plain()
    with monkeypatch.context() as patch:
        full(lambda name: name == what or (what == "a blob" and len(name) == 64), patch)
        ended = take_part(transport, tmp_path)
    assert (ended.outcome, ended.reason) == (outcome, "STORAGE_FAILED")
    assert "No space left on device" in ended.message
    assert "make room" in ended.message
    assert transport.services.reports == []
    if what == "leaving.jsonl":
        assert transport.services.calls == []
    works(transport, tmp_path)
    assert not (tmp_path / "session.json").exists()


def test_a_disk_that_fills_up_at_the_end_changes_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedrecon.device_sdk")  # whatever commands left, which other tests ran here
    transport = plain()
    works(transport, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        full(lambda name: name in {"state.json", "assignment.bin", "history.jsonl"}, patch)
        works(transport, tmp_path)
    assert "could not be stored" in caplog.text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    works(transport, tmp_path)


def test_a_home_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(StorageFailedError, match="make room on the disk and check who may write there"):
        take_part(plain(), tmp_path / "taken" / "home")


def assign(transport: FakeTransport, change: Callable[[Assignment], None]) -> None:
    transport.services.change = change


def test_a_checkpoint_of_another_plan_is_a_typed_error(tmp_path: Path) -> None:
    transport = plain()
    content = write_safetensors({"weights": np.zeros((3, 4), dtype=np.float32)})
    transport.services.blobs[digest_of(content)] = content

    def change(assignment: Assignment) -> None:
        assignment.checkpoint.digest, assignment.checkpoint.size = digest_of(content), len(content)

    assign(transport, change)
    ended = take_part(transport, tmp_path)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "UNUSABLE_PLAN")
    assert "checkpoint and plan do not belong together" in ended.message
    assign(transport, lambda _: None)
    works(transport, tmp_path)


@pytest.mark.parametrize(
    ("lie", "outcome", "reason"),
    [
        (lambda size: size - 5, Outcome.UNREACHABLE, "UNREACHABLE"),
        (lambda size: size + 5, Outcome.UNREACHABLE, "UNREACHABLE"),
        (lambda _: 0, Outcome.FAILED, "DAMAGED_BLOB"),
        (lambda _: 1 << 40, Outcome.REFUSED, "TOO_LARGE"),
    ],
)
def test_a_server_that_lies_about_sizes_costs_one_session(
    lie: Callable[[int], int], outcome: Outcome, reason: str, tmp_path: Path
) -> None:
    transport = plain()

    def change(assignment: Assignment) -> None:
        assignment.checkpoint.size = lie(assignment.checkpoint.size)

    assign(transport, change)
    ended = take_part(transport, tmp_path)
    assert (ended.outcome, ended.reason) == (outcome, reason), ended
    assert ended.message.count(";") >= 1, "there is advice"
    assign(transport, lambda _: None)
    works(transport, tmp_path)


def test_a_blob_that_is_another_is_never_run(tmp_path: Path) -> None:
    transport = plain()
    digest = transport.services.plan.manifest.initial_checkpoint.digest
    whole = transport.services.blobs[digest]
    transport.services.blobs[digest] = whole[:-1] + bytes([whole[-1] ^ 1])
    ended = take_part(transport, tmp_path)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "DAMAGED_BLOB")
    transport.services.blobs[digest] = whole
    works(transport, tmp_path)


def test_items_that_the_model_does_not_know_are_left_out_and_named(tmp_path: Path) -> None:
    store = toy_store()
    store.extend({"item": key, "rating": 4.0} for key in ("film-99", "series-1"))
    ended = take_part(plain(), tmp_path, examples=store)
    assert ended.outcome is Outcome.UPLOADED
    assert set(ended.unknown_keys) == {"film-99", "series-1"}
