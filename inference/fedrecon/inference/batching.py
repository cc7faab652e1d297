"""Many users in one run: those who ask at the same moment, or one after the other in a file.

Rules: a user whose examples are refused is answered so, and nothing else happens to the others. Users with much to
compute (many examples, reasons, a list of what is allowed) run alone, so that nobody waits for padding. Answers are
those of a run for each, to 1e-6 of the largest score. A model without a graph for many (`batch_drawing`) is run for
one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.inference import batch_drawing as graph
from fedrecon.inference.recommending import (
    Asked,
    DivergedError,
    OpenRecommender,
    Prepared,
    Ranking,
    UnusableExamplesError,
)

MOST_TOGETHER = 16
"""Users in one run: it takes a millisecond or two, and more of them gain little."""

_LIGHT = 256
"""Examples, or exclusions, up to which a user is padded together with others."""

Answer = Ranking | UnusableExamplesError | DivergedError


def recommend_many(recommender: OpenRecommender, users: Iterable[Asked]) -> Iterator[Answer]:
    """Yields the answer to each user, in their order; a refusal is an answer.

    Args:
        recommender: what is asked.
        users: as many as there are: they are taken a few at a time.
    """
    waiting = iter(users)
    while together := list(itertools.islice(waiting, MOST_TOGETHER)):
        yield from recommend_together(recommender, together)


def recommend_together(recommender: OpenRecommender, users: Sequence[Asked]) -> list[Answer]:
    """Returns the answer to each of a few users; a refusal is an answer."""
    answers: dict[int, Answer] = {}
    light: dict[int, Prepared] = {}
    for place, asked in enumerate(users):
        try:
            prepared = recommender.prepare(asked)
        except UnusableExamplesError as error:
            answers[place] = error
            continue
        if recommender.together is not None and _is_light(prepared):
            light[place] = prepared
        else:
            answers[place] = _alone(recommender, prepared)
    if len(light) == 1:
        ((place, prepared),) = light.items()
        answers[place] = _alone(recommender, prepared)
    elif light:
        answers |= dict(zip(light, run_together(recommender, list(light.values())), strict=True))
    return [answers[place] for place in range(len(users))]


def _is_light(prepared: Prepared) -> bool:
    """Whether a user may be padded together with others."""
    return not prepared.reasons and len(prepared.known) <= _LIGHT and prepared.excluded.size <= 2 * _LIGHT


def _alone(recommender: OpenRecommender, prepared: Prepared) -> Answer:
    try:
        return recommender.answer(prepared)
    except DivergedError as error:
        return error


def run_together(recommender: OpenRecommender, users: Sequence[Prepared]) -> list[Ranking | DivergedError]:
    """Returns the answer to each of some users, from one run.

    Args:
        recommender: with a graph for many.
        users: at least one.
    """
    assert recommender.together is not None  # noqa: S101 - the caller has looked
    rows, scores = recommender.together.run([graph.ROWS, graph.SCORES], _pad(recommender, users))
    answers: list[Ranking | DivergedError] = []
    for prepared, own_rows, own_scores in zip(users, rows, scores, strict=True):
        shown = np.flatnonzero(own_scores != -np.inf)[: prepared.count]
        try:
            recommender.check(own_scores[shown], prepared.excluded, prepared.count)
        except DivergedError as error:
            answers.append(error)
        else:
            answers.append(Ranking(own_rows[shown], own_scores[shown], prepared.unknown_keys))
    return answers


def _pad(recommender: OpenRecommender, users: Sequence[Prepared]) -> dict[str, NDArray[Any]]:
    """Returns the inputs of one run for some users, padded to the longest."""
    (item,) = (field.name for field in recommender.fields if field.vocabulary)
    (target,) = (field.name for field in recommender.fields if not field.vocabulary)
    examples = (len(users), max(len(each.known) for each in users))
    excluded = (len(users), max(each.excluded.size for each in users))
    inputs: dict[str, NDArray[Any]] = {
        graph.ITEMS: np.zeros(examples, dtype=np.int64),
        graph.TARGETS: np.zeros(examples, dtype=np.float32),
        graph.MASK: np.zeros(examples, dtype=np.float32),
        graph.EXCLUDED: np.zeros(excluded, dtype=np.int64),
        graph.LIMITS: np.full(excluded, np.inf, dtype=np.float32),
        graph.COUNT: np.array([max(each.count for each in users)], dtype=np.int64),
    }
    for place, each in enumerate(users):
        length, left_out = len(each.known), each.excluded.size
        inputs[graph.ITEMS][place, :length] = each.examples[item]
        inputs[graph.TARGETS][place, :length] = each.examples[target]
        inputs[graph.MASK][place, :length] = 1
        inputs[graph.EXCLUDED][place, :left_out] = each.excluded
        inputs[graph.LIMITS][place, :left_out] = -np.inf
    return inputs
