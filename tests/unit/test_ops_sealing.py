from pathlib import Path

import pytest

from fedrecon.ops.blobs import BlobMissing, CorruptBlob, LocalBlobs
from fedrecon.ops.sealing import SEALED_OVERHEAD_BYTES, SealBroken, SealedBlobs, open_sealed, seal

KEY = bytes(range(32))
CONTENT = b"a sum of updates that must not lie in the clear" * 10


def test_what_was_sealed_opens() -> None:
    sealed = seal(KEY, CONTENT, b"round 1")
    assert open_sealed(KEY, sealed, b"round 1") == CONTENT
    assert len(sealed) == len(CONTENT) + SEALED_OVERHEAD_BYTES
    assert open_sealed(KEY, seal(KEY, b"", b""), b"") == b""


def test_sealing_twice_gives_different_bytes_and_hides_the_content() -> None:
    sealed = [seal(KEY, CONTENT, b"") for _ in range(2)]
    assert sealed[0] != sealed[1]
    assert sealed[0][4:16] != sealed[1][4:16], "a nonce was used twice"
    assert CONTENT[:8] not in sealed[0]


def test_another_key_does_not_open() -> None:
    with pytest.raises(SealBroken, match="key"):
        open_sealed(bytes(32), seal(KEY, CONTENT, b"round 1"), b"round 1")


def test_one_seal_does_not_pass_for_another() -> None:
    with pytest.raises(SealBroken):
        open_sealed(KEY, seal(KEY, CONTENT, b"round 1"), b"round 2")


def test_no_changed_bit_goes_unnoticed() -> None:
    sealed = seal(KEY, b"content", b"")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SealBroken):
            open_sealed(KEY, bytes(changed), b"")


def test_cut_bytes_do_not_open() -> None:
    sealed = seal(KEY, b"content", b"")
    for length in (0, 3, 4, SEALED_OVERHEAD_BYTES - 1, len(sealed) - 1):
        with pytest.raises(SealBroken):
            open_sealed(KEY, sealed[:length], b"")


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(key, CONTENT, b"")
    with pytest.raises(ValueError, match="32 bytes"):
        open_sealed(key, seal(KEY, CONTENT, b""), b"")
    with pytest.raises(ValueError, match="32 bytes"):
        SealedBlobs(LocalBlobs(tmp_path), key)


def test_a_sealed_folder_keeps_contents_and_never_shows_them(tmp_path: Path) -> None:
    folder = SealedBlobs(LocalBlobs(tmp_path), KEY)
    digest = folder.put(CONTENT, b"group 7")
    assert SealedBlobs(LocalBlobs(tmp_path), KEY).read(digest, b"group 7") == CONTENT
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or CONTENT[:16] not in path.read_bytes()
    with pytest.raises(SealBroken):
        folder.read(digest, b"group 8")
    folder.delete(digest)
    with pytest.raises(BlobMissing):
        folder.read(digest, b"group 7")


def test_an_older_file_cannot_take_the_place_of_a_newer(tmp_path: Path) -> None:
    folder = SealedBlobs(LocalBlobs(tmp_path), KEY)
    old, new = (folder.put(content, b"group 7") for content in (b"one report", b"two reports"))
    paths = [tmp_path / digest.hex()[:2] / digest.hex() for digest in (old, new)]
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(CorruptBlob):
        folder.read(new, b"group 7")
