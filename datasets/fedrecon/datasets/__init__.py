"""Ratings from public formats or made up, and the splits that training and evaluation share; numpy only.

Example:
    >>> from fedrecon.datasets import generate, split_users
    >>> ratings = generate(users=100, items=200, seed=1)
    >>> len(split_users(len(ratings.user_keys)).test)
    10
"""

from fedrecon.datasets.errors import MalformedFile, UnknownDataset
from fedrecon.datasets.generation import Shape, generate
from fedrecon.datasets.loading import load
from fedrecon.datasets.named_columns import Names, load_csv
from fedrecon.datasets.ratings import Ratings
from fedrecon.datasets.splits import UserSplit, cap_ratings, split_users
from fedrecon.datasets.writing import write_csv

__all__ = [
    "MalformedFile",
    "Names",
    "Ratings",
    "Shape",
    "UnknownDataset",
    "UserSplit",
    "cap_ratings",
    "generate",
    "load",
    "load_csv",
    "split_users",
    "write_csv",
]
