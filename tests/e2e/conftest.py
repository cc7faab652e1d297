"""Fixtures of tests that look at a whole stack from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrecon.ops.fleet.people import People, people_of
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from support.compiled_films import compile_films
from support.town import RATINGS, Town


@pytest.fixture(scope="session")
def people() -> People:
    return people_of(RATINGS)


@pytest.fixture(scope="session")
def plan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "plan"
    return compile_films("ridge", RATINGS.item_keys, 4, folder, titles=RATINGS.titles).folder


@pytest.fixture
def town(tmp_path: Path, people: People) -> Iterator[Town]:
    with Stack(Settings(home=tmp_path / "home")) as stack:
        town = Town(stack, people)
        try:
            yield town
        finally:
            town.sleep()
