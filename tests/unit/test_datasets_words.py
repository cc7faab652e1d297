from itertools import pairwise

import numpy as np
import pytest

from fedrecon.datasets import Texts, WordVocabulary, generate_texts, most_frequent_words, sentences_of
from fedrecon.datasets.word_vocabulary import BEGIN, END, PADDING, bucket_of


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two. Three!  Four?", [["one", "two"], ["three"], ["four"]]),
        ("Pi is 3.5, or so", [["pi", "is", "3", "5", "or", "so"]]),
        ('He said "no." Then (yes.) left', [["he", "said", "no"], ["then", "yes"], ["left"]]),
        ("first line\nsecond line", [["first", "line"], ["second", "line"]]),
        ("don't state-of-the-art 'quoted' -- dash", [["don't", "state-of-the-art", "quoted", "dash"]]),
        ("It\N{RIGHT SINGLE QUOTATION MARK}s snake_case", [["it's", "snake", "case"]]),
        ("see [this](https://a.example/b?c=d) and www.e.example now", [["see", "this", "and", "now"]]),
        ("cafe\u0301 = CAFÉ", [["café", "café"]]),
        ("the state $\\frac{1}{2}$ is $$x = y$$ here", [["the", "state", "is", "here"]]),
        ("from $5 to $10 or $5/$6", [["from", "5", "to", "10", "or", "5", "6"]]),
        ("... !", []),
    ],
)
def test_a_text_becomes_the_words_of_its_sentences(text: str, sentences: list[list[str]]) -> None:
    assert sentences_of(text) == sentences


def test_the_most_frequent_words_come_first_and_ties_by_their_letters() -> None:
    sentences = [["b", "a", "c"], ["c", "b", "c"], ["d"]]
    assert most_frequent_words(sentences, 3) == ("c", "b", "a")
    assert most_frequent_words(sentences, 9) == ("c", "b", "a", "d")


@pytest.mark.parametrize(("word", "bucket"), [("kettle", 470), ("zoë", 117), ("", 152)])
def test_buckets_are_known_answers(word: str, bucket: int) -> None:
    # Other languages must find the same: first 8 bytes of the SHA-256, big-endian, modulo the buckets.
    assert bucket_of(word, 500) == bucket


def test_ids_put_marks_first_then_words_then_buckets() -> None:
    vocabulary = WordVocabulary(("the", "tea"), 500)
    assert (PADDING, BEGIN, END) == (0, 1, 2)
    assert [vocabulary.token(word) for word in ("the", "tea", "kettle")] == [3, 4, 5 + 470]
    assert (vocabulary.first_bucket, len(vocabulary)) == (5, 505)
    assert WordVocabulary(("the",), 1).token("kettle") == 4


def test_every_word_and_the_end_is_predicted_exactly_once() -> None:
    vocabulary = WordVocabulary(tuple("abcdefgh"), 1)
    for words in range(12):
        sentence = list("abcdefghabcd")[:words]
        seen, following = vocabulary.encode(sentence, 5)
        assert seen.shape == following.shape
        assert seen.shape[1] == 5
        real = following != PADDING
        assert following[real].tolist() == [*map(vocabulary.token, sentence), END]
        assert seen[real].tolist() == [BEGIN, *map(vocabulary.token, sentence)]
        assert not seen[~real].any()


def test_many_sentences_keep_their_order_and_none_gives_no_rows() -> None:
    vocabulary = WordVocabulary(("a", "b"), 1)
    seen, following = vocabulary.encode_all([["a"], ["b", "a", "b"]], 3)
    assert seen.tolist() == [[1, 3, 0], [1, 4, 3], [4, 0, 0]]
    assert following.tolist() == [[3, 2, 0], [4, 3, 4], [2, 0, 0]]
    assert vocabulary.encode_all([], 3)[0].shape == (0, 3)


def test_a_vocabulary_without_words_or_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="each one once"):
        WordVocabulary(("a", "a"), 1)
    with pytest.raises(ValueError, match="each one once"):
        WordVocabulary((), 1)
    with pytest.raises(ValueError, match="at least 1 bucket"):
        WordVocabulary(("a",), 0)


def test_texts_of_other_lengths_or_unknown_users_are_refused() -> None:
    users = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"timestamps must be \[1\] int64"):
        Texts(("a",), users, np.zeros(2, np.int64), ("1",))
    with pytest.raises(ValueError, match="indices of their 1 keys"):
        Texts(("a",), users + 1, users, ("1",))


def test_generated_texts_are_the_same_for_a_seed_and_ordered_by_time() -> None:
    first, again, other = (generate_texts(users=4, seed=seed) for seed in (1, 1, 2))
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert first.texts_per_user().tolist() == [20] * 4
    for own in first.by_user():
        assert (np.diff(first.timestamps[own]) > 0).all()


def test_a_personal_word_tells_the_next_word_for_its_user_only() -> None:
    made = generate_texts(users=60, seed=3, texts_per_user=40)
    sentences = [[sentence for row in own for sentence in sentences_of(made.texts[row])] for own in made.by_user()]
    common = set(most_frequent_words((each for user in sentences for each in user), 60))
    after: dict[str, set[str]] = {}
    for user in sentences:
        own_after: dict[str, set[str]] = {}
        for sentence in user:
            for word, following in pairwise(sentence):
                if word not in common:
                    own_after.setdefault(word, set()).add(following)
        assert all(len(words) == 1 for words in own_after.values())
        for word, words in own_after.items():
            after.setdefault(word, set()).update(words)
    assert max(map(len, after.values())) > 1
