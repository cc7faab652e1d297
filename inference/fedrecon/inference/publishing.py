"""A version of what a task serves becomes a recommender that answers: fetch, export, prove, keep, open.

Rules: blocks, and is called from threads. What it makes lies in the blob store before anybody is told of it. The same
version gives the same recommender, on every replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedrecon.inference.bundles import fetch_verified, read_bundle, read_checkpoint
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.similarity import ItemVectors
from fedrecon.inference.verifying import export_proved
from fedrecon.inference.versions import Wanted
from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import Delta
from fedrecon.wire.deltas import make_delta
from fedrecon.wire.vocabularies import read_vocabulary

LARGEST_FOR_DELTAS = 64 << 20
"""Bytes of a recommender up to which deltas are made: a second or two of one core each."""

WORTH_FETCHING = 0.85
"""Of the whole file, which compresses to about as much."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A recommender that answers.

    Attributes:
        wanted: the version that it is of.
        plan_digest: the plan.
        recommender: the ONNX file.
        vocabulary: its items.
        answering: the file, opened.
        largest_difference: of a score from the plan's own graphs, when it was proved.
        vectors: of its items.
        deltas: to the ONNX file from recommenders that were served before.
    """

    wanted: Wanted
    plan_digest: bytes
    recommender: BlobReference
    vocabulary: BlobReference
    answering: OpenRecommender
    largest_difference: float
    vectors: ItemVectors
    deltas: tuple[Delta, ...] = ()

    @property
    def task(self) -> str:
        """Name of its task."""
        return self.wanted.spec.name

    @property
    def version(self) -> int:
        """Its number; 0: the newest committed checkpoint."""
        return self.wanted.version

    @property
    def round(self) -> int:
        """The round that made its checkpoint; 0 for the plan's initial one."""
        return self.wanted.round

    @property
    def checkpoint(self) -> BlobReference:
        """Its checkpoint."""
        return self.wanted.checkpoint


def publish(wanted: Wanted, blobs: BlobStore, before: Sequence[BlobReference] = ()) -> Publication:
    """Returns the recommender of a version, kept in the blob store.

    Args:
        wanted: the version.
        blobs: where plan and checkpoint lie, and where the recommender goes.
        before: recommenders of the same task that were served before: deltas are made from those that are still there.

    Raises:
        ValueError: the parts are damaged, do not fit together, or cannot be exported.
        BlobMissing: a part is not in the blob store.
        CorruptBlob: a part is damaged there.
    """

    def fetch(blob: BlobReference) -> bytes:
        return blobs.read(blob.digest)

    spec = wanted.spec
    bundle = read_bundle(fetch_verified(spec.plan, "plan", fetch), fetch)
    checkpoint = fetch_verified(wanted.checkpoint, "checkpoint", fetch)
    vocabulary = bundle.vocabulary(spec.vocabularies)
    items = fetch_verified(vocabulary, "vocabulary", fetch)
    exported = export_proved(bundle, checkpoint, items, spec.name, wanted.round, spec.work)
    opened = read_vocabulary(items)
    recommender = BlobReference(digest=blobs.put(exported.recommender), size=len(exported.recommender))
    return Publication(
        wanted=wanted,
        plan_digest=bundle.digest,
        recommender=recommender,
        vocabulary=vocabulary,
        answering=OpenRecommender.open(exported.recommender, opened, exported.together),
        largest_difference=exported.largest_difference,
        vectors=ItemVectors.of(bundle, read_checkpoint(bundle, checkpoint), opened.retired),
        deltas=tuple(_deltas_to(recommender, exported.recommender, blobs, before)),
    )


def _deltas_to(
    recommender: BlobReference, content: bytes, blobs: BlobStore, before: Sequence[BlobReference]
) -> Iterator[Delta]:
    """Yields deltas that are worth fetching, kept in the blob store."""
    for known in before:
        if known.digest == recommender.digest or max(known.size, recommender.size) > LARGEST_FOR_DELTAS:
            continue
        try:
            delta = make_delta(blobs.read(known.digest), content)
        except (BlobMissing, CorruptBlob):
            continue  # nobody needs an old file: the whole one is always there
        if len(delta) <= WORTH_FETCHING * len(content):
            yield Delta(known=known.digest, blob=BlobReference(digest=blobs.put(delta), size=len(delta)))
