"""Blobs in an object store that fsspec reaches, for instance S3.

Such a store cannot remove an object on a condition, so whoever removes an old blob condemns it first: it writes an
empty object `condemned/NAME`, looks at the blob's age once more, removes it, and lifts the condemnation. Whoever puts a
blob looks for a condemnation afterwards, waits until it is lifted, and puts the blob again if it is gone. Either the
condemnation was there for the writer to see, or the writer's object was there, and young, for the remover to see.

Rules: the store is consistent (what was written is seen by every later look; S3 is since 2020). A remover that was held
up does not remove any more; a condemnation that is ten minutes old belongs to one that was killed. Large objects may
count from the beginning of their upload, so grace times are longer than uploads.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from fedrecon.ops.blob_contract import CHUNK_BYTES, NOTES, StoredBlob, checked_note
from fedrecon.ops.blob_reading import ASIDE, blob_chunks, digest_in, hashed, missing, name_of, read_blob

_SPOOLED_BYTES = 64 << 20
_WHOLE_OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Stores in which an object appears whole when its upload ends; a file system behind fsspec promises no such thing."""

_S3_SCHEMES = frozenset({"s3", "s3a"})
_S3_TRIES = 2
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "max_attempts": 3}}
}
"""Tries of s3fs, and within each of botocore. By their own defaults they multiply: S3 that answered 503 held up a write
for 82 s. Whoever called tries again, and knows by then that something is wrong."""

_WRITTEN_NAMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""What fsspec's stores call the moment of the last write, in listings."""

_CONDEMNED = "condemned"
_SURELY_CONDEMNED_SECONDS = 60.0
"""How long after condemning a blob its removal may still begin."""

_CONDEMNED_SECONDS = 600.0
_PARDON_POLL_SECONDS = 0.2
_FRESH_SECONDS = 600.0
"""Age up to which an object need not be written again to count as young."""


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
        options = _S3_OPTIONS if scheme in _S3_SCHEMES else {}
        try:
            self._store, self._root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise ImportError(f"{scheme}:// needs a package ({error}): for S3, pip install 'fedrecon[s3]'") from error
        if scheme in _S3_SCHEMES:
            self._store.retries = _S3_TRIES  # no argument says it

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        """Keep a blob. See `BlobStore.put`."""
        digest = hashlib.sha256()
        # An object is named when its upload begins, so the bytes wait until their digest is known.
        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spooled:
            for chunk in hashed(content, digest):
                spooled.write(chunk)
            while True:
                self._upload(self._path(digest.digest()), spooled)
                self._await_pardon(digest.digest())
                if self.size(digest.digest()) is not None:
                    return digest.digest()

    def size(self, digest: bytes) -> int | None:
        """Return a blob's length in bytes, or None if it is not here. See `BlobStore.size`."""
        try:
            return int(self._store.info(self._path(digest))["size"])
        except FileNotFoundError:
            return None

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob. See `BlobStore.read`."""
        return read_blob(self, digest, offset, length)

    def chunks(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """Return a blob's bytes from an offset in chunks. See `BlobStore.chunks`."""
        return blob_chunks(self, digest, offset)

    def delete(self, digest: bytes) -> None:
        """Remove a blob; nothing happens if it is not here. See `BlobStore.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path(digest))

    def digests(self) -> Iterator[bytes]:
        """Return the digests of all blobs. See `BlobStore.digests`."""
        return (blob.digest for blob in self.stored())

    def stored(self) -> Iterator[StoredBlob]:
        """Return all blobs with their size and age. See `BlobStore.stored`."""
        for path, status in self._store.find(self._root, detail=True).items():
            folder, _, name = path.rpartition("/")
            for digest in digest_in(name):
                if folder == f"{self._root.rstrip('/')}/{name[:2]}":  # not condemnations, nor places within this one
                    yield StoredBlob(digest, int(status["size"]), self._written(path, status))

    def refresh(self, digest: bytes) -> None:
        """Make a blob count as written just now, by writing it again if need be. See `BlobStore.refresh`."""
        path = self._path(digest)
        try:
            written = self._written(path, self._store.info(path))
        except FileNotFoundError as error:
            raise missing(digest) from error
        if time.time() * 1000 - written > _FRESH_SECONDS * 1000:
            self.put(self.chunks(digest))

    def delete_unless_written(self, digest: bytes, since_milliseconds: int) -> bool:
        """Remove a blob that nobody has written since. See `BlobStore.delete_unless_written`."""
        path = self._path(digest)
        began = time.monotonic()
        self._store.pipe_file(self._condemned(digest), b"")
        try:
            is_old = self._written(path, self._store.info(path)) < since_milliseconds
        except FileNotFoundError:
            is_old = False
        if is_old and (is_old := time.monotonic() - began < _SURELY_CONDEMNED_SECONDS):
            # If this fails nobody knows whether the object goes: its condemnation stays until it runs out.
            self._store.rm_file(path)
        self._pardon(digest)
        return is_old

    def write_note(self, name: str, content: bytes) -> None:
        """Keep a small content under a name. See `BlobStore.write_note`."""
        self._store.pipe_file(self._note(name), content)

    def read_note(self, name: str) -> bytes | None:
        """Return the content kept under a name. See `BlobStore.read_note`."""
        try:
            content: bytes = self._store.cat_file(self._note(name))
        except FileNotFoundError:
            return None
        return content

    def notes(self) -> tuple[str, ...]:
        """Return the names of all notes. See `BlobStore.notes`."""
        return tuple(sorted(path.rpartition("/")[2] for path in self._store.find(f"{self._root.rstrip('/')}/{NOTES}")))

    def open(self, digest: bytes) -> BinaryIO:
        """Open a blob for reading at its start."""
        file: BinaryIO = self._store.open(self._path(digest), "rb")
        return file

    def set_aside(self, digest: bytes) -> str:
        """Move a damaged blob out of the way; return where it lies now."""
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            self._store.mv(path, path + ASIDE)
        return path + ASIDE

    def _upload(self, path: str, spooled: IO[bytes]) -> None:
        """Writes an object; it appears whole when its upload ends."""
        spooled.seek(0)
        target = self._store.open(path, "wb")
        try:
            while chunk := spooled.read(CHUNK_BYTES):
                target.write(chunk)
        except BaseException:
            target.discard()
            raise
        target.close()

    def _await_pardon(self, digest: bytes) -> None:
        """Returns once nobody is about to remove a blob."""
        condemned = self._condemned(digest)
        while True:
            try:
                since = self._written(condemned, self._store.info(condemned))
            except FileNotFoundError:
                return
            if time.time() * 1000 - since > _CONDEMNED_SECONDS * 1000:
                self._pardon(digest)  # whoever condemned it was killed
                return
            time.sleep(_PARDON_POLL_SECONDS)

    def _pardon(self, digest: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._condemned(digest))

    def _condemned(self, digest: bytes) -> str:
        return f"{self._root.rstrip('/')}/{_CONDEMNED}/{name_of(digest)}"

    def _note(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{NOTES}/{checked_note(name)}"

    def _written(self, path: str, status: Mapping[str, Any]) -> int:
        """Returns when an object was written, Unix milliseconds; stores call it by different names."""
        for name in _WRITTEN_NAMES:
            if isinstance(found := status.get(name), datetime):
                return int(found.timestamp() * 1000)
        return int(self._store.modified(path).timestamp() * 1000)

    def _path(self, digest: bytes) -> str:
        name = name_of(digest)
        return f"{self._root.rstrip('/')}/{name[:2]}/{name}"
