"""Texts in memory: who wrote what, and when.

Rules: one row per text; rows keep the order of their source; users are indices into a tuple of keys. The arrays are
read-only: a selection is a new value.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts by users.

    Attributes:
        texts: What was written; a line break ends a sentence.
        users: `[texts] int64`, index into `user_keys`.
        timestamps: `[texts] int64`, Unix milliseconds.
        user_keys: What the source calls each user; of Stack Exchange `site/number`, since numbers are those of a site.

    Raises:
        ValueError: The columns differ in length or type, or a user has no key.
    """

    texts: tuple[str, ...]
    users: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    user_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.texts)
        for name in ("users", "timestamps"):
            column = getattr(self, name)
            if column.shape != (count,) or column.dtype != np.int64:
                raise ValueError(
                    f"{name} must be [{count}] int64, as long as texts; it is {list(column.shape)} {column.dtype}"
                )
            frozen = column.view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)
        if count and (self.users.min() < 0 or self.users.max() >= len(self.user_keys)):
            raise ValueError(
                f"users must be indices of their {len(self.user_keys)} keys; {self.users.max()} is not one"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def by_user(self) -> tuple[NDArray[np.int64], ...]:
        """Give every user's positions.

        Returns:
            For each user `[texts of the user] int64`, oldest first; those of one moment stay in the source's order.

        Example:
            >>> from fedrecon.datasets import generate_texts
            >>> made = generate_texts(users=3, seed=1)
            >>> [set(made.users[own].tolist()) for own in made.by_user()]
            [{0}, {1}, {2}]
        """
        order = np.lexsort((self.timestamps, self.users))
        ends = np.cumsum(self.texts_per_user())
        return tuple(order[start:end] for start, end in pairwise([0, *ends.tolist()]))

    def texts_per_user(self) -> NDArray[np.int64]:
        """Count the texts of every user: `[users] int64`."""
        return np.bincount(self.users, minlength=len(self.user_keys)).astype(np.int64)

    def of_active_users(self, fewest: int) -> "Texts":
        """Keep the texts of users who wrote at least so many; users are numbered anew, in their order.

        Args:
            fewest: Texts that a user must have.

        Returns:
            Their texts, in the order of the source.
        """
        kept = np.flatnonzero(self.texts_per_user() >= fewest)
        place = np.full(len(self.user_keys), -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        rows = np.flatnonzero(place[self.users] >= 0)
        return Texts(
            texts=tuple(self.texts[row] for row in rows),
            users=place[self.users[rows]],
            timestamps=self.timestamps[rows],
            user_keys=tuple(self.user_keys[user] for user in kept),
        )
