"""How a call is computed, whichever way it came: gathered with others, or alone.

Rules: whoever is quick is gathered; whoever asks for reasons or gives a list of what is allowed runs alone, in a thread
of their own, and keeps nobody else waiting.
"""

from __future__ import annotations

from fedrecon.inference import answering
from fedrecon.inference.batching import MOST_TOGETHER
from fedrecon.inference.gathering import Gathering
from fedrecon.inference.model_threads import ModelThreads
from fedrecon.inference.publishing import Publication
from fedrecon.v1.inference_pb2 import FindSimilarRequest, FindSimilarResponse, RecommendRequest, RecommendResponse


class Calls:
    """Computes calls.

    Args:
        threads: where the model runs.
        runs: at once, of calls that were gathered: as many as there are threads.
    """

    def __init__(self, threads: ModelThreads, runs: int) -> None:
        self._threads = threads
        self._gathering: Gathering[Publication, RecommendRequest, RecommendResponse] = Gathering(
            threads, answering.recommend_many, together=MOST_TOGETHER, runs=runs
        )

    async def recommend(self, live: Publication, request: RecommendRequest) -> RecommendResponse:
        """Recommends to a user whose examples came along.

        Raises:
            Refusal: too many calls wait, or the examples are none that the model takes.
        """
        if answering.is_quick(request):
            return await self._gathering.run(live, request)
        return await self._threads.run(answering.recommend, live, request)

    async def find_similar(self, live: Publication, request: FindSimilarRequest) -> FindSimilarResponse:
        """Names the items that are most like one.

        Raises:
            Refusal: too many calls wait, or nothing is like this item.
        """
        return await self._threads.run(answering.find_similar, live, request)
