from dataclasses import replace

import numpy as np
import pytest

from fedrecon.datasets import Ratings


def small() -> Ratings:
    return Ratings(
        users=np.array([2, 0, 2, 0]),
        items=np.array([0, 0, 1, 1]),
        ratings=np.array([1, 2, 3, 5], dtype=np.float32),
        timestamps=np.zeros(4, dtype=np.int64),
        user_keys=("a", "b", "c"),
        item_keys=("x", "y"),
        titles=(),
        scale=(1, 5),
    )


def test_every_users_positions_are_in_the_order_of_the_source() -> None:
    assert [own.tolist() for own in small().by_user()] == [[1, 3], [], [0, 2]]
    assert small().ratings_per_user().tolist() == [2, 0, 2]
    assert small().ratings_per_item().tolist() == [2, 2]


def test_a_selection_keeps_the_meaning_of_indices() -> None:
    kept = small().select(np.array([3, 0]))
    assert kept.users.tolist() == [0, 2]
    assert kept.ratings.tolist() == [5, 1]
    assert kept.user_keys == ("a", "b", "c")
    assert small().select(small().ratings > 2).items.tolist() == [1, 1]


def test_ratings_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        small().ratings[0] = 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"users": np.array([0, 1])}, r"items must be \[2\] int64"),
        ({"ratings": np.ones(4)}, r"ratings must be \[4\] float32"),
        ({"users": np.array([0, 1, 2, 3])}, "users must be indices of its 3 keys; 3"),
        ({"scale": (1, 4)}, "ratings must lie within the scale 1 to 4"),
        ({"titles": ("one",)}, "1 titles for 2 items"),
    ],
)
def test_ratings_that_do_not_fit_together_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(small(), **change)  # type: ignore[arg-type]
