"""Ratings in memory: who rated what, how, and when, as four parallel arrays.

Rules: one row per rating; rows keep the order of their source; users and items are indices into tuples of keys, and
keys are what the source calls them. The arrays are read-only: a selection is a new value.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

type_of_column = {"users": np.int64, "items": np.int64, "ratings": np.float32, "timestamps": np.int64}


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """Ratings of items by users.

    Attributes:
        users: `[ratings] int64`, index into `user_keys`.
        items: `[ratings] int64`, index into `item_keys`.
        ratings: `[ratings] float32`, within `scale`.
        timestamps: `[ratings] int64`, Unix seconds; 0 where the source has none.
        user_keys: What the source calls each user.
        item_keys: What the source calls each item.
        titles: Title of each item, as many as `item_keys`; empty where the source has none.
        scale: Smallest and largest rating that the source allows.

    Raises:
        ValueError: The arrays differ in length or type, an index points past its keys, a rating lies outside the
            scale, or there are titles but not one per item.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    user_keys: tuple[str, ...]
    item_keys: tuple[str, ...]
    titles: tuple[str, ...]
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        count = len(self.users)
        for name, expected in type_of_column.items():
            column = getattr(self, name)
            if column.shape != (count,) or column.dtype != expected:
                raise ValueError(
                    f"{name} must be [{count}] {np.dtype(expected)}, as long as users; "
                    f"it is {list(column.shape)} {column.dtype}"
                )
            frozen = column.view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)
        for name, keys in (("users", self.user_keys), ("items", self.item_keys)):
            column = getattr(self, name)
            if count and (column.min() < 0 or column.max() >= len(keys)):
                raise ValueError(f"{name} must be indices of its {len(keys)} keys; {column.max()} is not one")
        minimum, maximum = self.scale
        if count and not (self.ratings.min() >= minimum and self.ratings.max() <= maximum):
            raise ValueError(f"ratings must lie within the scale {minimum:g} to {maximum:g}")
        if self.titles and len(self.titles) != len(self.item_keys):
            raise ValueError(f"{len(self.titles)} titles for {len(self.item_keys)} items: give one per item or none")

    def __len__(self) -> int:
        return len(self.users)

    def by_user(self) -> tuple[NDArray[np.int64], ...]:
        """Give every user's positions.

        Returns:
            For each user `[ratings of the user] int64`, positions in the arrays, in the order of the source; empty
            for a user without ratings.

        Example:
            >>> from fedrecon.datasets import generate
            >>> ratings = generate(users=30, items=50, seed=1)
            >>> [set(ratings.users[own]) for own in ratings.by_user()[:2]] == [{0}, {1}]
            True
        """
        order = np.argsort(self.users, kind="stable")
        ends = np.cumsum(self.ratings_per_user())
        return tuple(order[start:end] for start, end in pairwise([0, *ends.tolist()]))

    def ratings_per_user(self) -> NDArray[np.int64]:
        """Count the ratings of every user: `[users] int64`."""
        return np.bincount(self.users, minlength=len(self.user_keys)).astype(np.int64)

    def ratings_per_item(self) -> NDArray[np.int64]:
        """Count the ratings of every item: `[items] int64`."""
        return np.bincount(self.items, minlength=len(self.item_keys)).astype(np.int64)

    def select(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> "Ratings":
        """Keep some of the ratings; indices keep their meaning, since the keys stay.

        Args:
            positions: `[kept] int64` positions, in the order wanted, or `[ratings] bool`.

        Returns:
            The ratings at those positions.
        """
        return Ratings(
            users=self.users[positions],
            items=self.items[positions],
            ratings=self.ratings[positions],
            timestamps=self.timestamps[positions],
            user_keys=self.user_keys,
            item_keys=self.item_keys,
            titles=self.titles,
            scale=self.scale,
        )
