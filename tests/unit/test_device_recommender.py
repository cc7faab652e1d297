"""Recommending with one ONNX file: no network, no plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecon.device_sdk import Device, ExampleStore
from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.device_sdk.recommender import Recommender
from fedrecon.wire.vocabularies import write_vocabulary
from support import device_bundle as bundle

TABLE = bundle.item_table()
COLUMNS = {"item": ["film-4", "film-1"], "rating": [5.0, 1.0]}
USER = 0.5 + 0.5 * (5 * TABLE[4] + 1 * TABLE[1])


@pytest.fixture(scope="module")
def made() -> tuple[bytes, bytes]:
    file, items = bundle.make_recommender(bundle.make_plan())
    return file, items


@pytest.fixture
def recommender(made: tuple[bytes, bytes]) -> Recommender:
    return Recommender(*made)


def expected(user: Any, left_out: tuple[int, ...], k: int) -> list[str]:
    ranked = [row for row in np.argsort(-(TABLE @ user), kind="stable") if row not in left_out]
    return [bundle.KEYS[row] for row in ranked[:k]]


def test_the_best_unseen_items_come_first(recommender: Recommender) -> None:
    found = recommender.recommend(COLUMNS, 3)
    assert [each.key for each in found] == expected(USER, (4, 1), 3)
    np.testing.assert_allclose(
        [each.score for each in found], sorted((TABLE @ USER)[[0, 2, 3, 5]])[::-1][:3], rtol=1e-5
    )
    assert found[0].title == found[0].key.title()


def test_seen_items_are_recommended_where_wanted(recommender: Recommender) -> None:
    assert [each.key for each in recommender.recommend(COLUMNS, 6, exclude_seen=False)] == expected(USER, (), 6)


def test_excluded_keys_are_left_out_also_when_unknown_or_repeated(recommender: Recommender) -> None:
    found = recommender.recommend(COLUMNS, 6, exclude=["film-5", "film-5", "film-99", "film-4"])
    assert [each.key for each in found] == expected(USER, (1, 4, 5), 6)


def test_a_new_user_is_served(recommender: Recommender) -> None:
    start = np.full(2, 0.5)
    assert [each.key for each in recommender.recommend({}, 2)] == expected(start, (), 2)
    assert recommender.reconstruct({})["user"].tolist() == [0.5, 0.5]


def test_unknown_keys_are_left_out_and_told(recommender: Recommender) -> None:
    columns = {"item": ["film-4", "film-77", "film-1"], "rating": [5.0, 5.0, 1.0]}
    assert recommender.unknown_keys(columns) == ("film-77",)
    assert recommender.recommend(columns, 3) == recommender.recommend(COLUMNS, 3)


def test_local_parameters_are_those_of_the_examples(recommender: Recommender) -> None:
    np.testing.assert_allclose(recommender.reconstruct(COLUMNS)["user"], USER, rtol=1e-5)


def test_less_than_one_recommendation_is_a_mistake(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        recommender.recommend(COLUMNS, 0)


def test_a_missing_field_is_named(recommender: Recommender) -> None:
    with pytest.raises(UnusablePlanError, match="needs the field 'rating'"):
        recommender.recommend({"item": ["film-4"]}, 1)


def test_items_of_another_export_are_refused(made: tuple[bytes, bytes]) -> None:
    with pytest.raises(UnusablePlanError, match="do not belong together"):
        Recommender(made[0], write_vocabulary("items", 2, bundle.KEYS))


def test_a_file_that_is_no_recommender_is_refused(made: tuple[bytes, bytes]) -> None:
    plan = bundle.make_plan()
    with pytest.raises(UnusablePlanError, match="has recommender format None"):
        Recommender(plan.blobs[plan.manifest.graphs[4].blob.digest], made[1])
    with pytest.raises(UnusablePlanError, match="cannot be loaded"):
        Recommender(b"no ONNX file", made[1])


def test_a_device_recommends_with_the_file_that_ships_with_the_app(tmp_path: Path, made: tuple[bytes, bytes]) -> None:
    (tmp_path / "films.onnx").write_bytes(made[0])
    (tmp_path / "films.items").write_bytes(made[1])
    examples = ExampleStore(":memory:")
    examples.extend({"item": key, "rating": rating, "when": 1} for key, rating in [("film-4", 5.0), ("film-1", 1.0)])
    device = Device("127.0.0.1:1", "films", examples, recommender=tmp_path / "films.onnx")
    assert [each.key for each in device.recommend(3)] == expected(USER, (4, 1), 3)
    np.testing.assert_allclose(device.reconstruct()["user"], USER, rtol=1e-5)
    assert len(device.receipt()) == 0
