"""All benchmarks in one run: one JSON object of all results, and a page of them.

Each benchmark is a process of its own, so that none warms up another or keeps its memory. One that fails is named, and
the others go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LEFT_OUT = frozenset({"quality"})
"""Trains for long, and is a table of the experiments."""

_LONGEST_SECONDS = 600.0
_BARS_INCH, _PER_BAR_INCH = 1.2, 0.24


def names_of_all(commands: Iterable[str]) -> tuple[str, ...]:
    """Return the benchmarks that need no environment of their own, as those of peers do.

    Example:
        >>> names_of_all(["ingest", "secure-sum-peers", "quality"])
        ('ingest',)
    """
    return tuple(name for name in commands if not name.endswith("-peers") and name not in _LEFT_OUT)


def run_all(names: Sequence[str], tell: Callable[[str], None]) -> dict[str, Any]:
    """Run benchmarks one after the other.

    Args:
        names: As `fedrecon bench` calls them.
        tell: Told of each before it runs.

    Returns:
        What is written as JSON: when, for how long, how busy the machine was before, and a result for each.
    """
    began, busy = time.time(), os.getloadavg()[0]
    results = []
    for name in names:
        tell(name)
        results.append(_run(name))
    return {
        "unix_seconds": round(began),
        "seconds": round(time.time() - began, 1),
        "load_before": round(busy, 2),
        "results": results,
    }


def _run(name: str) -> dict[str, Any]:
    """Run one in a process of its own; its result has the seconds that it took."""
    command = [sys.executable, "-m", "fedrecon.ops", "bench", name, "--json"]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST_SECONDS)
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError) as error:
        output = getattr(error, "stderr", None) or str(error)
        said = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
        result = {"name": name, "measures": [], "failed": said.strip().splitlines()[-1][:300]}
    return result | {"seconds": round(time.monotonic() - began, 1)}


def page_of(run: Mapping[str, Any]) -> str:
    """Return the page of a run, in Markdown.

    Args:
        run: What `run_all` returned.
    """
    return "\n".join(_lines(run)) + "\n"


def _lines(run: Mapping[str, Any]) -> Iterator[str]:
    machine: dict[str, Any] = next((result["machine"] for result in run["results"] if "machine" in result), {})
    day = time.strftime("%Y-%m-%d", time.gmtime(run["unix_seconds"]))
    yield "# Benchmarks"
    yield "What we promise, measured: made by `make bench`, not by hand. A target is what was promised, and *holds*"
    yield "says whether this run kept it; other figures are there to compare with. What each benchmark does:"
    yield "[benchmarks](../benchmarks/README.md)."
    yield ""
    yield (
        f"{day}, {machine.get('system', 'a machine')}, {machine.get('cores', '?')} cores, "
        f"Python {machine.get('python', '?')}; {run['seconds'] / 60:.0f} minutes for all; "
        f"load of the machine before: {run['load_before']:g}."
    )
    yield ""
    yield "![Every promise: left of the line it was kept](images/benchmarks.svg)"
    for result in run["results"]:
        yield ""
        yield f"## {result['name']}"
        if "failed" in result:
            yield f"Failed: {result['failed']}"
            continue
        yield f"{result['seconds']:.0f} s."
        yield ""
        yield "| measure | value | unit | target | holds |"
        yield "|---|---|---|---|---|"
        for each in result["measures"]:
            holds = {True: "yes", False: "**no**", None: ""}[each["holds"]]
            yield f"| {each['name']} | {each['value']:,.4g} | {each['unit']} | {each['target'] or ''} | {holds} |"


def shares_of_promises(run: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
    """Return how much of what was promised each figure uses up: below 1 the promise is kept.

    Args:
        run: What `run_all` returned.

    Returns:
        Name, share and whether it holds.

    Example:
        >>> promised = {"name": "wait", "value": 2.0, "unit": "s", "target": "below 4", "holds": True}
        >>> shares_of_promises({"results": [{"name": "check-in", "measures": [promised]}]})
        [('check-in: wait', 0.5, True)]
    """
    shares = []
    for result in run["results"]:
        for each in result["measures"]:
            limit = float(each["target"].split()[-1]) if each["target"] else 0.0
            if limit and each["value"]:
                is_below = each["target"].startswith("below")
                share = each["value"] / limit if is_below else limit / each["value"]
                shares.append((f"{result['name']}: {each['name']}", share, bool(each["holds"])))
    return shares


def draw(run: Mapping[str, Any], path: Path) -> None:
    """Draw every promise and what the run made of it.

    Args:
        run: What `run_all` returned.
        path: An SVG file.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fedrecon"
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter

    shares = shares_of_promises(run)[::-1]
    figure, axes = plt.subplots(figsize=(8, _BARS_INCH + _PER_BAR_INCH * len(shares)))
    colours = ["#2f7d4f" if holds else "#b3261e" for _, _, holds in shares]
    axes.barh([name for name, _, _ in shares], [share for _, share, _ in shares], color=colours)
    axes.axvline(1, color="#555555", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xlabel("share of what was promised: up to 1 it was kept", fontsize=8)
    axes.set_ylim(-1, len(shares))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
