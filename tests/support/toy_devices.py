"""Devices that speak to the toy services of `fedrecon.device_sdk.testing`, with floors as apps have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrecon.device_sdk import Device, ExampleStore
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.testing import FakeServices, FakeTransport

GROUP = 3
RATINGS = {"film-4": 5.0, "film-1": 1.0, "film-0": 3.0, "film-2": 0.5, "film-3": 1.5}


def toy_services(**changes: Any) -> FakeServices:
    """Returns services with groups of three: tests run hundreds of sums."""
    return FakeServices(**({"group": GROUP} | changes))


def toy_transport(**changes: Any) -> FakeTransport:
    """Returns a transport to such services."""
    return FakeTransport(toy_services(**changes))


def toy_store(path: str | Path = ":memory:") -> ExampleStore:
    """Returns a store with five ratings, if it is a new one."""
    store = ExampleStore(path, fields={"item": str, "rating": (0.5, 5.0)})
    if not store.count():
        store.extend(
            {"item": key, "rating": rating, "when": when} for when, (key, rating) in enumerate(RATINGS.items())
        )
    return store


def toy_device(transport: FakeTransport, home: Path | None = None, **changes: Any) -> Device:
    """Returns a device of the toy services; `changes` are arguments of `Device`."""
    settings: dict[str, Any] = {
        "home": home,
        "trusted_plans": [transport.publisher],
        "transport": transport,
        "min_group": GROUP,
        "min_contributors": GROUP,
        "patience": Patience(attempts=3, session_attempts=4),
    }
    examples = changes.pop("examples", None) or toy_store()
    return Device("coordinator:1", "films", examples, **(settings | changes))
