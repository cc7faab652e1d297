"""The Inference service: names the live recommender, and recommends on the server to those who ask for it.

Rules: stateless, and silent about the user: neither examples nor answers are kept, logged or counted by content. The
model runs in threads, one core each, never on the event loop.
"""

from __future__ import annotations

from typing import Any

from fedrecon.inference import answering
from fedrecon.inference.calls import Calls
from fedrecon.inference.catalogue import Catalogue
from fedrecon.inference.publishing import Publication
from fedrecon.v1.inference_pb2 import (
    FindSimilarRequest,
    FindSimilarResponse,
    GetRecommenderRequest,
    GetRecommenderResponse,
    RecommendRequest,
    RecommendResponse,
)
from fedrecon.v1.inference_pb2_grpc import InferenceServicer


class InferenceService(InferenceServicer):
    """Answers the calls of `inference.proto`.

    Args:
        catalogue: what is live.
        calls: how they are computed.
    """

    def __init__(self, catalogue: Catalogue, calls: Calls) -> None:
        self._catalogue = catalogue
        self._calls = calls

    async def GetRecommender(self, request: GetRecommenderRequest, context: Any) -> GetRecommenderResponse:  # noqa: N802 - named by the contract
        """Names the recommender that is live, with the canary beside it, or one that is held to."""
        del context
        live = self._catalogue.choose(request.task, version=request.version)
        return answering.describe(live, None if request.version else self._catalogue.canary(request.task))

    async def Recommend(self, request: RecommendRequest, context: Any) -> RecommendResponse:  # noqa: N802 - the same
        """Recommends to a user whose examples came along."""
        del context
        return await self._calls.recommend(self._chosen(request), request)

    async def FindSimilar(self, request: FindSimilarRequest, context: Any) -> FindSimilarResponse:  # noqa: N802 - the same
        """Names the items that are most like one."""
        del context
        return await self._calls.find_similar(self._chosen(request), request)

    def _chosen(self, request: RecommendRequest | FindSimilarRequest) -> Publication:
        place = request.place if request.HasField("place") else None
        return self._catalogue.choose(request.task, place, request.version)
