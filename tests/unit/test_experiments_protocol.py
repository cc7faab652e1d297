"""The protocol cannot be gamed: choices first, test users once, halves apart."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from fedrecon.datasets import generate, split_users
from fedrecon.learning import experiments
from fedrecon.learning.experiments.protocol import (
    CHOICES_FILE,
    SPLIT_FILE,
    Choice,
    Client,
    Clients,
    Protocol,
    ProtocolError,
    digest_of,
    open_protocol,
    support_and_query,
)

RATINGS = generate(users=60, items=700, seed=3)
PARAMETERS = {"item_vectors": np.ones((3, 2), dtype=np.float32)}
CHOICE = Choice("best", 0, {"rounds": 10}, {"rmse": 0.9}, digest_of(PARAMETERS))


def pairs(client: Client) -> set[tuple[int, float]]:
    return set(zip(client["item"].tolist(), client["rating"].tolist(), strict=True))


def pairs_of_user(user: int) -> set[tuple[int, float]]:
    own = RATINGS.by_user()[user]
    return set(zip(RATINGS.items[own].tolist(), RATINGS.ratings[own].tolist(), strict=True))


def ratings_in(clients: Clients) -> int:
    return sum(len(client["item"]) for client in clients)


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    return open_protocol(RATINGS, tmp_path / "out")


def test_the_test_users_are_not_read_before_a_choice(protocol: Protocol) -> None:
    with pytest.raises(ProtocolError, match="after a choice"):
        protocol.test([])
    assert not (protocol.folder / CHOICES_FILE).exists()


def test_the_test_users_are_read_once(protocol: Protocol) -> None:
    protocol.test([CHOICE])
    with pytest.raises(ProtocolError, match="read already"):
        protocol.test([CHOICE])


def test_another_run_does_not_read_a_folders_test_users_again(protocol: Protocol) -> None:
    twin = open_protocol(RATINGS, protocol.folder)
    protocol.test([CHOICE])
    with pytest.raises(ProtocolError, match="read already"):
        twin.test([CHOICE])
    with pytest.raises(ProtocolError, match="read already"):
        open_protocol(RATINGS, protocol.folder)


def test_the_choice_is_written_before_the_test_users_are_read(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("fedrecon.learning.experiments.protocol._client", fail)
    with pytest.raises(InterruptedError):
        protocol.test([CHOICE])
    written = json.loads((protocol.folder / CHOICES_FILE).read_text())["choices"]
    assert written == [
        {
            "row": "best",
            "seed": 0,
            "configuration": {"rounds": 10},
            "validation": {"rmse": 0.9},
            "parameters": digest_of(PARAMETERS),
        }
    ]


@pytest.mark.parametrize("validation", [{}, {"rmse": float("nan")}, {"rmse": 0.9, "accuracy": float("inf")}])
def test_a_choice_without_a_figure_on_validation_is_refused(validation: dict[str, float]) -> None:
    with pytest.raises(ProtocolError, match="not chosen on validation"):
        Choice("best", 0, {}, validation, digest_of(PARAMETERS))


def test_two_choices_for_one_row_are_refused(protocol: Protocol) -> None:
    with pytest.raises(ProtocolError, match="chosen twice"):
        protocol.test([CHOICE, CHOICE])


def test_parameters_that_changed_after_the_choice_are_refused() -> None:
    CHOICE.require({"item_vectors": np.ones((3, 2), dtype=np.float32)})
    for other in (np.zeros((3, 2), np.float32), np.ones((2, 3), np.float32), np.ones((3, 2), np.float64)):
        with pytest.raises(ProtocolError, match="changed"):
            CHOICE.require({"item_vectors": other})
    with pytest.raises(ProtocolError, match="changed"):
        CHOICE.require({"user_vectors": PARAMETERS["item_vectors"]})


def test_nothing_open_holds_a_test_users_ratings(protocol: Protocol) -> None:
    parts = split_users(60)
    assert len(protocol.train) == len(protocol.seen.train) == 48
    for part, clients in (("train", protocol.train), ("validation", protocol.validation)):
        for user, client in zip(getattr(parts, part).tolist(), clients, strict=True):
            assert pairs(client) <= pairs_of_user(user)
    for user, old, middle in zip(parts.train.tolist(), protocol.seen.train, protocol.seen.validation, strict=True):
        assert pairs(old) | pairs(middle) <= pairs_of_user(user)
    test = protocol.test([CHOICE])
    for user, client in zip(parts.test.tolist(), test.unseen, strict=True):
        assert pairs(client) <= pairs_of_user(user)


def test_at_most_300_ratings_a_user_are_kept_everywhere(protocol: Protocol) -> None:
    test = protocol.test([CHOICE])
    counts = RATINGS.ratings_per_user()
    assert counts.max() > 300
    parts = split_users(60)
    for part, clients in (("train", protocol.train), ("validation", protocol.validation), ("test", test.unseen)):
        kept = [len(client["item"]) for client in clients]
        assert kept == np.minimum(counts[getattr(parts, part)], 300).tolist()
    assert ratings_in(protocol.seen.train) + ratings_in(protocol.seen.validation) + ratings_in(test.seen) == ratings_in(
        protocol.train
    )


def test_seen_users_are_cut_by_time_and_their_newest_tenth_is_closed(protocol: Protocol) -> None:
    parts = split_users(60)
    seconds = {
        (user, item): second
        for user, item, second in zip(
            RATINGS.users.tolist(), RATINGS.items.tolist(), RATINGS.timestamps.tolist(), strict=True
        )
    }
    test = protocol.test([CHOICE])
    for number, user in enumerate(parts.train.tolist()):
        cuts = [protocol.seen.train[number], protocol.seen.validation[number], test.seen[number]]
        together = set().union(*(pairs(cut) for cut in cuts))
        assert sum(len(cut["item"]) for cut in cuts) == len(together)
        assert together == pairs(protocol.train[number])
        times = [seconds[user, item] for cut in cuts for item in cut["item"].tolist()]
        assert times == sorted(times)


@pytest.mark.parametrize("examples", [0, 1, 4, 5, 6, 20, 23, 299, 300])
def test_support_and_query_are_alternate_batches_of_5(examples: int) -> None:
    support, query = support_and_query(examples)
    assert [position for position in range(examples) if position // 5 % 2 == 0] == support.tolist()
    assert sorted([*support.tolist(), *query.tolist()]) == list(range(examples))


def test_the_split_is_a_file(protocol: Protocol) -> None:
    written = json.loads((protocol.folder / SPLIT_FILE).read_text())
    assert "RandomState(42)" in written["generator"]
    parts = split_users(60)
    for part in ("train", "validation", "test"):
        assert written[part] == [RATINGS.user_keys[user] for user in getattr(parts, part)]


def test_the_split_of_other_data_is_not_overwritten(protocol: Protocol) -> None:
    with pytest.raises(ProtocolError, match="other data"):
        open_protocol(generate(users=50, items=60, seed=1), protocol.folder)


def test_only_the_protocols_split_users_in_experiments() -> None:
    """An experiment that split users itself could train on test users unseen by the tests above."""
    protocols = {"protocol.py", "next_word_text.py"}
    modules = [path for place in experiments.__path__ for path in Path(place).glob("*.py")]
    assert len(modules) > 1
    for path in modules:
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    names.add(name)
        forbidden = names & {"split_users", "UserSplit", "_ratings", "_test"}
        assert not forbidden or path.name in protocols, f"{path.name} uses {forbidden}"
