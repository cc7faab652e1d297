"""A task's checkpoint becomes a recommender that answers: fetch, export, prove, keep, open.

Rules: blocks, and is called from threads. What it makes lies in the blob store before anybody is told of it. The same
task and checkpoint give the same recommender, on every replica.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.inference.bundles import fetch_verified, read_bundle, read_checkpoint
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.similarity import ItemVectors
from fedrecon.inference.verifying import export_proved
from fedrecon.ops.blobs import BlobStore
from fedrecon.v1.admin_pb2 import Task
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.wire.vocabularies import read_vocabulary


@dataclass(frozen=True, slots=True)
class Publication:
    """A recommender that is live.

    Attributes:
        task: name of its task.
        round: the round that made its checkpoint; 0 for the plan's initial one.
        checkpoint: the checkpoint.
        plan_digest: the plan.
        recommender: the ONNX file.
        vocabulary: its items.
        answering: the file, opened.
        largest_difference: of a score from the plan's own graphs, when it was proved.
        vectors: of its items.
    """

    task: str
    round: int
    checkpoint: BlobReference
    plan_digest: bytes
    recommender: BlobReference
    vocabulary: BlobReference
    answering: OpenRecommender
    largest_difference: float
    vectors: ItemVectors


def publish(task: Task, round_number: int, blobs: BlobStore) -> Publication:
    """Returns the recommender of a task's live checkpoint, kept in the blob store.

    Args:
        task: the task as it stands; its checkpoint is the live one.
        round_number: the round that made that checkpoint.
        blobs: where plan and checkpoint lie, and where the recommender goes.

    Raises:
        ValueError: the parts are damaged, do not fit together, or cannot be exported.
        BlobMissing: a part is not in the blob store.
        CorruptBlob: a part is damaged there.
    """

    def fetch(blob: BlobReference) -> bytes:
        return blobs.read(blob.digest)

    bundle = read_bundle(fetch_verified(task.spec.plan, "plan", fetch), fetch)
    checkpoint = fetch_verified(task.checkpoint, "checkpoint", fetch)
    vocabulary = bundle.vocabulary(task.spec.vocabularies)
    items = fetch_verified(vocabulary, "vocabulary", fetch)
    exported = export_proved(bundle, checkpoint, items, task.spec.name, round_number, task.spec.work)
    opened = read_vocabulary(items)
    return Publication(
        task=task.spec.name,
        round=round_number,
        checkpoint=task.checkpoint,
        plan_digest=bundle.digest,
        recommender=BlobReference(digest=blobs.put(exported.recommender), size=len(exported.recommender)),
        vocabulary=vocabulary,
        answering=OpenRecommender.open(exported.recommender, opened),
        largest_difference=exported.largest_difference,
        vectors=ItemVectors.of(bundle, read_checkpoint(bundle, checkpoint), opened.retired),
    )
