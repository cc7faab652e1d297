"""The fixed protocol of next-word experiments: who trains, who is chosen on, and who is read once at the end.

Users with at least five texts are cut 80/10/10 by a written generator and seed; the split lies in the output folder as
`split.json`. The vocabulary is made of the training users' words alone. A user's sentences are in order of time, and
the older half of them is the support set, the newer half the query set.

Training and validation users are open. The test users are closed until the choices are frozen (`protocol.freeze`), and
are handed out once.

Source: Singhal et al. 2021, Federated Reconstruction, section 5.1.2 and appendix C.2 (arXiv 2102.03448).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedrecon.datasets import Texts, WordVocabulary, most_frequent_words, sentences_of, split_users
from fedrecon.datasets.splits import SPLIT_SEED
from fedrecon.learning.experiments.protocol import Choice, freeze, write_split
from fedrecon.learning.models.next_word import NEXT, TOKENS
from fedrecon.learning.simulation import ClientExamples

FEWEST_TEXTS = 5

Sentences = tuple[tuple[str, ...], ...]
"""One user's sentences, oldest first: the words of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Writers:
    """The users of one experiment, by what they wrote.

    Attributes:
        folder: of the output; `split.json` is in it.
        train: users who may take part in rounds.
        validation: users for choices.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fedrecon.datasets import generate_texts
        >>> from fedrecon.learning.experiments.protocol import digest_of
        >>> folder = TemporaryDirectory()
        >>> writers = open_writers(generate_texts(users=20, seed=1), Path(folder.name))
        >>> len(writers.train), len(writers.validation)
        (16, 2)
        >>> chosen = Choice("frequency", 0, {"words": 60}, {"accuracy": 10.0}, digest_of({}))
        >>> len(writers.test([chosen]))
        2
        >>> folder.cleanup()
    """

    folder: Path
    train: tuple[Sentences, ...]
    validation: tuple[Sentences, ...]
    _test: tuple[Sentences, ...] = field(repr=False)

    def vocabulary(self, words: int, oov_buckets: int) -> WordVocabulary:
        """Give the vocabulary of the training users' most frequent words.

        Args:
            words: how many; fewer if they know fewer.
            oov_buckets: buckets of all other words.
        """
        every = (sentence for user in self.train for sentence in user)
        return WordVocabulary(most_frequent_words(every, words), oov_buckets)

    def test(self, choices: Sequence[Choice]) -> tuple[Sentences, ...]:
        """Freeze the choices, then read the test users: once.

        Args:
            choices: every row and seed that will be judged.

        Raises:
            ProtocolError: there is no choice, a row and seed is chosen twice, or the folder's test users were read.
        """
        freeze(choices, self.folder)
        return self._test


def open_writers(texts: Texts, folder: Path) -> Writers:
    """Split the users, write the split, and open all but the test users.

    Args:
        texts: the whole dataset; users with fewer than five texts are left out.
        folder: of the output; made if it is not there.

    Raises:
        ProtocolError: the folder's test users were read already, or its split is another one.
    """
    active = texts.of_active_users(FEWEST_TEXTS)
    parts = split_users(len(active.user_keys))
    write_split(
        {
            "generator": f"numpy.random.RandomState({SPLIT_SEED}).shuffle of all users, cut 80/10/10",
            "users": f"those with at least {FEWEST_TEXTS} texts",
            "support_and_query": "the older half of a user's examples supports, the newer half is queried",
            "texts": len(active),
            **{
                name: [active.user_keys[user] for user in getattr(parts, name)]
                for name in ("train", "validation", "test")
            },
        },
        folder,
    )
    by_user = [
        tuple(tuple(sentence) for row in own for sentence in sentences_of(active.texts[row]))
        for own in active.by_user()
    ]
    return Writers(
        folder=folder,
        train=tuple(by_user[user] for user in parts.train),
        validation=tuple(by_user[user] for user in parts.validation),
        _test=tuple(by_user[user] for user in parts.test),
    )


def examples_of(users: Sequence[Sentences], vocabulary: WordVocabulary, length: int, most: int) -> ClientExamples:
    """Give users' examples as the simulation takes them.

    Args:
        users: what they wrote.
        vocabulary: numbers the words.
        length: positions of an example.
        most: examples of a user, the newest.
    """
    clients = []
    for sentences in users:
        seen, following = vocabulary.encode_all(sentences, length)
        clients.append({TOKENS: seen[-most:], NEXT: following[-most:]})
    return ClientExamples.from_clients(clients)
