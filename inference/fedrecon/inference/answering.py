"""What the calls of `inference.proto` are answered with, whichever way they came: gRPC or HTTP.

Rules: pure but for the model's run, and blocking: called from threads. Silent about the user: neither examples nor
answers are kept, logged or counted by content.
"""

from __future__ import annotations

import grpc

from fedrecon.inference.publishing import Publication
from fedrecon.inference.recommending import DivergedError, KeysOrNumbers, Ranking, UnusableExamplesError
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
    columns = {column.field: KeysOrNumbers(column.keys, column.values) for column in request.columns}
    if len(columns) < len(request.columns):
        raise _invalid("WRONG_FIELDS", "A field has more than one column.", "Give one column for each field.")
    try:
        ranking = live.answering.recommend(
            columns,
            request.count,
            exclude_seen=request.exclude_seen,
            excluded_keys=request.excluded_keys,
            allowed_keys=request.allowed_keys,
            reasons=request.reasons,
        )
    except UnusableExamplesError as error:
        raise _invalid(error.reason, str(error), error.advice) from error
    except DivergedError as error:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "DIVERGED",
            f"The reconstruction of task {live.task!r} diverges for these examples.",
            "Lower the task's `reconstruct.rate`, or send fewer examples.",
        ) from error
    return RecommendResponse(
        recommendations=_recommendations(live, request, ranking),
        round=live.round,
        checkpoint_digest=live.checkpoint.digest,
        unknown_keys=ranking.unknown_keys,
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
