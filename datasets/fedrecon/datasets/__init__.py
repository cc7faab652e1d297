"""Ratings and texts from public formats or made up, and the splits that training and evaluation share; numpy only.

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
from fedrecon.datasets.stack_exchange import load_stack_exchange
from fedrecon.datasets.text_generation import generate_texts
from fedrecon.datasets.texts import Texts
from fedrecon.datasets.word_vocabulary import WordVocabulary, most_frequent_words
from fedrecon.datasets.words import sentences_of
from fedrecon.datasets.writing import write_csv

__all__ = [
    "MalformedFile",
    "Names",
    "Ratings",
    "Shape",
    "Texts",
    "UnknownDataset",
    "UserSplit",
    "WordVocabulary",
    "cap_ratings",
    "generate",
    "generate_texts",
    "load",
    "load_csv",
    "load_stack_exchange",
    "most_frequent_words",
    "sentences_of",
    "split_users",
    "write_csv",
]
