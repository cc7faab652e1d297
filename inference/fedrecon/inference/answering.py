"""What the calls of `inference.proto` are answered with, whichever way they came: gRPC or HTTP.

Rules: pure but for the model's run, and blocking: called from threads. Silent about the user: neither examples nor
answers are kept, logged or counted by content.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from fedrecon.inference.batching import recommend_together
from fedrecon.inference.publishing import Publication
from fedrecon.inference.recommending import Asked, DivergedError, KeysOrNumbers, Ranking, UnusableExamplesError
from fedrecon.ops.boundary import Refusal
from fedrecon.v1.inference_pb2 import (
    Canary,
    FindSimilarRequest,
    FindSimilarResponse,
    GetRecommenderResponse,
    Reason,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
)


def describe(live: Publication, canary: tuple[Publication, int] | None = None) -> GetRecommenderResponse:
    """Names the files of what is live.

    Args:
        live: what is.
        canary: what some devices get instead, and the places that do.
    """
    told = GetRecommenderResponse(
        recommender=live.recommender,
        vocabulary=live.vocabulary,
        round=live.round,
        checkpoint_digest=live.checkpoint.digest,
        plan_digest=live.plan_digest,
        version=live.version,
        deltas=live.deltas,
    )
    if canary is not None:
        publication, places = canary
        told.canary.CopyFrom(Canary(places=places, recommender=describe(publication)))
    return told


def recommend(live: Publication, request: RecommendRequest) -> RecommendResponse:
    """Recommends to a user whose examples came along.

    Raises:
        Refusal: the examples are none that the model takes.
    """
    (answer,) = recommend_many(live, [request])
    if isinstance(answer, Refusal):
        raise answer
    return answer


def recommend_many(live: Publication, requests: Sequence[RecommendRequest]) -> list[RecommendResponse | Refusal]:
    """Recommends to a few users, in one run where that is possible; a refusal is an answer."""
    answers: dict[int, RecommendResponse | Refusal] = {}
    asked: dict[int, Asked] = {}
    for place, request in enumerate(requests):
        try:
            asked[place] = _asked(request)
        except Refusal as refusal:
            answers[place] = refusal
    for place, answer in zip(asked, recommend_together(live.answering, list(asked.values())), strict=True):
        answers[place] = _response(live, requests[place], answer)
    return [answers[place] for place in range(len(requests))]


def is_quick(request: RecommendRequest) -> bool:
    """Whether a user may wait together with others: without reasons, which take a run for each example."""
    return not request.reasons and not request.allowed_keys


def _asked(request: RecommendRequest) -> Asked:
    columns = {column.field: KeysOrNumbers(column.keys, column.values) for column in request.columns}
    if len(columns) < len(request.columns):
        raise _invalid("WRONG_FIELDS", "A field has more than one column.", "Give one column for each field.")
    return Asked(
        columns,
        request.count,
        request.exclude_seen,
        request.excluded_keys,
        request.allowed_keys,
        request.reasons,
    )


def _response(
    live: Publication, request: RecommendRequest, answer: Ranking | UnusableExamplesError | DivergedError
) -> RecommendResponse | Refusal:
    match answer:
        case UnusableExamplesError():
            return _invalid(answer.reason, str(answer), answer.advice)
        case DivergedError():
            return Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "DIVERGED",
                f"The reconstruction of task {live.task!r} diverges for these examples.",
                "Lower the task's `reconstruct.rate`, or send fewer examples.",
            )
        case _:
            return RecommendResponse(
                recommendations=_recommendations(live, request, answer),
                round=live.round,
                checkpoint_digest=live.checkpoint.digest,
                unknown_keys=answer.unknown_keys,
                version=live.version,
            )


def find_similar(live: Publication, request: FindSimilarRequest) -> FindSimilarResponse:
    """Names the items that are most like one.

    Raises:
        Refusal: the item is unknown, or the model has no vectors of items.
    """
    items = live.answering.items
    row = items.rows.get(request.key)
    if row is None:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_KEY",
            f"Task {live.task!r} knows no item {request.key!r}.",
            "Send a key of its vocabulary.",
        )
    if request.count < 1:
        raise _invalid("BAD_COUNT", f"{request.count} items are wanted.", "Ask for at least 1.")
    if not live.vectors.unit.size:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NO_VECTORS",
            f"The model of task {live.task!r} has no vectors of items.",
            "Ask for recommendations.",
        )
    rows, cosines = live.vectors.similar_to(row, request.count)
    return FindSimilarResponse(
        similar=[
            Recommendation(key=items.keys[other], title=items.titles[other] if items.titles else "", score=cosine)
            for other, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)
        ],
        round=live.round,
        checkpoint_digest=live.checkpoint.digest,
        version=live.version,
    )


def _recommendations(live: Publication, request: RecommendRequest, ranking: Ranking) -> list[Recommendation]:
    items = live.answering.items
    keys = next((column.keys for column in request.columns if column.keys), ())
    reasons = ranking.reasons or ((),) * len(ranking.rows)
    return [
        Recommendation(
            key=items.keys[row],
            title=items.titles[row] if items.titles else "",
            score=score,
            reasons=[Reason(example=each.example, key=keys[each.example], effect=each.effect) for each in told],
        )
        for row, score, told in zip(ranking.rows.tolist(), ranking.scores.tolist(), reasons, strict=True)
    ]


def _invalid(reason: str, message: str, advice: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message, advice)
