"""The long form of the chaos tests: `make test-chaos SEED=n`.

Kills coordinator, aggregator and Valkey in every phase of a round, again and again, and prints what it came to: one
JSON object as the last line. Ends with 1 if a report was lost or counted twice, or another rule was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import stamina.instrumentation

from support.chaos_driver import Kill, run_program
from support.chaos_evidence import Times
from support.chaos_figures import figures_of, kills_by_phase
from support.chaos_programs import PHASES, Blow, Stage, draw_program
from support.hand_made_folder import write_hand_made_plan

_CALM_ROUNDS = 20
_LARGEST_SEED = 1 << 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the program; default: a new one")
    parser.add_argument("--each", type=int, default=30, help="least kills of each role in each phase")
    given = parser.parse_args()
    stamina.instrumentation.set_on_retry_hooks([])  # the journal is away whenever Valkey was killed
    seed = secrets.randbelow(_LARGEST_SEED) if given.seed is None else given.seed
    _say(f"seed {seed}: run it again with `make test-chaos SEED={seed}`")
    folder = Path(tempfile.mkdtemp(prefix="fedrecon-chaos-"))
    try:
        outcome = asyncio.run(
            run_program(
                folder / "home",
                write_hand_made_plan(folder / "plan"),
                draw_program(seed, _counts(given.each)),
                seed=seed,
                calm_rounds=_CALM_ROUNDS,
                missing=lambda kills, times: _missing(kills, times, given.each, seed),
                told=_say,
            )
        )
    except Exception:
        _say(f"what it left behind is in {folder}")
        raise
    for text in outcome.verdict.faults:
        _say(text)
    figures = figures_of(outcome, seed)
    print(json.dumps(figures))  # noqa: T201 - the result
    broken = outcome.verdict.lost or outcome.verdict.doubled or outcome.verdict.faults
    if broken:
        _say(f"what it left behind is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _counts(each: int) -> dict[Stage, int]:
    """Returns how many blows to aim at every stage so that every phase has so many."""
    return {stage: -(-each // len(members)) for members in PHASES.values() for stage in members}


def _missing(kills: Sequence[Kill], times: Times, each: int, seed: int) -> list[Blow]:
    """Returns blows for what was missed: a stage may have ended in the moment between aim and blow."""
    source = random.Random(seed + len(kills))
    return [
        Blow(victim, source.choice(sorted(PHASES[phase])), round(source.random(), 3))
        for victim, counts in kills_by_phase(kills, times).items()
        for phase, count in counts.items()
        for _ in range(each - count)
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress


if __name__ == "__main__":
    sys.exit(main())
