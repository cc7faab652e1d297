"""A device in a process of its own that takes part for ever, until somebody kills it.

Run as `python -m support.mortal_device TARGET PUBLISHER HOME`. Before each participation it adds an example and says
so: the store on disk is written to all the time. Each participation ends in a line.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fedrecon.device_sdk import Device
from fedrecon.device_sdk.calling import Patience
from support.device_bundle import KEYS
from support.toy_devices import toy_store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("publisher")
    parser.add_argument("home", type=Path)
    given = parser.parse_args()
    examples = toy_store(given.home / "examples.db")
    device = Device(
        given.target,
        "films",
        examples,
        home=given.home,
        trusted_plans=[given.publisher],
        min_contributors=0,
        patience=Patience(first_seconds=0.02, longest_seconds=0.2),
    )
    while True:
        examples.add(item=KEYS[examples.count() % len(KEYS)], rating=3.0)
        sys.stdout.write(f"added {examples.count()}\n")
        sys.stdout.flush()
        ended = device.participate()
        sys.stdout.write(f"ended {ended.outcome.value}: {ended.reason}\n")
        sys.stdout.flush()
        if ended.reason == "BUSY":
            time.sleep(0.005)


if __name__ == "__main__":
    main()
