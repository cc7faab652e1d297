"""The example store: values are checked when they are added, order is that of time."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecon.device_sdk.errors import (
    DamagedExamplesError,
    InvalidExampleError,
    StorageFailedError,
    UnusablePlanError,
)
from fedrecon.device_sdk.example_fields import FieldKind
from fedrecon.device_sdk.examples import ExampleStore
from fedrecon.device_sdk.testing import toy_plan

DAY = 86_400.0
FIELDS: dict[str, FieldKind] = {"item": str, "rating": (0.5, 5.0)}


@pytest.fixture
def store() -> Any:
    with ExampleStore(":memory:", fields=FIELDS) as opened:
        yield opened


def test_columns_are_in_the_order_of_time(store: ExampleStore) -> None:
    store.add(item="b", rating=2.0, when=20)
    store.add(item="a", rating=1.0, when=10)
    store.add(item="c", rating=3, when=20)
    columns = store.columns()
    assert columns["item"].tolist() == ["a", "b", "c"]
    assert columns["rating"].tolist() == [1.0, 2.0, 3.0]


def test_an_empty_store_has_no_columns(store: ExampleStore) -> None:
    assert store.columns() == {}
    assert store.count() == 0


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"item": "a"}, r"fields \['item'\]; this store holds \['item', 'rating'\]"),
        ({"item": "a", "rating": 1.0, "mood": 1.0}, "mood"),
        ({"item": 7, "rating": 1.0}, "item is 7, not a key"),
        ({"item": "", "rating": 1.0}, "not a key"),
        ({"item": "a", "rating": "5"}, "rating is '5', not a finite number"),
        ({"item": "a", "rating": float("nan")}, "not a finite number"),
        ({"item": "a", "rating": 5.5}, "beyond its limits 0.5 to 5.0"),
        ({"item": "a", "rating": 1.0, "when": float("inf")}, "when is inf"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_with_its_reason(
    store: ExampleStore, example: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidExampleError, match=message) as raised:
        store.add(**example)
    assert raised.value.reason == "INVALID_EXAMPLE"
    assert raised.value.advice
    assert store.count() == 0


def test_many_examples_are_added_all_or_none(store: ExampleStore) -> None:
    with pytest.raises(InvalidExampleError):
        store.extend([{"item": "a", "rating": 1.0}, {"item": "b", "rating": 9.0}])
    assert store.count() == 0
    store.extend({"item": str(number), "rating": 1.0, "when": number} for number in range(5))
    assert store.count() == 5


def test_without_declared_fields_the_first_example_decides() -> None:
    with ExampleStore(":memory:") as store:
        store.add(item="a", rating=1, tags=[1.0, 0.0])
        with pytest.raises(InvalidExampleError, match="this store holds"):
            store.add(item="a")
        store.add(item="b", rating=2.5, tags=np.array([0.0, 1.0]))
        assert store.columns()["tags"].shape == (2, 2)


def test_the_oldest_examples_make_room() -> None:
    with ExampleStore(":memory:", maximum=2) as store:
        store.extend({"item": key, "when": when} for key, when in [("a", 3), ("b", 1), ("c", 2)])
        assert store.columns()["item"].tolist() == ["c", "a"]


def test_old_examples_are_forgotten() -> None:
    now = 100.0
    with ExampleStore(":memory:", maximum_age_seconds=50, clock=lambda: now) as store:
        store.extend({"item": key, "when": when} for key, when in [("a", 49), ("b", 51)])
        assert store.columns()["item"].tolist() == ["b"]
        now = 200.0
        assert store.count() == 0


def test_examples_outlive_the_process_and_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    with ExampleStore(path) as store:
        store.add(item="a", rating=1.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with ExampleStore(path) as again:
        with pytest.raises(InvalidExampleError, match="this store holds"):
            again.add(item="a")
        assert again.columns()["item"].tolist() == ["a"]


def test_cleared_examples_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    with ExampleStore(path) as store:
        store.add(item="a-very-private-key", rating=1.0)
        store.clear()
        assert store.count() == 0
    assert b"a-very-private-key" not in path.read_bytes()


def test_a_file_that_is_no_database_is_set_aside_whole_and_the_next_store_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes and no database\n" * 100)
    with pytest.raises(DamagedExamplesError, match=r"the file is now .*notes\.txt\.damaged") as raised:
        ExampleStore(path)
    assert raised.value.advice
    assert (tmp_path / "notes.txt.damaged").read_text().startswith("these are notes")
    with ExampleStore(path, fields=FIELDS) as store:
        store.add(item="a", rating=1.0)
        assert store.count() == 1


def test_a_store_that_was_damaged_on_disk_says_so(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    with ExampleStore(path, fields=FIELDS) as store:
        store.extend({"item": f"film-{number}", "rating": 3.0} for number in range(500))
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(DamagedExamplesError):
        ExampleStore(path, fields=FIELDS)
    with ExampleStore(path, fields=FIELDS) as store:
        assert store.count() == 0
        store.clear()
    assert [each.name for each in tmp_path.iterdir()] == ["examples.db"]


def test_examples_are_forgotten_also_where_their_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    with ExampleStore(path, fields=FIELDS) as store:
        store.extend({"item": f"film-{number}", "rating": 3.0} for number in range(500))
        path.write_bytes(b"\xff" * path.stat().st_size)
        store.clear()
        assert store.count() == 0
    assert [each.name for each in tmp_path.iterdir()] == ["examples.db"]
    assert b"film-1" not in path.read_bytes()


def test_a_full_disk_adds_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.db", fields=FIELDS) as store:
        store.add(item="a", rating=1.0)
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageFailedError, match="full") as raised:
            store.extend({"item": "b" * 200, "rating": 1.0} for _ in range(200))
        assert "make room" in raised.value.advice
        assert store.columns()["item"].tolist() == ["a"]
        store._connection.execute("PRAGMA max_page_count = 100000")
        store.add(item="b", rating=2.0)
        assert store.count() == 2


def test_a_clock_that_is_wrong_by_a_year_and_put_right_loses_no_example() -> None:
    now = [1_700_000_000.0]
    with ExampleStore(":memory:", fields=FIELDS, maximum_age_seconds=30 * DAY, clock=lambda: now[0]) as store:
        store.add(item="a", rating=1.0)
        now[0] += 365 * DAY
        assert store.count() == 0
        assert store.columns() == {}
        now[0] -= 365 * DAY
        assert store.columns()["item"].tolist() == ["a"]
        now[0] -= 365 * DAY
        assert store.count() == 1


def test_an_expired_example_is_gone_for_good_after_a_day() -> None:
    now = [1_700_000_000.0]
    with ExampleStore(":memory:", fields=FIELDS, maximum_age_seconds=30 * DAY, clock=lambda: now[0]) as store:
        store.add(item="a", rating=1.0)
        now[0] += 31 * DAY
        assert store.count() == 0
        now[0] += 1.1 * DAY
        assert store.count() == 0
        assert store._connection.execute("SELECT COUNT(*) FROM examples").fetchone() == (0,)


def test_a_plan_says_what_an_example_holds(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(toy_plan().content)
    with ExampleStore(":memory:", plan=manifest) as store:
        store.add(item="film-1", rating=5.0)
        with pytest.raises(InvalidExampleError, match="beyond its limits"):
            store.add(item="film-1", rating=6.0)
        with pytest.raises(InvalidExampleError, match="this store holds"):
            store.add(item="film-1", stars=5.0)
    manifest.write_text("{")
    with pytest.raises(UnusablePlanError):
        ExampleStore(":memory:", plan=manifest)


def test_every_example_holds_as_many_numbers() -> None:
    with ExampleStore(":memory:", fields={"features": float}) as store:
        store.add(features=[1.0, 2.0])
        with pytest.raises(InvalidExampleError, match="in the first example it was"):
            store.add(features=[1.0])
        with pytest.raises(InvalidExampleError, match="in the first example it was"):
            store.add(features=1.0)


def test_outcomes_of_the_newest_that_were_shown_are_told(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    with ExampleStore(path) as store:
        for _ in range(3):
            store.add_outcome(1, 400, 40)
        store.add_outcome(1, 300, 7)
        store.add_outcome(2, 10, 10)
    with ExampleStore(path) as store:
        # 300 and 400 are told; another 400 would be more than a device may weigh.
        assert store.outcomes() == {1: (700, 47), 2: (10, 10)}
        assert store.count() == 0
        store.clear()
        assert store.outcomes() == {}


@pytest.mark.parametrize(("version", "shown", "chosen"), [(0, 5, 1), (1, 0, 0), (1, 5, 6), (1, 5, -1), (1, 1_001, 0)])
def test_an_outcome_that_cannot_be_is_refused(version: int, shown: int, chosen: int) -> None:
    store = ExampleStore(":memory:")
    with pytest.raises(InvalidExampleError):
        store.add_outcome(version, shown, chosen)
    assert store.outcomes() == {}


def test_outcomes_grow_old_as_examples_do() -> None:
    now = [1_000.0]
    store = ExampleStore(":memory:", maximum_age_seconds=100, clock=lambda: now[0])
    store.add_outcome(1, 5, 1)
    now[0] += 101
    store.add_outcome(1, 3, 1)
    assert store.outcomes() == {1: (3, 1)}
