"""Many users in one run: everybody's answer is their own, whoever else is in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fedrecon.inference.batching import MOST_TOGETHER, recommend_many, recommend_together
from fedrecon.inference.bundles import read_bundle
from fedrecon.inference.collecting import export_from_folder
from fedrecon.inference.gathering import Gathering
from fedrecon.inference.measures import Measures
from fedrecon.inference.model_threads import ModelThreads
from fedrecon.inference.recommending import (
    Asked,
    DivergedError,
    KeysOrNumbers,
    OpenRecommender,
    Ranking,
    UnusableExamplesError,
)
from fedrecon.inference.verifying import Exported, WrongRecommenderError, verify_together
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics
from fedrecon.wire.vocabularies import read_vocabulary

VECTORS = Path(__file__).parent.parent.parent / "protos" / "vectors"
CLOSE = 1e-6


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export_from_folder(VECTORS / "films-ridge", None)


@pytest.fixture(scope="module")
def films(exported: Exported) -> OpenRecommender:
    return OpenRecommender.open(exported.recommender, read_vocabulary(exported.items), exported.together)


def user(films: OpenRecommender, examples: int, seed: int, **more: int) -> Asked:
    random = np.random.default_rng(seed)
    rows = random.choice(len(films.items.keys), examples, replace=False)
    columns = {
        "item": KeysOrNumbers(keys=[films.items.keys[row] for row in rows]),
        "rating": KeysOrNumbers(numbers=random.uniform(1, 5, examples).tolist()),
    }
    return Asked(columns, 5, **more)  # type: ignore[arg-type]  # of any setting


def test_users_in_one_run_are_answered_as_if_alone(films: OpenRecommender) -> None:
    users = [user(films, examples, examples) for examples in (0, 1, 2, 5, 30, 3, 38)]
    together = recommend_together(films, users)
    for asked, found in zip(users, together, strict=True):
        alone = films.recommend(asked)
        assert isinstance(found, Ranking)
        assert found.rows.tolist() == alone.rows.tolist()
        np.testing.assert_allclose(found.scores, alone.scores, rtol=0, atol=CLOSE * float(np.abs(alone.scores).max()))


def test_everybody_gets_as_many_as_they_want_and_fewer_where_fewer_are_left(films: OpenRecommender) -> None:
    few, many = user(films, 3, 1), user(films, 38, 2)
    found = recommend_together(films, [few, Asked(many.columns, 40), Asked({}, 100)])
    assert [len(each.rows) for each in found if isinstance(each, Ranking)] == [5, 2, 38]


def test_who_is_refused_changes_nothing_for_the_others(films: OpenRecommender) -> None:
    wrong = Asked({"item": KeysOrNumbers(keys=["1"]), "rating": KeysOrNumbers(numbers=[float("nan")])}, 5)
    nobody = Asked(user(films, 2, 5).columns, 5, allowed_keys=["no such film"])
    users = [user(films, 4, 1), wrong, nobody, user(films, 9, 2), user(films, 2, 3, reasons=2), user(films, 1, 4)]
    found = recommend_together(films, users)
    refused = [each.reason for each in found if isinstance(each, UnusableExamplesError)]
    assert refused == ["NOT_FINITE", "NOTHING_ALLOWED"]
    for place in (0, 3, 4, 5):
        answer = found[place]
        assert isinstance(answer, Ranking)
        assert answer.rows.tolist() == films.recommend(users[place]).rows.tolist()
    explained = found[4]
    assert isinstance(explained, Ranking)
    assert len(explained.reasons) == len(explained.rows)


def test_a_user_who_diverges_is_told_alone(exported: Exported) -> None:
    items = read_vocabulary(exported.items)
    model = onnx.load_from_string(exported.together or b"")
    (offsets,) = [each for each in model.graph.initializer if each.name == "offsets"]
    wrong = numpy_helper.to_array(offsets).copy()
    wrong[0] = np.nan
    offsets.CopyFrom(numpy_helper.from_array(wrong, offsets.name))
    films = OpenRecommender.open(exported.recommender, items, model.SerializeToString())
    one = Asked({"item": KeysOrNumbers(keys=[items.keys[0]]), "rating": KeysOrNumbers(numbers=[3.0])}, 5)
    other = Asked({"item": KeysOrNumbers(keys=[items.keys[1]]), "rating": KeysOrNumbers(numbers=[3.0])}, 5)
    diverged, fine = recommend_together(films, [one, other])
    assert isinstance(diverged, DivergedError)
    assert isinstance(fine, Ranking)


def test_a_long_list_of_users_is_answered_in_order_and_taken_bit_by_bit(films: OpenRecommender) -> None:
    taken = 0

    def users() -> Iterator[Asked]:
        nonlocal taken
        for seed in range(3 * MOST_TOGETHER):
            taken += 1
            yield user(films, seed % 7, seed)

    answers = recommend_many(films, users())
    first = next(answers)
    assert taken == MOST_TOGETHER
    for seed, found in enumerate([first, *answers]):
        assert isinstance(found, Ranking)
        assert found.rows.tolist() == films.recommend(user(films, seed % 7, seed)).rows.tolist()


def test_a_graph_for_many_with_one_wrong_number_is_refused(exported: Exported) -> None:
    folder, items = VECTORS / "films-ridge", read_vocabulary(exported.items)
    bundle = read_bundle(
        (folder / "manifest.json").read_bytes(), lambda blob: (folder / "blobs" / blob.digest.hex()).read_bytes()
    )
    assert exported.together is not None
    verify_together(exported.together, exported.recommender, bundle, items)
    model = onnx.load_from_string(exported.together)
    (design,) = [each for each in model.graph.initializer if each.name == "design"]
    wrong = numpy_helper.to_array(design).copy()
    wrong[7, 1] += 1e-2
    design.CopyFrom(numpy_helper.from_array(wrong, design.name))
    with pytest.raises(WrongRecommenderError, match="with others"):
        verify_together(model.SerializeToString(), exported.recommender, bundle, items)


class Runs:
    """Work that can be held up, and what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, list[int]]] = []
        self.go_on = threading.Event()

    def __call__(self, shared: str, ones: Sequence[int]) -> list[int | Exception]:
        self.given.append((shared, list(ones)))
        assert self.go_on.wait(30)
        return [ValueError(str(one)) if one < 0 else 10 * one for one in ones]


