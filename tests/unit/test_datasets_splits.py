import numpy as np
import pytest

from fedrecon.datasets import cap_ratings, split_users


def test_the_split_of_movielens_1m_is_the_papers() -> None:
    parts = split_users(6040)
    everyone = list(range(6040))
    np.random.RandomState(42).shuffle(everyone)
    assert parts.train.tolist() == everyone[:4832]
    assert parts.validation.tolist() == everyone[4832:5436]
    assert parts.test.tolist() == everyone[5436:]
    # Written down, so that another numpy cannot move it unseen.
    assert parts.train[:5].tolist() == [5529, 710, 4923, 2153, 1272]
    assert parts.test[-3:].tolist() == [5226, 5390, 860]


@pytest.mark.parametrize("users", [0, 1, 9, 10, 101])
def test_every_user_is_in_exactly_one_part(users: int) -> None:
    parts = split_users(users)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together.tolist()) == list(range(users))


def test_the_cap_keeps_a_fixed_shuffle_of_each_user() -> None:
    kept = cap_ratings(1000, user=5)
    assert len(kept) == 300
    assert len(set(kept.tolist())) == 300
    assert kept.max() > 900
    assert np.array_equal(kept, cap_ratings(1000, user=5))
    assert not np.array_equal(kept, cap_ratings(1000, user=6))
    assert not np.array_equal(kept, cap_ratings(1000, user=5, seed=43))
    assert cap_ratings(6, user=5).tolist() == [1, 0, 4, 5, 3, 2]


def test_few_ratings_are_all_kept() -> None:
    assert sorted(cap_ratings(20, user=1).tolist()) == list(range(20))
    assert len(cap_ratings(0, user=1)) == 0
