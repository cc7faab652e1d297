"""Blobs kept on the device by the digest of their content.

A blob is immutable, so what is here never gets stale. Files are written whole or not at all, and checked against
their digest when they are read: a damaged one is removed and counts as missing. Every round has a new checkpoint, so
a cache has a size: what was used longest ago goes, and is fetched again if it is wanted. Several devices of one process
may share a cache; then only one of them fetches a blob and the others wait (`claim`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from fedrecon.device_sdk.files import blaming_the_disk, remove, write_atomically
from fedrecon.wire.digests import digest_of

MEMORY_BYTES = 64 << 20
KEPT_BYTES = 512 << 20


class BlobCache:
    """A folder of blobs, with the last used ones in memory.

    Args:
        folder: where files lie; None keeps everything in memory.
        memory_bytes: how much of a folder's content is also kept in memory.
        kept_bytes: how much is kept in all; the last blob is kept however large it is.
    """

    def __init__(
        self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._folder = folder
        self._kept_bytes = kept_bytes
        self._memory_bytes = kept_bytes if folder is None else memory_bytes
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._held = 0
        self._partial: dict[bytes, bytes] = {}
        self._notes: dict[str, bytes] = {}
        self._claims: set[bytes] = set()
        self._lock = threading.Lock()

    def read(self, digest: bytes) -> bytes | None:
        """Returns a blob, or None where it is not here or its file is damaged.

        Raises:
            StorageFailedError: the disk fails.
        """
        path = self._folder / digest.hex() if self._folder is not None else None
        if path is not None:
            with contextlib.suppress(OSError):  # the file's time says when it was used
                os.utime(path)
        with self._lock:
            if (content := self._recent.get(digest)) is not None:
                self._recent.move_to_end(digest)
                return content
        if path is None:
            return None
        content = _content_of(path)
        if content is None:
            return None
        if digest_of(content) != digest:
            remove(path)
            return None
        self._remember(digest, content)
        return content

    def write(self, digest: bytes, content: bytes) -> None:
        """Keeps a blob whose digest was checked; what was kept of an unfinished transfer goes."""
        if self._folder is not None:
            write_atomically(self._folder / digest.hex(), content)
            self._make_room(self._folder, digest.hex())
        self._remember(digest, content)
        self.keep_partial(digest, b"")

    def partial(self, digest: bytes) -> bytes:
        """Returns what an unfinished transfer left: the blob's first bytes, not yet checked as a whole."""
        if self._folder is None:
            return self._partial.get(digest, b"")
        return _content_of(self._folder / f"{digest.hex()}.part") or b""

    def keep_partial(self, digest: bytes, content: bytes) -> None:
        """Keeps the first bytes of a blob for a later transfer; empty bytes remove them."""
        if self._folder is None:
            self._partial.pop(digest, None)
            if content:
                self._partial[digest] = content
            return
        path = self._folder / f"{digest.hex()}.part"
        if content:
            write_atomically(path, content)
        else:
            path.unlink(missing_ok=True)

    def note(self, name: str, content: bytes) -> None:
        """Keeps a short note beside the blobs, for example which of them is the live recommender."""
        if self._folder is not None:
            write_atomically(self._folder / f"{digest_of(name.encode()).hex()}.note", content)
        self._notes[name] = content

    def recall(self, name: str) -> bytes | None:
        """Returns a note, or None."""
        if self._folder is not None:
            kept = _content_of(self._folder / f"{digest_of(name.encode()).hex()}.note")
            if kept is not None:
                return kept
        return self._notes.get(name)

    def claim(self, digest: bytes) -> bool:
        """Says whether the caller is to fetch this blob; whoever is told so calls `release` at the end."""
        with self._lock:
            if digest in self._claims:
                return False
            self._claims.add(digest)
            return True

    def release(self, digest: bytes) -> None:
        """Ends a claim."""
        with self._lock:
            self._claims.discard(digest)

    def clear(self) -> None:
        """Removes every blob."""
        with self._lock:
            self._recent.clear()
            self._held = 0
            self._partial.clear()
            self._notes.clear()
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)

    def _remember(self, digest: bytes, content: bytes) -> None:
        """Keeps a blob in memory; the ones used longest ago make room."""
        with self._lock:
            if digest not in self._recent:
                self._held += len(content)
            self._recent[digest] = content
            self._recent.move_to_end(digest)
            while self._held > self._memory_bytes and len(self._recent) > 1:
                _, oldest = self._recent.popitem(last=False)
                self._held -= len(oldest)

    def _make_room(self, folder: Path, newest: str) -> None:
        """Removes what was used longest ago, also beginnings of transfers, until the rest is small enough."""
        files = []
        for path in folder.iterdir():
            if path.name.startswith(".") or path.suffix == ".note":  # being written, or no blob
                continue
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held <= self._kept_bytes:
                return
            if path.name != newest:
                path.unlink(missing_ok=True)
                held -= size


def _content_of(path: Path) -> bytes | None:
    """Returns a file's content, or None where there is none."""
    with blaming_the_disk(path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
