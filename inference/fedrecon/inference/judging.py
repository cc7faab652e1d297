"""How good recommenders are on users never seen, from a folder of ratings: figures with 95% intervals, paired.

A user's ratings are halved as devices halve them (alternate batches of 5): the file reconstructs from one half, and is
judged on the other. RMSE is pooled over all ratings of those halves. The ten best of all items that are not in the
first half are compared with the second: recall@10 = items found / min(10, items to be found), NDCG@10 with one
over log2(rank + 1), both means over users; coverage@10 is the share of all items that anybody gets.

Rules: pure but for the model's runs, and the same figures whenever the same users come. Users are resampled with
replacement, the same ones for both recommenders, so that what is hard about a user cancels: an interval is the
figure, or the difference, plus and minus 1.96 standard deviations over resamples. A figure that a model does not
have (RMSE of choices) is left out.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets import Ratings, cap_ratings
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.taken_fields import TakenField
from fedrecon.v1.admin_pb2 import Evidence, Measured
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES
from fedrecon.wire.schedules import split

LISTED = 10
"""Length of the list that is judged."""

BATCH = 5
_RESAMPLES = 400
_TWO_SIDED_95 = 1.959964
_SEED = 20210607
CHOSEN = 1.0
"""What a model of choices takes for an item that a user has."""

Resampled = NDArray[np.float64]


class UnjudgeableError(ValueError):
    """A recommender takes what ratings do not have, or no user can be judged; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Rater:
    """One user.

    Attributes:
        keys: of the items that were rated, in the order in which a device holds them.
        ratings: as many.
    """

    keys: Sequence[str]
    ratings: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What one recommender did for each of some users, in their order; a user without a second half has zeros.

    Attributes:
        squares: `[users]`, sum of squared errors; None where the model predicts no ratings.
        counts: `[users]`, ratings that were predicted.
        recall: `[users]`, not a number for users who cannot be ranked for.
        ndcg: `[users]`, likewise.
        listed: `[users, LISTED]`, rows of the ten best; -1 for none.
        items: how many there are that may be recommended.
    """

    squares: NDArray[np.float64] | None
    counts: NDArray[np.float64]
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    listed: NDArray[np.int64]
    items: int

    @property
    def can_be_ranked(self) -> NDArray[np.bool_]:
        """`[users]`, whether there was something to find."""
        return ~np.isnan(self.recall)

    def of(self, users: NDArray[np.bool_]) -> Judged:
        """Returns the same for some of the users: `[users]`, whether one is among them."""
        squares = None if self.squares is None else self.squares[users]
        return Judged(squares, self.counts[users], self.recall[users], self.ndcg[users], self.listed[users], self.items)


def raters_of(ratings: Ratings, users: NDArray[np.int64]) -> list[Rater]:
    """Returns some users of ratings, each with at most 300 of them, in the fixed protocol's order.

    Args:
        ratings: of everybody.
        users: `[users]`, whom.
    """
    own, keys = ratings.by_user(), np.array(ratings.item_keys, dtype=object)
    raters = []
    for user in users.tolist():
        positions = own[user][cap_ratings(len(own[user]), user)]
        stars = ratings.ratings[positions].astype(np.float64)
        raters.append(Rater(tuple(keys[ratings.items[positions]].tolist()), stars))
    return raters


def judge_users(
    recommender: OpenRecommender, users: Sequence[Rater], advance: Callable[[], None] = lambda: None
) -> Judged:
    """Returns what a recommender does for users.

    Args:
        recommender: the file, opened.
        users: each with ratings.
        advance: called after each user.

    Raises:
        UnjudgeableError: the model takes other fields than an item and a number.
    """
    item, number = fields_of_ratings(recommender.fields)
    stars = takes_stars(number, max((float(user.ratings.max()) for user in users if len(user.ratings)), default=0.0))
    discounts = 1.0 / np.log2(np.arange(2, LISTED + 2))
    counts, squares = np.zeros(len(users)), np.zeros(len(users))
    recall, ndcg = np.full(len(users), np.nan), np.full(len(users), np.nan)
    listed = np.full((len(users), LISTED), -1, dtype=np.int64)
    every = np.array([len(recommender.items.keys)])
    for place, user in enumerate(users):
        rows = recommender.items.rows_of(user.keys)
        support, query = split(len(rows), SPLIT_RULE_ALTERNATE_BATCHES, batch_size=BATCH)
        support, query = support[rows[support] >= 0], query[rows[query] >= 0]
        given = {
            item.name: rows[support],
            number.name: (user.ratings[support] if stars else np.full(support.size, CHOSEN)).astype(np.float32),
            EXCLUDED: np.zeros(0, dtype=np.int64),
            COUNT: every,
        }
        ranked, scores = recommender.session.run([ROWS, SCORES], given)
        by_row = np.full(every[0], np.nan)
        by_row[ranked] = scores
        predicted = by_row[rows[query]]
        is_served = ~np.isnan(predicted)  # retired items have no score
        errors = predicted[is_served] - user.ratings[query][is_served]
        counts[place], squares[place] = errors.size, float(np.square(errors).sum())
        wanted = np.setdiff1d(rows[query][is_served], rows[support])
        best = ranked[~np.isin(ranked, rows[support])][:LISTED]
        listed[place, : best.size] = best
        if wanted.size:
            found = np.isin(best, wanted)
            findable = min(LISTED, wanted.size)
            recall[place] = found.sum() / findable
            ndcg[place] = float(found @ discounts[: best.size]) / float(discounts[:findable].sum())
        advance()
    if not counts.any():
        raise UnjudgeableError("no user has a rating left to be judged on: give users with more than five ratings")
    items = len(recommender.items.keys) - len(recommender.items.retired)
    return Judged(squares if stars else None, counts, recall, ndcg, listed, items)


def evidence_of(candidate: Judged, live: Judged | None, live_version: int, source: str) -> Evidence:
    """Returns the figures of a candidate, against the live one where there is one.

    Args:
        candidate: what it did.
        live: what the live one did for the same users; None: nothing is live.
        live_version: its number; 0: nothing is live.
        source: where the users come from, for people.
    """
    counted = candidate.counts > 0 if live is None else (candidate.counts > 0) & (live.counts > 0)
    candidate, live = candidate.of(counted), None if live is None else live.of(counted)
    users = int(counted.sum())
    draws = np.random.default_rng(_SEED).multinomial(users, np.full(users, 1 / users), _RESAMPLES).astype(np.float64)
    own = _resample(candidate, draws)
    other = {} if live is None else _resample(live, draws)
    once = np.ones((1, users))
    values = {name: float(figures[0]) for name, figures in _resample(candidate, once).items()}
    others = {} if live is None else {name: float(figures[0]) for name, figures in _resample(live, once).items()}
    measures = []
    for name, value in values.items():
        half = _TWO_SIDED_95 * float(own[name].std(ddof=1))
        measured = Measured(name=name, value=value, lowest=value - half, highest=value + half)
        if name in others:
            half = _TWO_SIDED_95 * float((own[name] - other[name]).std(ddof=1))
            difference = value - others[name]
            measured.live_value = others[name]
            measured.lowest_difference, measured.highest_difference = difference - half, difference + half
        measures.append(measured)
    return Evidence(source=source, users=users, live_version=live_version, measures=measures)


def _resample(judged: Judged, draws: Resampled) -> dict[str, Resampled]:
    """Returns each figure for every resample of the users.

    Args:
        judged: what a recommender did for them.
        draws: `[resamples, users]`, how often each user is in it.
    """
    ranked = judged.can_be_ranked
    weights = draws[:, ranked]
    total = weights.sum(axis=1)
    figures: dict[str, Resampled] = {}
    if judged.squares is not None:
        figures["rmse"] = np.sqrt((draws @ judged.squares) / (draws @ judged.counts))
    # A resample of few users may have nobody to rank for: then the figure is no number, and no gate lets it pass.
    with np.errstate(invalid="ignore"):
        figures["recall"] = (weights @ judged.recall[ranked]) / total
        figures["ndcg"] = (weights @ judged.ndcg[ranked]) / total
    shown = np.unique(judged.listed[judged.listed >= 0])
    is_shown_to = np.zeros((len(judged.listed), shown.size), dtype=np.float32)
    places = np.searchsorted(shown, judged.listed)
    for column in range(LISTED):
        has = judged.listed[:, column] >= 0
        is_shown_to[np.flatnonzero(has), places[has, column]] = 1.0
    figures["coverage"] = ((draws.astype(np.float32) @ is_shown_to) > 0).sum(axis=1) / judged.items
    return figures


def fields_of_ratings(fields: Iterable[TakenField]) -> tuple[TakenField, TakenField]:
    """Returns the item's field and the number's.

    Raises:
        UnjudgeableError: there are others.
    """
    items = [field for field in fields if field.vocabulary]
    numbers = [field for field in fields if not field.vocabulary]
    if len(items) != 1 or len(numbers) != 1:
        names = ", ".join(field.name for field in fields)
        raise UnjudgeableError(f"ratings have an item and a number for each example; this model takes {names}")
    return items[0], numbers[0]


def takes_stars(number: TakenField, largest: float) -> bool:
    """Whether a model's number is a rating; else it is that the item was chosen, whatever its stars.

    Args:
        number: the model's.
        largest: rating that is given.

    Raises:
        UnjudgeableError: it is neither.
    """
    if number.allows(largest):
        return True
    if number.allows(CHOSEN):
        return False
    raise UnjudgeableError(f"the model's {number.name} goes from {number.minimum:g} to {number.maximum:g}: no rating")
