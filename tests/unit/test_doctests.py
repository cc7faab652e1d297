"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

ROOMS = ("aggregator", "benchmarks", "coordinator", "datasets", "device_sdk", "inference", "learning", "ops", "wire")


def modules() -> list[str]:
    names = []
    for room in ROOMS:
        package = importlib.import_module(f"fedrecon.{room}")
        names += [
            module.name
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if not module.name.endswith("__main__")
        ]
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_hold(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0
