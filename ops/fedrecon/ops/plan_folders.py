"""Where things lie in the folder of a compiled plan.

    FOLDER/manifest.json     the manifest; the digest of exactly these bytes is the plan's
    FOLDER/signature.json    the publisher's word for it
    FOLDER/blobs/SHA256      graphs, checkpoint, vocabularies, recorded answers, each under its own digest

Rule: names only. Who reads a file checks it, and says in its own words what is wrong with it.
"""

from __future__ import annotations

from pathlib import Path


def manifest_file(folder: Path) -> Path:
    """Return where a plan's manifest lies."""
    return folder / "manifest.json"


def signature_file(folder: Path) -> Path:
    """Return where a plan's signature lies."""
    return folder / "signature.json"


def blobs_folder(folder: Path) -> Path:
    """Return where a plan's blobs lie."""
    return folder / "blobs"


def blob_file(folder: Path, digest: bytes) -> Path:
    """Return where one of a plan's blobs lies."""
    return blobs_folder(folder) / digest.hex()
