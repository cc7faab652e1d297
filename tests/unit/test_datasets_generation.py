import re

import numpy as np
import pytest

from fedrecon.datasets import Ratings, Shape, generate


@pytest.fixture(scope="module")
def made() -> Ratings:
    return generate(users=1000, items=500, seed=1)


def test_the_same_seed_gives_the_same_ratings(made: Ratings) -> None:
    again, other = generate(users=1000, items=500, seed=1), generate(users=1000, items=500, seed=2)
    assert np.array_equal(made.ratings, again.ratings)
    assert np.array_equal(made.items, again.items)
    assert np.array_equal(made.timestamps, again.timestamps)
    assert made.titles == again.titles
    assert not np.array_equal(made.ratings[:1000], other.ratings[:1000])


def test_ratings_are_whole_stars_with_the_mean_of_movielens(made: Ratings) -> None:
    assert np.unique(made.ratings).tolist() == [1, 2, 3, 4, 5]
    assert made.ratings.mean() == pytest.approx(3.6, abs=0.01)
    assert 0.9 < made.ratings.std() < 1.2


def test_nobody_rates_an_item_twice_and_every_item_is_rated(made: Ratings) -> None:
    assert len(set(zip(made.users.tolist(), made.items.tolist(), strict=True))) == len(made)
    assert made.ratings_per_item().min() >= 1
    assert made.ratings_per_user().min() >= 20


def test_activity_is_skewed(made: Ratings) -> None:
    per_user = made.ratings_per_user()
    assert np.median(per_user) == pytest.approx(80, rel=0.1)
    assert per_user.mean() > 1.2 * np.median(per_user)


def test_popularity_is_as_concentrated_as_in_movielens() -> None:
    # MovieLens 1M: the most popular tenth of the items holds 44.4% of the ratings, half of them 94%.
    made = generate(users=1500, items=3000, seed=1)
    per_item = np.sort(made.ratings_per_item())[::-1]
    assert per_item[:300].sum() / len(made) == pytest.approx(0.444, abs=0.06)


def test_each_users_ratings_are_in_the_order_of_time(made: Ratings) -> None:
    for own in made.by_user():
        assert (np.diff(made.timestamps[own]) > 0).all()


def test_titles_are_unique_and_carry_a_year() -> None:
    titles = generate(users=1, items=20_000, seed=1, shape=Shape(fewest=1, median=1)).titles
    assert len(set(titles)) == 20_000
    assert all(re.fullmatch(r"\w.* \(\d{4}\)", title) for title in titles)


def test_what_was_planted_can_be_found(made: Ratings) -> None:
    """Known items and taste must explain much more than means: else no model could be told from none."""
    random = np.random.default_rng(0)
    held_out = random.random(len(made)) < 0.2
    train, test = made.select(~held_out), made.select(held_out)
    users, items = len(made.user_keys), len(made.item_keys)

    def error(predicted: np.ndarray) -> float:
        return float(np.sqrt(np.mean((predicted - test.ratings) ** 2)))

    mean = train.ratings.mean()
    item_offset = np.bincount(train.items, train.ratings - mean, items) / (train.ratings_per_item() + 5)
    popularity = error(mean + item_offset[test.items])
    # Alternating ridge regression on [1, factors] of either side.
    left, right = random.normal(0, 0.1, (users, 6)), random.normal(0, 0.1, (items, 6))
    left[:, 0] = 1
    right[:, 1] = 1
    target = np.zeros((users, items))
    seen = np.zeros((users, items))
    target[train.users, train.items] = train.ratings - mean
    seen[train.users, train.items] = 1
    for _ in range(8):
        for user in range(users):
            rows = right[seen[user] > 0]
            own = target[user, seen[user] > 0] - rows[:, 0]
            left[user, 1:] = np.linalg.solve(rows[:, 1:].T @ rows[:, 1:] + 4 * np.eye(5), rows[:, 1:].T @ own)
        for item in range(items):
            rows = left[seen[:, item] > 0]
            free = [0, 2, 3, 4, 5]
            own = target[seen[:, item] > 0, item] - rows[:, 1]
            right[item, free] = np.linalg.solve(rows[:, free].T @ rows[:, free] + 4 * np.eye(5), rows[:, free].T @ own)
    factorised = error(mean + (left[test.users] * right[test.items]).sum(axis=1))
    assert factorised < popularity - 0.1


@pytest.mark.parametrize(
    ("users", "items", "shape", "reason"),
    [
        (0, 100, Shape(), "0 users"),
        (5, 30, Shape(), "30 items are too few"),
        (5, 100, Shape(fewest=30, median=20), "no range"),
    ],
)
def test_what_cannot_be_made_is_refused(users: int, items: int, shape: Shape, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        generate(users=users, items=items, seed=1, shape=shape)
