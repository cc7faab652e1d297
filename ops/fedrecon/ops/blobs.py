"""Blobs: checkpoints, plans and vocabularies, each named by the SHA-256 of its bytes.

`open_blobs` gives a folder of this machine (`LocalBlobs`) or an object store (`FsspecBlobs`); both keep one contract
(`blob_contract`). The interface blocks: services call it from threads.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from fedrecon.ops.blob_contract import CHUNK_BYTES, BlobMissing, BlobStore, CorruptBlob, StoredBlob
from fedrecon.ops.local_blobs import LocalBlobs
from fedrecon.ops.object_blobs import FsspecBlobs

__all__ = [
    "CHUNK_BYTES",
    "BlobMissing",
    "BlobStore",
    "CorruptBlob",
    "FsspecBlobs",
    "LocalBlobs",
    "StoredBlob",
    "open_blobs",
]


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
