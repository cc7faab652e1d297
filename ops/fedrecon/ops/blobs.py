"""Blobs: checkpoints, plans and vocabularies, each named by the SHA-256 of its bytes.

`open_blobs` gives a folder of this machine (`LocalBlobs`) or an object store (`FsspecBlobs`); both keep one contract.

Rules: a blob never changes; putting it again changes nothing, and mends a damaged one. When `put` returns, the blob is
whole and stays. Reading from the start to the end verifies the digest before the last byte is handed out; a damaged
blob is moved aside, so that it counts as missing and can be put anew. A read from further on is the reader's to verify.

The interface blocks: services call it from threads. Digests are 32 raw bytes; names on disk are hex: `ab/abcdef...`.
"""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from fedrecon.ops.durable_files import make_folder, write_durably
from fedrecon.ops.logs import logger_of
from fedrecon.wire.digests import DIGEST_BYTES

CHUNK_BYTES = 1 << 20
"""Bytes read at a time, and handed out by `chunks` at most: what a message of a stream carries."""

_log = logger_of(__name__)

_ASIDE = ".corrupt"
_ABANDONED_SECONDS = 24 * 60 * 60
_SPOOLED_BYTES = 64 << 20
_WHOLE_OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Stores in which an object appears whole when its upload ends; a file system behind fsspec promises no such thing."""


class BlobMissing(LookupError):  # noqa: N818 - named for what it says
    """No blob with this digest lies here."""


class CorruptBlob(Exception):  # noqa: N818 - the same
    """A blob's bytes do not have its digest; it was moved aside and counts as missing now."""


class BlobStore(Protocol):
    """Where blobs lie. See the module for the rules."""

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob.

        Args:
            content: Its bytes, whole or in chunks.

        Returns:
            Its digest, 32 bytes.

        Raises:
            StorageFull: If the disk is full; nothing is left behind.
        """
        ...

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here."""
        ...

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob.

        Args:
            digest: Its digest, 32 bytes.
            offset: Where to begin, at most its size.
            length: How many bytes at most; None for all. All from 0 are verified.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: If its bytes do not have its digest.
            ValueError: If the offset lies outside it.
        """
        ...

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks of at most `CHUNK_BYTES`; from 0, they are verified.

        Raises:
            BlobMissing: If it is not here.
            CorruptBlob: In place of the last chunk, if the bytes do not have its digest.
            ValueError: If the offset lies outside it.
        """
        ...

    def delete(self, digest: bytes) -> None:
        """Remove a blob; nothing happens if it is not here."""
        ...

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs, so that their owner can delete those that nothing names any more."""
        ...


def open_blobs(place: str | Path) -> BlobStore:
    """Open a store of blobs.

    Args:
        place: A folder, `file://FOLDER`, or the URL of an object store, for instance `s3://BUCKET/PREFIX`.

    Raises:
        ValueError: If the URL is of a kind that cannot keep the rules.
        ImportError: If the kind needs a package that is not installed.
    """
    scheme = "" if isinstance(place, Path) or "://" not in place else urlsplit(place).scheme
    if scheme == "":
        return LocalBlobs(Path(place))
    if scheme == "file":
        return LocalBlobs(Path(unquote(urlsplit(str(place)).path)))
    return FsspecBlobs(str(place))


class LocalBlobs:
    """Blobs in a folder of this machine, which several processes may share.

    Args:
        folder: Where they lie; made if missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder).absolute()
        self._writing = self._folder / "writing"
        make_folder(self._writing)
        self._remove_abandoned()

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob. See `BlobStore.put`."""
        digest = hashlib.sha256()
        write_durably(lambda: self._path(digest.digest()), _hashed(content, digest), self._writing)
        return digest.digest()

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here. See `BlobStore.size`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob. See `BlobStore.read`."""
        return _read(self, digest, offset, length)

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks. See `BlobStore.chunks`."""
        return _chunks(self, digest, offset)

    def delete(self, digest: bytes) -> None:
        """Remove a blob; after loss of power it may be back. See `BlobStore.delete`."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs. See `BlobStore.digests`."""
        for path in self._folder.glob("??/*"):
            yield from _digest_of(path.name)

    def open(self, digest: bytes) -> BinaryIO:
        """Open a blob for reading at its start."""
        return self._path(digest).open("rb")

    def set_aside(self, digest: bytes) -> str:
        """Move a damaged blob out of the way; return where it lies now."""
        path = self._path(digest)
        aside = path.with_name(path.name + _ASIDE)
        with contextlib.suppress(FileNotFoundError):  # another reader was quicker
            path.replace(aside)
        return str(aside)

    def _path(self, digest: bytes) -> Path:
        name = _name(digest)
        return self._folder / name[:2] / name

    def _remove_abandoned(self) -> None:
        """Remove what processes that were killed while writing left behind; others may be writing now."""
        for path in self._writing.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()


