"""Chooses subjects, bends their valid inputs, gives them to the code, and counts how they end.

Every input has a generator of its own, seeded by the run's seed and the input's number: the same seed gives the same
inputs, in the same order, whatever became of those before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from fedrecon.aggregator import device_service
from support.fuzz_mutations import bend, bend_content
from support.fuzz_subjects import Parts, Subject, Verdict, keep

_KEPT_PER_SUBJECT = 3
_LONGEST_WORK_SECONDS = 6.0
"""Of this process's own time: a machine that does other things beside is no crash."""

_LONGEST_WAIT_SECONDS = 60.0


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        seed: of its inputs.
        counts: how inputs ended, by subject.
        inputs_digest: SHA-256 over all inputs: the same for the same seed.
        seconds: how long it took.
        slowest: the longest an input took, in seconds, by subject.
        kept: files of inputs that crashed or were accepted.
    """

    seed: int
    counts: dict[str, Counter[Verdict]] = field(default_factory=dict)
    inputs_digest: str = ""
    seconds: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)

    def total(self, verdict: Verdict) -> int:
        return sum(each[verdict] for each in self.counts.values())

    def figures(self) -> dict[str, Any]:
        """What is printed."""
        totals = {verdict.value: self.total(verdict) for verdict in Verdict}
        targets = {
            name: {verdict.value: ended[verdict] for verdict in Verdict} for name, ended in sorted(self.counts.items())
        }
        return {
            "name": "fuzz",
            "seed": self.seed,
            "inputs": sum(totals.values()),
            "seconds": round(self.seconds, 1),
            **totals,
            "slowest_milliseconds": round(1000 * max(self.slowest.values(), default=0.0), 1),
            "inputs_digest": self.inputs_digest,
            "targets": targets,
        }


@contextlib.contextmanager
def in_this_thread() -> Any:
    """Lets services neither wait for others nor hand work to threads: an input ends as soon as it can."""

    async def at_once(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    before = signal.signal(signal.SIGPROF, _stop)
    with mock.patch.object(asyncio, "to_thread", at_once), mock.patch.object(device_service, "_PATIENCE_SECONDS", 0.0):
        yield
    signal.signal(signal.SIGPROF, before)


async def run(
    subjects: Sequence[Subject], inputs: int, seed: int, folder: Path, told: Callable[[str], None]
) -> Outcome:
    """Fuzzes subjects.

    Args:
        subjects: what is fuzzed.
        inputs: how many inputs there are.
        seed: of all of them.
        folder: where those that fail are kept.
        told: hears what fails.
    """
    outcome, digest = Outcome(seed), hashlib.sha256()
    outcome.counts = {subject.name: Counter() for subject in subjects}
    began = time.monotonic()
    async for subject, parts in _inputs(subjects, inputs, seed):
        digest.update(b"".join(parts))
        started = time.monotonic()
        verdict, why = await judge(subject, parts)
        took = time.monotonic() - started
        outcome.slowest[subject.name] = max(took, outcome.slowest.get(subject.name, 0.0))
        outcome.counts[subject.name][verdict] += 1
        if (
            verdict in {Verdict.CRASHED, Verdict.ACCEPTED}
            and outcome.counts[subject.name][verdict] <= _KEPT_PER_SUBJECT
        ):
            path = keep(folder, subject.name, parts, verdict, why)
            outcome.kept.append(path)
            told(f"{verdict.value}: {subject.name}: {why}: kept as {path}")
    outcome.seconds, outcome.inputs_digest = time.monotonic() - began, digest.hexdigest()
    return outcome


class TooSlowError(Exception):
    """An input kept the process busy for too long."""


async def judge(subject: Subject, parts: Parts) -> tuple[Verdict, str]:
    """Returns how an input ended, and why if it crashed: one that waits or works for seconds has, too."""
    signal.setitimer(signal.ITIMER_PROF, _LONGEST_WORK_SECONDS)
    try:
        async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
            return await subject.feed(parts), ""
    except Exception as error:  # noqa: BLE001 - any exception that gets here is what is looked for
        return Verdict.CRASHED, f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(*_: object) -> None:
    raise TooSlowError


async def _inputs(subjects: Sequence[Subject], inputs: int, seed: int) -> AsyncIterator[tuple[Subject, Parts]]:
    weights = list(itertools.accumulate(subject.share for subject in subjects))
    pool = [parts for subject in subjects for parts in subject.seeds]
    contents = [part for parts in pool for part in parts]
    for number in range(inputs):
        source = random.Random((seed << 40) + number)
        subject = source.choices(subjects, cum_weights=weights)[0]
        valid = source.choice(subject.seeds)
        if subject.kind is None:
            yield subject, [bend_content(source, valid[0], contents)]
        else:
            yield subject, bend(source, valid, subject.kind, pool)
