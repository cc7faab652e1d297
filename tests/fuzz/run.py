"""The long form of the fuzzing: `make test-fuzz N=1000000 SEED=n`.

Bends every message of the contract, on both sides, and prints what it came to: one JSON object as the last line. Ends
with 1 if an input crashed or was accepted; such inputs are kept under `tests/fuzz/kept/`, where a test replays them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import sys
import tempfile
from pathlib import Path

from fedrecon.ops.logs import configure_logs
from support.fuzz_everything import all_subjects
from support.fuzz_loop import Outcome, run

KEPT = Path(__file__).parent / "kept"
_LARGEST_SEED = 1 << 32
_MEMORY_BYTES = 6 << 30
"""What an input may make this process ask for: more is a crash."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, help="of the inputs; default: a new one")
    given = parser.parse_args()
    configure_logs("fuzz", level="error")  # refusals by the hundred thousand are none
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    seed = secrets.randbelow(_LARGEST_SEED) if given.seed is None else given.seed
    _say(f"seed {seed}: run it again with `make test-fuzz N={given.inputs} SEED={seed}`")
    outcome = asyncio.run(_fuzz(given.inputs, seed))
    print(json.dumps(outcome.figures()))  # noqa: T201 - the result
    return 1 if outcome.kept else 0


async def _fuzz(inputs: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="fedrecon-fuzz-") as folder:
        async with all_subjects(Path(folder)) as subjects:
            return await run(subjects, inputs, seed, KEPT, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress


if __name__ == "__main__":
    sys.exit(main())
