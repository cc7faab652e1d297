"""`python -m fedrecon.benchmarks`: runs all benchmarks, and writes one JSON object, the page and its chart."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedrecon.benchmarks.commands import bench
from fedrecon.benchmarks.everything import draw, names_of_all, page_of, run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, and say whether every promise was kept.

    Args:
        arguments: Of the command line, without the program's name; the process's own by default.

    Returns:
        1 if a benchmark failed or a promise was not kept.
    """
    parser = argparse.ArgumentParser(prog="python -m fedrecon.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="file of all results")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--only", nargs="*", default=[], help="names of benchmarks; default: all")
    given = parser.parse_args(arguments)
    commands = [each.name or each.callback.__name__ for each in bench.registered_commands if each.callback is not None]
    run = run_all(given.only or names_of_all(commands), lambda name: print(name, file=sys.stderr, flush=True))  # noqa: T201 - progress
    given.json.write_text(json.dumps(run, indent=1) + "\n")
    (given.docs / "benchmarks.md").write_text(page_of(run))
    draw(run, given.docs / "images" / "benchmarks.svg")
    print(json.dumps(run))  # noqa: T201 - the result
    kept = (each["holds"] is not False for result in run["results"] for each in result["measures"])
    return 0 if all(kept) and not any("failed" in result for result in run["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
