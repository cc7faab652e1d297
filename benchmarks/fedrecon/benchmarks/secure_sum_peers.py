"""Masked sums of fedrecon beside Flower's SecAgg+ functions: same sizes, neighbours and thresholds, in one run.

Flower lives in an environment of its own (`make bench-peers` makes it). Its device is run whole; its aggregator's time
is extrapolated from one secret and one mask, since the whole takes many minutes.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from fedrecon.aggregator import thresholds
from fedrecon.benchmarks import flower
from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.secure_sum import CASES, PROMISED, Case, measure
from fedrecon.ops.mistakes import UserMistake


def measure_peers(python: Path) -> list[Measure]:
    """Run Flower's functions and ours.

    Args:
        python: Of an environment that has Flower.

    Returns:
        Flower's times of every size with a tenth lost, ours of the promised one, and how many times ours they are.

    Raises:
        UserMistake: Flower does not run there.
    """
    measures = []
    for case in CASES:
        if case.drop_out != PROMISED.drop_out:
            continue
        theirs = _flower(python, case)
        name = f"flower_{case.name}"
        client, server = 1000 * theirs["client_cpu_seconds"], theirs["server_cpu_seconds"]
        measures += [
            Measure(f"{name}.client_cpu_ms", client, "ms"),
            Measure(f"{name}.server_cpu_seconds_extrapolated", server, "s"),
            Measure(f"{name}.mask_ms", 1000 * theirs["mask_seconds"], "ms"),
        ]
        if case == PROMISED:
            ours = {each.name: each for each in measure(case)}
            measures += [
                ours["client_cpu_ms"],
                ours["server_cpu_seconds"],
                Measure("client_times", client / ours["client_cpu_ms"].value, "ratio"),
                Measure("server_times", server / ours["server_cpu_seconds"].value, "ratio"),
            ]
    return measures


def _flower(python: Path, case: Case) -> dict[str, float]:
    found = thresholds.find(case.members)
    sizes = {
        "members": case.members,
        "parameters": case.parameters,
        "drop-out": case.drop_out,
        "neighbours": found.neighbours,
        "threshold": found.threshold,
    }
    arguments = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    done = subprocess.run([str(python), flower.__file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserMistake(f"Flower did not run with {python}.", f"`make bench-peers` installs it. {done.stderr[-500:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured
