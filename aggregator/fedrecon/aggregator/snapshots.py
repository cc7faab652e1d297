"""Running sums, sealed, where all aggregators can read them; and the folder that says who this one is.

Rules: a snapshot is named by the digest of its sealed bytes, which stands in the journal, and is bound to its group, so
that neither an older sum nor another group's can pass for it. What no group names and is a day old belongs to a batch
that was never journalled. The folder belongs to one process at a time; its holder's name, made once, stands in every
group that it holds.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
from pathlib import Path

from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.ops.durable_files import make_folder, write_durably
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.sealing import SealBroken, SealedBlobs
from fedrecon.wire.digests import DigestMismatchError, verify_digest
from fedrecon.wire.fixed_point import FixedPoint, Vector, read_vector

_DOMAIN = b"fedrecon running sum 1"
_CONTENT_DOMAIN = b"fedrecon group content 1"
_HOLDER_BYTES = 8
UNNAMED_MILLISECONDS = 24 * 3_600_000
"""How long a sum stays that no group names: far longer than a journal that is away delays the event that will."""


class SnapshotLostError(Exception):
    """The sum that the journal names is not there any more, or was changed."""


class Snapshots:
    """Sealed sums. All methods block: call them from threads.

    Args:
        folder: this aggregator's own; made if missing.
        key: 32 bytes that seal them: the same for all aggregators.
        place: where they lie; all aggregators can read them there.

    Attributes:
        holder: name of this aggregator in the journal.
        noise_key: 32 bytes that follow from the sealing key, for the noise of private sums.

    Raises:
        UserMistake: another process has the folder.
    """

    def __init__(self, folder: Path, key: bytes, place: BlobStore) -> None:
        make_folder(folder)
        self._lock = _locked(folder)
        self.holder = _holder_of(folder)
        self.noise_key = hmac.digest(key, b"fedrecon noise key 1", "sha256")
        self._sealed = SealedBlobs(place, key)

    def put(self, group: bytes, total: Vector) -> bytes:
        """Keeps a group's sum; when this returns, it survives loss of power.

        Returns:
            The digest of the sealed file.

        Raises:
            StorageFull: the disk is full; nothing was kept.
        """
        return self._sealed.put(total.to_bytes(), _DOMAIN + group)

    def put_content(self, group: bytes, content: bytes) -> bytes:
        """Keeps what else a group needs, its roster or its shares, as `put` does."""
        return self._sealed.put(content, _CONTENT_DOMAIN + group)

    def read_content(self, group: bytes, digest: bytes) -> bytes:
        """Returns what `put_content` kept.

        Raises:
            SnapshotLostError: it is missing, damaged, or sealed with another key.
        """
        try:
            return self._sealed.read(digest, _CONTENT_DOMAIN + group)
        except (BlobMissing, CorruptBlob, SealBroken) as error:
            raise SnapshotLostError(str(error)) from error

    def read(self, group: bytes, digest: bytes, sum_digest: bytes, fixed_point: FixedPoint) -> Vector:
        """Returns a group's sum.

        Args:
            group: the group.
            digest: what `put` returned.
            sum_digest: SHA-256 of the sum's vector.
            fixed_point: the group's agreement on integers.

        Raises:
            SnapshotLostError: it is missing, damaged, or sealed with another key.
        """
        try:
            content = self._sealed.read(digest, _DOMAIN + group)
            verify_digest(content, sum_digest, "running sum")
            return read_vector(content, fixed_point)
        except (BlobMissing, CorruptBlob, SealBroken, DigestMismatchError, ValueError) as error:
            raise SnapshotLostError(str(error)) from error

    def delete(self, digest: bytes) -> None:
        """Removes a sum; nothing happens if it is gone already."""
        self._sealed.delete(digest)

    def sweep(self, named: frozenset[bytes], now_milliseconds: int) -> int:
        """Removes old sums that no group of any aggregator names. Returns how many they were."""
        return self._sealed.sweep(named, now_milliseconds - UNNAMED_MILLISECONDS)

    def close(self) -> None:
        """Gives the folder to others."""
        os.close(self._lock)


def _locked(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserMistake(
            f"Another aggregator runs on {folder}.", "Stop it, or give this one another FEDRECON_AGGREGATOR_FOLDER."
        ) from error
    return lock


def _holder_of(folder: Path) -> str:
    path = folder / "holder"
    if not path.exists():
        write_durably(path, [secrets.token_hex(_HOLDER_BYTES).encode()])
    return path.read_text().strip()