class FsspecBlobs:
    """Blobs in an object store that fsspec reaches; its credentials come from its own environment variables.

    Args:
        url: For instance `s3://BUCKET/PREFIX` or `memory://PREFIX`.

    Raises:
        ValueError: If the URL is of a kind that cannot keep the rules.
        ImportError: If the kind needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        scheme = urlsplit(url).scheme
        if scheme not in _WHOLE_OBJECT_SCHEMES:
            raise ValueError(
                f"blobs cannot lie at {scheme}://: use a folder, or one of {', '.join(sorted(_WHOLE_OBJECT_SCHEMES))}"
            )
        try:
            self._store, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ImportError(f"{scheme}:// needs a package ({error}): for S3, pip install 'fedrecon[s3]'") from error

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob. See `BlobStore.put`."""
        digest = hashlib.sha256()
        # An object is named when its upload begins, so the bytes wait until their digest is known.
        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spooled:
            for chunk in _hashed(content, digest):
                spooled.write(chunk)
            spooled.seek(0)
            path = self._path(digest.digest())
            self._store.makedirs(path.rpartition("/")[0], exist_ok=True)
            target = self._store.open(path, "wb")
            try:
                while chunk := spooled.read(CHUNK_BYTES):
                    target.write(chunk)
            except BaseException:
                target.discard()
                raise
            target.close()
        return digest.digest()

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here. See `BlobStore.size`."""
        try:
            return int(self._store.info(self._path(digest))["size"])
        except FileNotFoundError:
            return None

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob. See `BlobStore.read`."""
        return _read(self, digest, offset, length)

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks. See `BlobStore.chunks`."""
        return _chunks(self, digest, offset)

    def delete(self, digest: bytes) -> None:
        """Remove a blob; nothing happens if it is not here. See `BlobStore.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path(digest))

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs. See `BlobStore.digests`."""
        for path in self._store.find(self._root):
            yield from _digest_of(path.rpartition("/")[2])

    def open(self, digest: bytes) -> BinaryIO:
        """Open a blob for reading at its start."""
        file: BinaryIO = self._store.open(self._path(digest), "rb")
        return file

    def set_aside(self, digest: bytes) -> str:
        """Move a damaged blob out of the way; return where it lies now."""
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            self._store.mv(path, path + _ASIDE)
        return path + _ASIDE

    def _path(self, digest: bytes) -> str:
        name = _name(digest)
        return f"{self._root.rstrip('/')}/{name[:2]}/{name}"


class _Opened(Protocol):
    """What reading needs of either store."""

    def size(self, digest: bytes) -> int | None: ...
    def open(self, digest: bytes) -> BinaryIO: ...
    def set_aside(self, digest: bytes) -> str: ...


def _read(store: _Opened, digest: bytes, offset: int, length: int | None) -> bytes:
    if length is None:
        return b"".join(_chunks(store, digest, offset))
    if length < 0:
        raise ValueError(f"the length of a read cannot be negative, got {length}")
    _check_offset(store, digest, offset)
    with _open(store, digest) as file:
        file.seek(offset)
        return file.read(length)


def _chunks(store: _Opened, digest: bytes, offset: int) -> Iterator[bytes]:
    _check_offset(store, digest, offset)  # here, so that what is missing shows at the call, not at the first chunk
    return _verified(store, digest, offset)


def _verified(store: _Opened, digest: bytes, offset: int) -> Iterator[bytes]:
    seen, held = hashlib.sha256(), b""
    with _open(store, digest) as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            seen.update(chunk)
            if held:
                yield held
            held = chunk
    if offset == 0 and seen.digest() != digest:
        aside = store.set_aside(digest)
        # Whoever reads first sees it; to everyone after, the blob is only missing.
        _log.error("blob damaged and moved aside", blob=digest.hex(), found=seen.hexdigest(), aside=aside)
        raise CorruptBlob(
            f"blob {digest.hex()} is damaged: its bytes have the digest {seen.hexdigest()}. It was moved to "
            f"{aside}; put it again from where it came, and check the disk"
        )
    if held:
        yield held


def _check_offset(store: _Opened, digest: bytes, offset: int) -> None:
    size = store.size(digest)
    if size is None:
        raise _missing(digest)
    if not 0 <= offset <= size:
        raise ValueError(f"offset {offset} lies outside blob {digest.hex()} of {size} bytes")


def _open(store: _Opened, digest: bytes) -> BinaryIO:
    try:
        return store.open(digest)
    except FileNotFoundError as error:
        raise _missing(digest) from error


def _missing(digest: bytes) -> BlobMissing:
    return BlobMissing(f"no blob {digest.hex()} lies here")


def _hashed(content: bytes | Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in (content,) if isinstance(content, bytes) else content:
        digest.update(chunk)
        yield chunk


def _name(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, got {len(digest)}")
    return digest.hex()


def _digest_of(name: str) -> Iterator[bytes]:
    """Yield the digest a file is named after; nothing for other files."""
    with contextlib.suppress(ValueError):
        digest = bytes.fromhex(name)
        if len(digest) == DIGEST_BYTES:
            yield digest
