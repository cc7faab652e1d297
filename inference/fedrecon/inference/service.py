"""The Inference service: names the live recommender, and recommends on the server to those who ask for it.

Rules: stateless, and silent about the user: neither examples nor answers are kept, logged or counted by content. The
model runs in threads, one core each, never on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Any

import grpc

from fedrecon.inference.catalogue import Catalogue
from fedrecon.inference.publishing import Publication
from fedrecon.inference.recommending import DivergedError, KeysOrNumbers, UnusableExamplesError
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.inference_pb2 import (
    GetRecommenderRequest,
    GetRecommenderResponse,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
)
from fedrecon.v1.inference_pb2_grpc import InferenceServicer


class InferenceService(InferenceServicer):
    """Answers the calls of `inference.proto`.

    Args:
        catalogue: what is live.
        threads: where the model runs.
        metrics: what is counted.
    """

    def __init__(self, catalogue: Catalogue, threads: Executor, metrics: Metrics) -> None:
        self._catalogue = catalogue
        self._threads = threads
        self._metrics = metrics

    async def GetRecommender(self, request: GetRecommenderRequest, context: Any) -> GetRecommenderResponse:  # noqa: N802 - named by the contract
        """Names the recommender that is live."""
        del context
        live = self._catalogue.live(request.task)
        return GetRecommenderResponse(
            recommender=live.recommender,
            vocabulary=live.vocabulary,
            round=live.round,
            checkpoint_digest=live.checkpoint.digest,
            plan_digest=live.plan_digest,
        )

    async def Recommend(self, request: RecommendRequest, context: Any) -> RecommendResponse:  # noqa: N802 - the same
        """Recommends to a user whose examples came along."""
        del context
        live = self._catalogue.live(request.task)
        asked = time.monotonic()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._recommend, live, request, asked)

    def _recommend(self, live: Publication, request: RecommendRequest, asked: float) -> RecommendResponse:
        began = time.monotonic()
        self._metrics.recommend_seconds.labels(stage="waiting").observe(began - asked)
        columns = {column.field: KeysOrNumbers(column.keys, column.values) for column in request.columns}
        if len(columns) < len(request.columns):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "WRONG_FIELDS",
                "A field has more than one column.",
                "Give one column for each field.",
            )
        try:
            ranking = live.answering.recommend(
                columns, request.count, exclude_seen=request.exclude_seen, excluded_keys=request.excluded_keys
            )
        except UnusableExamplesError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.reason, str(error), error.advice) from error
        except DivergedError as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "DIVERGED",
                f"The reconstruction of task {live.task!r} diverges for these examples.",
                "Lower the task's `reconstruct.rate`, or send fewer examples.",
            ) from error
        self._metrics.recommend_seconds.labels(stage="model").observe(time.monotonic() - began)
        items = live.answering.items
        return RecommendResponse(
            recommendations=[
                Recommendation(key=items.keys[row], title=items.titles[row] if items.titles else "", score=score)
                for row, score in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
            ],
            round=live.round,
            checkpoint_digest=live.checkpoint.digest,
            unknown_keys=ranking.unknown_keys,
        )
