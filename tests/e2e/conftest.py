"""Fixtures of tests that look at a whole stack from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import Ridge
from fedrecon.ops.fleet.people import People, people_of
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.v1.plan_pb2 import Vocabulary
from support.town import RATINGS, Town


@pytest.fixture(scope="session")
def people() -> People:
    return people_of(RATINGS)


@pytest.fixture(scope="session")
def plan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "plan"
    model = matrix_factorization(len(RATINGS.item_keys), 4, mean=3.6, bias=True, reconstruction=Ridge("rating"))
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=RATINGS.item_keys, titles=RATINGS.titles)
    compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder, seed=0)
    return folder


@pytest.fixture
def town(tmp_path: Path, people: People) -> Iterator[Town]:
    with Stack(Settings(home=tmp_path / "home")) as stack:
        town = Town(stack, people)
        try:
            yield town
        finally:
            town.sleep()
