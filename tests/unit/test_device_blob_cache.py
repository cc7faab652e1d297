"""The blob cache and the files it is made of."""

import os
import stat
from pathlib import Path

import pytest

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.errors import FedreconError, StorageFailedError
from fedrecon.device_sdk.files import write_atomically
from fedrecon.device_sdk.identity import device_key
from fedrecon.device_sdk.memory import Memory, Rest
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.digests import digest_of


def test_a_blob_outlives_the_process(tmp_path: Path) -> None:
    BlobCache(tmp_path).write(digest_of(b"blob"), b"blob")
    assert BlobCache(tmp_path).read(digest_of(b"blob")) == b"blob"


def test_a_damaged_file_counts_as_missing_and_is_removed(tmp_path: Path) -> None:
    digest = digest_of(b"blob")
    (tmp_path / digest.hex()).write_bytes(b"blub")
    assert BlobCache(tmp_path).read(digest) is None
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded_and_files_remain(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, memory_bytes=10)
    contents = [bytes([number]) * 8 for number in range(3)]
    for content in contents:
        cache.write(digest_of(content), content)
    assert len(cache._recent) == 1
    assert [cache.read(digest_of(content)) for content in contents] == contents


def test_the_blobs_used_longest_ago_make_room_on_disk(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, memory_bytes=8, kept_bytes=20)
    contents = [bytes([number]) * 8 for number in range(4)]
    digests = [digest_of(content) for content in contents]
    cache.note("live", b"a note is no blob")
    for moment, (digest, content) in enumerate(zip(digests[:2], contents, strict=False)):
        cache.write(digest, content)
        os.utime(tmp_path / digest.hex(), (moment, moment))
    assert cache.read(digests[0]) == contents[0]  # used again, so the other one goes
    cache.write(digests[2], contents[2])
    assert [BlobCache(tmp_path).read(digest) is not None for digest in digests[:3]] == [True, False, True]
    assert BlobCache(tmp_path).recall("live") == b"a note is no blob"


def test_a_blob_larger_than_the_cache_is_kept_alone(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, kept_bytes=4)
    for content in (b"small", b"larger"):
        cache.write(digest_of(content), content)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"larger"]


def test_a_cache_without_a_folder_is_bounded_too() -> None:
    cache = BlobCache(kept_bytes=20)
    for number in range(100):
        cache.write(digest_of(bytes([number]) * 8), bytes([number]) * 8)
    assert [number for number in range(100) if cache.read(digest_of(bytes([number]) * 8))] == [98, 99]


def test_a_finished_transfer_removes_its_beginning(tmp_path: Path) -> None:
    cache, digest = BlobCache(tmp_path), digest_of(b"blob")
    cache.keep_partial(digest, b"bl")
    assert BlobCache(tmp_path).partial(digest) == b"bl"
    cache.write(digest, b"blob")
    assert cache.partial(digest) == b""


def test_one_claim_at_a_time() -> None:
    cache = BlobCache()
    assert cache.claim(b"digest")
    assert not cache.claim(b"digest")
    cache.release(b"digest")
    assert cache.claim(b"digest")


def test_a_cleared_cache_is_empty(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    cache.write(digest_of(b"blob"), b"blob")
    cache.note("name", b"note")
    cache.clear()
    assert cache.read(digest_of(b"blob")) is None
    assert cache.recall("name") is None
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageFailedError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_device_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "device.key"
    key = device_key(path).private_bytes_raw()
    assert device_key(path).private_bytes_raw() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert device_key(None).private_bytes_raw() != key


def test_a_damaged_device_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    path.write_bytes(b"short")
    with pytest.raises(FedreconError, match="has 5 bytes") as raised:
        device_key(path)
    assert raised.value.reason == "DAMAGED_KEY"


def test_a_remembered_assignment_has_no_round_token(tmp_path: Path) -> None:
    Memory(tmp_path).keep_assignment(Assignment(session=b"s" * 16, round_token=b"secret token"))
    Memory(tmp_path).keep_state(7, Rest())
    again = Memory(tmp_path)
    assert again.minimum_examples == 7
    assert again.assignment is not None
    assert again.assignment.session == b"s" * 16
    assert all(b"secret token" not in path.read_bytes() for path in tmp_path.iterdir())


def test_damaged_memory_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"{")
    (tmp_path / "assignment.bin").write_bytes(b"\xff\xff")
    memory = Memory(tmp_path)
    assert (memory.minimum_examples, memory.assignment) == (0, None)
