import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrecon.ops.blobs import (
    CHUNK_BYTES,
    BlobMissing,
    BlobStore,
    CorruptBlob,
    FsspecBlobs,
    LocalBlobs,
    open_blobs,
)
from fedrecon.ops.durable_files import StorageFull, make_folder, write_durably
from support.s3_server import BUCKET, s3_at, serving_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serving_s3() as endpoint, s3_at(endpoint):
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        return open_blobs(f"{request.getfixturevalue('s3')}/{secrets.token_hex(8)}")
    return open_blobs(tmp_path / "blobs" if request.param == "local" else f"memory://{secrets.token_hex(8)}")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_blob_is_named_by_its_digest_and_read_back(blobs: BlobStore) -> None:
    content = os.urandom(3 * CHUNK_BYTES + 17)
    digest = blobs.put(content)
    assert digest == hashlib.sha256(content).digest()
    assert blobs.size(digest) == len(content)
    assert blobs.read(digest) == content
    assert [len(chunk) for chunk in blobs.chunks(digest)] == [CHUNK_BYTES] * 3 + [17]
    assert list(blobs.digests()) == [digest]


def test_chunks_and_whole_bytes_make_the_same_blob(blobs: BlobStore) -> None:
    assert blobs.put([b"ab", b"", b"c"]) == blobs.put(b"abc")
    assert len(list(blobs.digests())) == 1


def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    digest = blobs.put(b"")
    assert blobs.size(digest) == 0
    assert blobs.read(digest) == b""
    assert list(blobs.chunks(digest)) == []


def test_a_read_from_an_offset_returns_the_rest_or_a_part(blobs: BlobStore) -> None:
    digest = blobs.put(b"0123456789")
    assert blobs.read(digest, 4) == b"456789"
    assert blobs.read(digest, 4, 3) == b"456"
    assert blobs.read(digest, 8, 100) == b"89"
    assert blobs.read(digest, 10) == b""
    assert b"".join(blobs.chunks(digest, 7)) == b"789"
    for offset in (-1, 11):
        with pytest.raises(ValueError, match="outside"):
            blobs.read(digest, offset)
        with pytest.raises(ValueError, match="outside"):
            blobs.chunks(digest, offset)
    with pytest.raises(ValueError, match="negative"):
        blobs.read(digest, 0, -1)


def test_a_missing_blob_is_said_to_be_missing(blobs: BlobStore) -> None:
    digest = bytes(32)
    assert blobs.size(digest) is None
    for read in (blobs.read, blobs.chunks):
        with pytest.raises(BlobMissing, match="0000"):
            read(digest)
    blobs.delete(digest)


def test_a_deleted_blob_is_gone_and_may_come_again(blobs: BlobStore) -> None:
    digest = blobs.put(b"content")
    blobs.delete(digest)
    assert blobs.size(digest) is None
    assert list(blobs.digests()) == []
    assert blobs.put(b"content") == digest
    assert blobs.read(digest) == b"content"


@pytest.mark.parametrize("digest", [b"", bytes(31), b"../../../../../../../../etc/passwd"])
def test_what_is_no_digest_names_no_file(blobs: BlobStore, digest: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        blobs.size(digest)


def test_a_put_that_breaks_off_leaves_nothing(blobs: BlobStore) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        blobs.put(broken())
    assert list(blobs.digests()) == []


@pytest.mark.parametrize("damage", [b"xbc", b"ab", b"abcd", b""])
def test_a_damaged_blob_is_refused_moved_aside_and_can_be_put_anew(tmp_path: Path, damage: bytes) -> None:
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put(b"abc")
    path = tmp_path / digest.hex()[:2] / digest.hex()
    path.write_bytes(damage)
    with pytest.raises(CorruptBlob, match=r"moved to .*\.corrupt"):
        blobs.read(digest)
    assert blobs.size(digest) is None
    assert path.with_name(path.name + ".corrupt").read_bytes() == damage
    assert list(blobs.digests()) == []
    blobs.put(b"abc")
    assert blobs.read(digest) == b"abc"


def test_no_last_chunk_of_a_damaged_blob_is_handed_out(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    content = bytes(2 * CHUNK_BYTES)
    digest = blobs.put(content)
    (tmp_path / digest.hex()[:2] / digest.hex()).write_bytes(content[:-1] + b"x")
    chunks = blobs.chunks(digest)
    assert next(chunks) == bytes(CHUNK_BYTES)
    with pytest.raises(CorruptBlob):
        next(chunks)


def test_a_damaged_object_is_moved_aside_too() -> None:
    blobs = FsspecBlobs(f"memory://{secrets.token_hex(8)}")
    digest = blobs.put(b"abc")
    blobs._store.pipe_file(blobs._path(digest), b"xbc")
    with pytest.raises(CorruptBlob):
        blobs.read(digest)
    assert blobs.size(digest) is None


def test_putting_again_mends_a_damaged_blob(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put(b"abc")
    (tmp_path / digest.hex()[:2] / digest.hex()).write_bytes(b"xyz")
    blobs.put(b"abc")
    assert blobs.read(digest) == b"abc"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = LocalBlobs(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="free space"):
        blobs.put(b"abc")
    assert files(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file a descriptor is")
def test_a_write_syncs_the_file_before_the_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made" / "here" / "file"
    synced: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_durably(target, [b"abc"])
    made, here = target.parent.parent, target.parent
    assert [path for path, _ in synced[:2]] == [tmp_path, made], "a folder made for the file could vanish"
    assert synced[2][0].parent == here
    assert not synced[2][1], "the file was named before its bytes were on disk"
    assert synced[3:] == [(here, True)], "the file's name could vanish"


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_what_a_killed_writer_left_is_removed_but_not_what_others_write(tmp_path: Path) -> None:
    LocalBlobs(tmp_path)
    old, new = tmp_path / "writing" / ".writing-old", tmp_path / "writing" / ".writing-new"
    for path in (old, new):
        path.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(old, (two_days_ago, two_days_ago))
    blobs = LocalBlobs(tmp_path)
    assert files(tmp_path) == [new]
    assert list(blobs.digests()) == []


def test_the_place_chooses_the_store(tmp_path: Path) -> None:
    assert isinstance(open_blobs(str(tmp_path / "a")), LocalBlobs)
    digest = open_blobs(f"file://{tmp_path}/with%20space").put(b"abc")
    assert (tmp_path / "with space" / digest.hex()[:2] / digest.hex()).read_bytes() == b"abc"
    assert isinstance(open_blobs("memory://somewhere"), FsspecBlobs)
    with pytest.raises(ValueError, match="cannot lie at sftp://"):
        open_blobs("sftp://host/folder")
