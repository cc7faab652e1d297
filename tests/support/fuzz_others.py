"""Blobs and Inference as subjects of fuzzing: nothing that they are asked changes anything."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message

from fedrecon.inference.calls import Calls
from fedrecon.inference.catalogue import Catalogue, Served, _Followed
from fedrecon.inference.measures import Measures
from fedrecon.inference.model_threads import ModelThreads
from fedrecon.inference.publishing import Publication
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.service import InferenceService
from fedrecon.inference.similarity import ItemVectors
from fedrecon.inference.versions import Wanted
from fedrecon.ops.blob_service import BlobService
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.blobs_pb2 import FetchRequest, StatRequest
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import Column, FindSimilarRequest, GetRecommenderRequest, RecommendRequest
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.vocabularies import read_vocabulary
from support.fuzz_subjects import Parts, Subject, Verdict, ask, parse
from support.inference_sample import make_sample

TASK = "films"


class Inline(Executor):
    """Threads that are none."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - handed to who waits, as threads do
            done.set_exception(error)
        return done


def build_all(folder: Path) -> list[Subject]:
    """Returns what is fuzzed of blob stores and recommenders."""
    blobs, metrics = LocalBlobs(folder), Metrics.create("inference")
    content = b"a blob of some bytes" * 100
    blob = blobs.put(content)
    store = BlobService(blobs, metrics)
    sample = make_sample()
    recommender = sample.export()
    live = Publication(
        wanted=Wanted(0, 12, BlobReference(digest=sample.origin.checkpoint_digest, size=1), TaskSpec(name=TASK)),
        plan_digest=digest_of(sample.manifest),
        recommender=BlobReference(digest=blobs.put(recommender), size=len(recommender)),
        vocabulary=BlobReference(digest=blobs.put(sample.vocabulary), size=len(sample.vocabulary)),
        answering=OpenRecommender.open(recommender, read_vocabulary(sample.vocabulary)),
        largest_difference=0.0,
        vectors=ItemVectors(np.eye(12, 3, dtype=np.float32), np.array([4])),
    )
    measures = Measures(metrics)
    catalogue = Catalogue(None, blobs, Inline(), measures)  # type: ignore[arg-type]  # nobody is followed
    catalogue._followed[TASK] = _Followed(served=Served(live=live))
    catalogue._listed = True
    inference = InferenceService(catalogue, Calls(ModelThreads(Inline(), 100, measures), 1))
    rated = RecommendRequest(
        task=TASK,
        columns=[
            Column(field="item", keys=["key-1", "key-5", "key-9"]),
            Column(field="rating", values=[4.0, 2.5, 0.5]),
        ],
        count=5,
        exclude_seen=True,
        excluded_keys=["key-2"],
        allowed_keys=["key-3", "key-4", "key-6"],
        reasons=2,
    )
    calls: list[tuple[str, Callable[..., Any], list[Message], float]] = [
        ("Blobs/Stat", store.Stat, [StatRequest(digest=blob)], 0.5),
        ("Blobs/Fetch", store.Fetch, [FetchRequest(digest=blob, offset=7), FetchRequest(digest=blob)], 0.5),
        ("Inference/GetRecommender", inference.GetRecommender, [GetRecommenderRequest(task=TASK)], 0.3),
        (
            "Inference/FindSimilar",
            inference.FindSimilar,
            [FindSimilarRequest(task=TASK, key="key-1", count=3)],
            0.3,
        ),
        ("Inference/Recommend", inference.Recommend, [rated, RecommendRequest(task=TASK, count=3)], 0.5),
    ]

    def feed_of(method: Callable[..., Any], kind: type[Message]) -> Callable[[Parts], Any]:
        async def feed(parts: Parts) -> Verdict:
            messages = parse(parts[:1], kind)
            answer = await ask(method, messages) if messages else None
            return Verdict.REFUSED if answer is None else Verdict.ANSWERED

        return feed

    return [
        Subject(
            f"public: {name.rpartition('/')[2]}",
            (f"/fedrecon.v1.{name}",),
            type(valid[0]),
            tuple([message.SerializeToString()] for message in valid),
            feed_of(method, type(valid[0])),
            share,
        )
        for name, method, valid, share in calls
    ]
