"""Made-up texts of many users, each with words of their own, so that personal words can be learned without real data.

The language is a chain: after a common word comes one of a few others, the same for all users. Now and then a user
writes one of their personal words instead; what follows it depends on its role, and each user gives each personal word
a role by lot. So a personal word predicts the next word well for someone who has read this user, and not at all for
someone who has read only others: what local embeddings of words out of vocabulary are for.

The same arguments give the same texts with the same version of numpy.
"""

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets.texts import Texts

COMMON_WORDS, SUCCESSORS, ROLES = 60, 4, 6
# All personal words there are; each user has a few of them, so that users share words but not what they mean.
ALL_PERSONAL_WORDS, PERSONAL_WORDS = 400, 5
PERSONAL_SHARE = 0.25
SENTENCES, WORDS = (1, 4), (4, 12)
FIRST_MILLISECOND, MILLISECONDS_BETWEEN_TEXTS = 1_500_000_000_000, 86_400_000
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def generate_texts(users: int, seed: int, texts_per_user: int = 20) -> Texts:
    """Generate texts.

    Args:
        users: How many users.
        seed: Of all chance.
        texts_per_user: Texts of each user, of one to three sentences of 4 to 11 words.

    Returns:
        The texts, user by user, each user's by time; keys are 1, 2, 3, ...

    Raises:
        ValueError: There is no user or no text.

    Example:
        >>> made = generate_texts(users=2, seed=1, texts_per_user=3)
        >>> len(made), made.user_keys
        (6, ('1', '2'))
    """
    if users < 1 or texts_per_user < 1:
        raise ValueError(f"{users} users with {texts_per_user} texts each write nothing: ask for at least 1 of both")
    random = np.random.default_rng(seed)
    words = _invent_words(COMMON_WORDS + ALL_PERSONAL_WORDS, random)
    after_common = random.integers(COMMON_WORDS, size=(COMMON_WORDS, SUCCESSORS))
    after_role = random.integers(COMMON_WORDS, size=ROLES)
    texts: list[str] = []
    for _ in range(users):
        own = COMMON_WORDS + random.choice(ALL_PERSONAL_WORDS, size=PERSONAL_WORDS, replace=False)
        role_of = dict(zip(own.tolist(), random.integers(ROLES, size=PERSONAL_WORDS).tolist(), strict=True))
        for _ in range(texts_per_user):
            sentences = [
                " ".join(words[place] for place in _write_sentence(own, role_of, after_common, after_role, random))
                for _ in range(random.integers(*SENTENCES))
            ]
            texts.append(" ".join(f"{sentence.capitalize()}." for sentence in sentences))
    gaps = random.integers(1, MILLISECONDS_BETWEEN_TEXTS, size=(users, texts_per_user))
    return Texts(
        texts=tuple(texts),
        users=np.repeat(np.arange(users, dtype=np.int64), texts_per_user),
        timestamps=(FIRST_MILLISECOND + np.cumsum(gaps, axis=1)).reshape(-1).astype(np.int64),
        user_keys=tuple(str(number) for number in range(1, users + 1)),
    )


def _write_sentence(
    own: NDArray[np.int64],
    role_of: dict[int, int],
    after_common: NDArray[np.int64],
    after_role: NDArray[np.int64],
    random: np.random.Generator,
) -> list[int]:
    """Walk the chain from a common word: the numbers of the words."""
    sentence = [int(random.integers(COMMON_WORDS))]
    for _ in range(int(random.integers(*WORDS)) - 1):
        last = sentence[-1]
        if last in role_of:
            sentence.append(int(after_role[role_of[last]]))
        elif random.random() < PERSONAL_SHARE:
            sentence.append(int(random.choice(own)))
        else:
            sentence.append(int(random.choice(after_common[last])))
    return sentence


def _invent_words(count: int, random: np.random.Generator) -> list[str]:
    """Invent words of two or three syllables, each one once."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = random.choice(SYLLABLES, size=int(random.integers(2, 4)))
        found["".join(syllables)] = None
    return list(found)
