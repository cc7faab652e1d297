"""Plans, vocabularies and row sets of a task, read from the blob store. Blocks: services call it from threads."""

from __future__ import annotations

from fedrecon.coordinator.specs import InvalidSpec, Prepared, prepare
from fedrecon.ops.blobs import BlobMissing, BlobStore
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Manifest
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.manifests import MalformedPlanError, read_manifest
from fedrecon.wire.row_sets import MalformedRowSetError, RowSet, read_row_set
from fedrecon.wire.vocabularies import MalformedVocabularyError, read_vocabulary


def load_plan(spec: TaskSpec, blobs: BlobStore) -> Prepared:
    """Returns what rounds of a task take from its plan.

    Args:
        spec: A checked specification.
        blobs: Where the plan lies.

    Raises:
        InvalidSpec: As `specs.prepare`, or a blob that it names is not there (`MISSING_BLOB`).
    """
    manifest = _read_manifest(spec, blobs)
    _require_blobs(manifest, blobs)
    vocabularies = dict(spec.vocabularies or manifest.vocabularies)
    rows = {name: _rows_of(name, reference, blobs) for name, reference in sorted(vocabularies.items())}
    row_sets = {name: _row_set_of(name, reference, blobs) for name, reference in sorted(spec.row_sets.items())}
    return prepare(spec, manifest, rows, row_sets)


def _read_manifest(spec: TaskSpec, blobs: BlobStore) -> Manifest:
    try:
        return read_manifest(_read("plan", spec.plan, blobs))
    except MalformedPlanError as error:
        raise InvalidSpec("MALFORMED_PLAN", (str(error),)) from error


def _require_blobs(manifest: Manifest, blobs: BlobStore) -> None:
    """Devices fetch these by digest: a task whose plan is not whole would waste every one of them."""
    named: dict[str, BlobReference] = {"initial_checkpoint": manifest.initial_checkpoint}
    named |= {f"graphs[{position}]": graph.blob for position, graph in enumerate(manifest.graphs)}
    missing = tuple(
        f"{what}: blob {reference.digest.hex()} is not stored: put every part of the plan first"
        for what, reference in named.items()
        if not _is_stored(reference, blobs)
    )
    if missing:
        raise InvalidSpec("MISSING_BLOB", missing)


def _rows_of(name: str, reference: BlobReference, blobs: BlobStore) -> int:
    try:
        return len(read_vocabulary(_read(f"vocabularies.{name}", reference, blobs)).keys)
    except MalformedVocabularyError as error:
        raise InvalidSpec("MALFORMED_PLAN", (str(error),)) from error


def _row_set_of(name: str, reference: BlobReference, blobs: BlobStore) -> RowSet:
    try:
        return read_row_set(_read(f"row_sets.{name}", reference, blobs))
    except MalformedRowSetError as error:
        raise InvalidSpec("INVALID_SPEC", (f"row_sets.{name}: {error}",)) from error


def _read(what: str, reference: BlobReference, blobs: BlobStore) -> bytes:
    try:
        return blobs.read(reference.digest)
    except (BlobMissing, ValueError) as error:
        problem = f"{what}: blob {reference.digest.hex() or 'without a digest'} is not stored: put it first"
        raise InvalidSpec("MISSING_BLOB", (problem,)) from error


def _is_stored(reference: BlobReference, blobs: BlobStore) -> bool:
    try:
        return blobs.size(reference.digest) is not None
    except ValueError:
        return False