def gathering(executor: ThreadPoolExecutor, runs: Runs, most: int = 100) -> Gathering[str, int, int]:
    threads = ModelThreads(executor, most, Measures(Metrics.create("inference")))
    return Gathering(threads, runs, together=3, runs=1)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whoever_comes_while_a_run_is_under_way_is_in_the_next() -> None:
    with ThreadPoolExecutor(1) as executor:
        runs, old, new = Runs(), "old version", "new version"
        gathered = gathering(executor, runs)
        calls = [asyncio.create_task(gathered.run(old, 1))]
        await settled()
        more = [(old, 2), (new, 3), (old, -4), (old, 5), (old, 6)]
        calls += [asyncio.create_task(gathered.run(*each)) for each in more]
        await settled()
        runs.go_on.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(each) for each in found] == ["10", "20", "30", "-4", "50", "60"]
    assert isinstance(found[3], ValueError)
    # One run for one version, at most three in it, the longest waiting first.
    assert runs.given == [(old, [1]), (old, [2, -4, 5]), (new, [3]), (old, [6])]


async def test_who_gives_up_waiting_is_not_computed_and_too_many_are_refused() -> None:
    with ThreadPoolExecutor(1) as executor:
        runs = Runs()
        gathered = gathering(executor, runs, most=3)
        calls = []
        for number in (1, 2, 3):
            calls.append(asyncio.create_task(gathered.run("one", number)))
            await settled()
        with pytest.raises(Refusal) as refused:
            await gathered.run("one", 4)
        calls[1].cancel()
        await settled()
        runs.go_on.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert refused.value.reason == "BUSY"
    assert isinstance(found[1], asyncio.CancelledError)
    assert [found[0], found[2]] == [10, 30]
    assert sorted(number for _, ones in runs.given for number in ones) == [1, 3]


async def test_who_calls_again_as_soon_as_they_are_answered_is_answered_again() -> None:
    with ThreadPoolExecutor(1) as executor:
        runs = Runs()
        runs.go_on.set()
        gathered = gathering(executor, runs)
        async with asyncio.timeout(30):
            assert [await gathered.run("one", number) for number in range(50)] == [10 * number for number in range(50)]


async def test_who_calls_in_the_breath_in_which_a_run_ends_is_answered() -> None:
    class Inline(ThreadPoolExecutor):
        """Ends its work before anybody can wait for it."""

        def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(function(*arguments, **named))
            return done

    runs = Runs()
    runs.go_on.set()
    gathered = gathering(Inline(1), runs)
    async with asyncio.timeout(30):
        assert [await gathered.run("one", number) for number in range(50)] == [10 * number for number in range(50)]
