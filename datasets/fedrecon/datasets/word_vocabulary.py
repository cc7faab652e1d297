"""Words as token ids: the most frequent words, and buckets for all others.

    id                      meaning
    0                       padding
    1                       begin of a sentence
    2                       end of a sentence
    3 .. 2 + V              the V most frequent words, the most frequent first
    3 + V .. 2 + V + B      B buckets of words out of vocabulary (OOV)

Ids below 3 + V are rows that all users share; a bucket means another word for every user. The bucket of a word is
the first 8 bytes of the SHA-256 of its UTF-8 bytes, read as a big-endian number, modulo B, so that every device and
language finds the same one.

Source: Singhal et al. 2021, Federated Reconstruction, section 5.1.2 and appendix C.2 (arXiv 2102.03448).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PADDING, BEGIN, END = 0, 1, 2
MARKS = 3
HASH_BYTES = 8


def most_frequent_words(sentences: Iterable[Sequence[str]], count: int) -> tuple[str, ...]:
    """Find the most frequent words.

    Args:
        sentences: Of the training users only: what test users write must not choose the vocabulary.
        count: How many words are wanted.

    Returns:
        At most that many, the most frequent first, words of equal frequency in the order of their letters.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    order = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(order[:count])


def bucket_of(word: str, buckets: int) -> int:
    """Give the bucket of a word out of vocabulary, from 0.

    Args:
        word: As the tokenizer gives it.
        buckets: How many there are, at least 1.

    Example:
        >>> bucket_of("kettle", 500), bucket_of("kettle", 1)
        (470, 0)
    """
    digest = hashlib.sha256(word.encode()).digest()
    return int.from_bytes(digest[:HASH_BYTES], "big") % buckets


@dataclass(frozen=True, slots=True, eq=False)
class WordVocabulary:
    """Words and buckets with their ids.

    Attributes:
        words: The words that have an id of their own, the most frequent first.
        oov_buckets: How many buckets the others share, at least 1.

    Raises:
        ValueError: There is no word or no bucket, or a word is there twice.
    """

    words: tuple[str, ...]
    oov_buckets: int
    _ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ids = {word: MARKS + place for place, word in enumerate(self.words)}
        if not ids or len(ids) != len(self.words):
            raise ValueError(f"a vocabulary needs words, each one once: {len(self.words)} given, {len(ids)} different")
        if self.oov_buckets < 1:
            raise ValueError(f"words out of vocabulary need at least 1 bucket, not {self.oov_buckets}")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        """Count all ids: marks, words and buckets."""
        return self.first_bucket + self.oov_buckets

    @property
    def first_bucket(self) -> int:
        """The id of the first bucket: as many rows as all users share."""
        return MARKS + len(self.words)

    def token(self, word: str) -> int:
        """Give the id of a word."""
        found = self._ids.get(word)
        return self.first_bucket + bucket_of(word, self.oov_buckets) if found is None else found

    def encode(self, sentence: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make the examples of one sentence: what is seen, and what comes next.

        The sentence, between its marks, is cut into pieces of `length` steps; each step predicts the next token, so
        every word is predicted exactly once. The last piece is filled up with padding.

        Args:
            sentence: Its words.
            length: Steps in an example.

        Returns:
            Tokens seen and tokens that come next, each `[pieces, length] int64`.

        Example:
            >>> seen, following = WordVocabulary(("the", "tea"), 1).encode(["the", "tea", "cools"], 3)
            >>> seen.tolist(), following.tolist()
            ([[1, 3, 4], [5, 0, 0]], [[3, 4, 5], [2, 0, 0]])
        """
        tokens = [BEGIN, *map(self.token, sentence), END]
        steps = len(tokens) - 1
        padded = -(-steps // length) * length
        seen, following = np.full((2, padded), PADDING, dtype=np.int64)
        seen[:steps] = tokens[:-1]
        following[:steps] = tokens[1:]
        return seen.reshape(-1, length), following.reshape(-1, length)

    def encode_all(
        self, sentences: Iterable[Sequence[str]], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make the examples of many sentences, in their order; none gives arrays of no rows.

        Args:
            sentences: Each one's words.
            length: Steps in an example.

        Returns:
            Tokens seen and tokens that come next, each `[examples, length] int64`.
        """
        empty = np.zeros((0, length), dtype=np.int64)
        pieces = [(empty, empty), *(self.encode(sentence, length) for sentence in sentences)]
        return np.concatenate([seen for seen, _ in pieces]), np.concatenate([following for _, following in pieces])
