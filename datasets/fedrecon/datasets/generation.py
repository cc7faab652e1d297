"""Ratings that look like MovieLens but are made up, with a structure that can be learned.

A rating is mean + user offset + item quality + taste · features + noise, rounded to whole stars. Who rates what follows
MovieLens 1M: popularity is skewed as there (a tenth of the items holds about 45% of the ratings), good items are
somewhat more popular, people pick what they like, and activity is log-normal above a minimum.
The same arguments give the same ratings with the same version of numpy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.titles import invent_titles

MINIMUM, MAXIMUM = 1, 5
# Zipf-Mandelbrot law fitted to the popularity of MovieLens 1M's items: (rank / items + 0.04)^-1.28.
POPULARITY_OFFSET, POPULARITY_EXPONENT = 0.04, 1.28
# How much good items are more popular, and how much people pick what they like: rise of the log-odds per star.
QUALITY_DRAW, LIKING_DRAW = 0.5, 0.4
# Log-normal spread of activity above the minimum, as in MovieLens 1M (median 96, mean 166, minimum 20).
ACTIVITY_SPREAD = 1.1
LARGEST_SHARE_RATED = 0.6
# The first ratings fall into these years; a session's ratings follow each other within a minute, sessions within days.
FIRST_SECOND, SPAN_SECONDS = 1_500_000_000, 94_608_000
SECONDS_BETWEEN_RATINGS, SECONDS_BETWEEN_SESSIONS, SHARE_OF_NEW_SESSIONS = 30.0, 864_000.0, 0.03
USERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """How generated ratings are made; spreads are standard deviations in stars.

    Attributes:
        factors: Dimensions of taste.
        taste: Spread of taste · features over users and items.
        quality: Spread of the items' quality.
        offset: Spread of the users' offsets.
        noise: Spread of what nothing explains, before rounding.
        mean: Mean of all ratings, met to within 0.01 or so.
        fewest: Ratings of the least active user.
        median: Ratings of the median user, as far as the number of items allows.
    """

    factors: int = 4
    taste: float = 0.7
    quality: float = 0.5
    offset: float = 0.4
    noise: float = 0.7
    mean: float = 3.6
    fewest: int = 20
    median: int = 80


def generate(users: int, items: int, seed: int, shape: Shape | None = None) -> Ratings:
    """Generate ratings.

    Args:
        users: How many users.
        items: How many items; each gets at least one rating.
        seed: Of all chance.
        shape: How they are made; without it, as `Shape()`.

    Returns:
        Ratings of 1 to 5 whole stars, user by user, each user's by time; keys are 1, 2, 3, ...

    Raises:
        ValueError: There is no user, or there are too few items for the least active user.

    Example:
        >>> ratings = generate(users=100, items=200, seed=7)
        >>> ratings.scale, int(ratings.ratings_per_user().min()) >= 20
        ((1.0, 5.0), True)
    """
    shape = shape or Shape()
    if users < 1:
        raise ValueError(f"{users} users cannot rate anything: ask for at least 1")
    if not 1 <= shape.fewest <= shape.median or items * LARGEST_SHARE_RATED < shape.fewest:
        raise ValueError(
            f"{items} items are too few, or {shape.fewest} to {shape.median} ratings a user are no range: a user rates "
            f"at most {LARGEST_SHARE_RATED:.0%} of the items, and {shape.fewest} at least"
        )
    random = np.random.default_rng(seed)
    titles = invent_titles(items, random)
    quality = shape.quality * random.standard_normal(items)
    features = random.standard_normal((items, shape.factors))
    tastes = random.standard_normal((users, shape.factors)) * (shape.taste / np.sqrt(shape.factors))
    offsets = shape.offset * random.standard_normal(users)

    counts = _draw_activity(users, items, shape, random)
    rater, item = _choose_items(counts, quality, features, tastes, random)
    liking = (tastes[rater] * features[item]).sum(axis=1)
    stars = offsets[rater] + quality[item] + liking + shape.noise * random.standard_normal(len(rater))
    return Ratings(
        users=rater,
        items=item,
        ratings=_round_to_mean(stars, shape.mean),
        timestamps=_draw_timestamps(rater, users, random),
        user_keys=tuple(str(number) for number in range(1, users + 1)),
        item_keys=tuple(str(number) for number in range(1, items + 1)),
        titles=titles,
        scale=(float(MINIMUM), float(MAXIMUM)),
    )


def _draw_activity(users: int, items: int, shape: Shape, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw how many items each user rates: `[users]`, log-normal above the minimum."""
    above = (shape.median - shape.fewest) * np.exp(ACTIVITY_SPREAD * random.standard_normal(users))
    counts: NDArray[np.int64] = np.minimum(shape.fewest + above, items * LARGEST_SHARE_RATED).astype(np.int64)
    return counts


def _choose_items(
    counts: NDArray[np.int64],
    quality: NDArray[np.float64],
    features: NDArray[np.float64],
    tastes: NDArray[np.float64],
    random: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose each user's items without repetition, by popularity and liking; user and item of every rating."""
    users, items = len(counts), len(quality)
    rank = random.permutation(items) / items
    draw = -POPULARITY_EXPONENT * np.log(rank + POPULARITY_OFFSET) + QUALITY_DRAW * quality
    chosen = []
    for start in range(0, users, USERS_AT_ONCE):
        block = slice(start, min(start + USERS_AT_ONCE, users))
        # The largest of log-weight + Gumbel noise: a weighted draw without repetition (Efraimidis, Spirakis 2006).
        keys = draw + LIKING_DRAW * tastes[block] @ features.T
        keys += random.gumbel(size=keys.shape)
        order = np.argsort(-keys, axis=1)
        chosen += [own[:count] for own, count in zip(order, counts[block], strict=True)]
    item = np.concatenate(chosen).astype(np.int64)
    rater = np.repeat(np.arange(users, dtype=np.int64), counts)
    # An item that nobody chose goes to somebody, so that every item is rated.
    left = np.flatnonzero(np.bincount(item, minlength=items) == 0)
    rater = np.concatenate([rater, random.integers(users, size=len(left))])
    item = np.concatenate([item, left])
    order = np.argsort(rater, kind="stable")
    return rater[order], item[order]


def _round_to_mean(stars: NDArray[np.float64], mean: float) -> NDArray[np.float32]:
    """Shift, round and clip to whole stars, with the shift that gives the mean."""
    low, high = MINIMUM - stars.max(), MAXIMUM - stars.min()
    for _ in range(30):
        middle = (low + high) / 2
        if np.clip(np.rint(stars + middle), MINIMUM, MAXIMUM).mean() < mean:
            low = middle
        else:
            high = middle
    rounded: NDArray[np.float32] = np.clip(np.rint(stars + high), MINIMUM, MAXIMUM).astype(np.float32)
    return rounded


def _draw_timestamps(rater: NDArray[np.int64], users: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw when each rating was given: ascending within each user, in sessions; `rater` is sorted."""
    starts = FIRST_SECOND + random.integers(SPAN_SECONDS, size=users)
    gaps = 1 + random.exponential(SECONDS_BETWEEN_RATINGS, size=len(rater))
    new_session = random.random(len(rater)) < SHARE_OF_NEW_SESSIONS
    gaps[new_session] += random.exponential(SECONDS_BETWEEN_SESSIONS, size=int(new_session.sum()))
    since_first = np.cumsum(gaps.astype(np.int64))
    first_of_user = np.searchsorted(rater, np.arange(users))
    return starts[rater] + since_first - since_first[first_of_user][rater]
