"""Devices whose draws are kept: who took part in what, and with which seeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedrecon.device_sdk import Outcome, Participation
from fedrecon.device_sdk.runtime import Seeds
from fedrecon.learning.rounds_in_process import Client
from fedrecon.ops.fleet.people import Person
from fedrecon.wire.keystream import SEED_BYTES

SEEDS = 3


@dataclass(frozen=True, slots=True)
class Recorded:
    """A participation, and what it was made of."""

    person: Person
    seeds: Seeds
    participation: Participation

    def client(self) -> Client:
        return Client(self.person.columns, self.seeds)


@dataclass
class Recording:
    """Gives devices the system's randomness and remembers it.

    A fleet runs a participation and tells of it within one asyncio task, one after the other: what was drawn in a
    task since it last told belongs to the participation that it tells of.
    """

    participations: list[Recorded] = field(default_factory=list)
    _drawn: dict[asyncio.Task[Any] | None, list[tuple[Person, bytes]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def entropy(self, person: Person) -> Callable[[int], bytes]:
        def draw(count: int) -> bytes:
            drawn = os.urandom(count)
            with contextlib.suppress(RuntimeError):  # in a thread shares and masks are made: no round depends on them
                self._drawn[asyncio.current_task()].append((person, drawn))
            return drawn

        return draw

    def note(self, participation: Participation | None) -> None:
        draws = self._drawn.pop(asyncio.current_task())[:SEEDS]
        if participation is None:
            return
        (person,) = {id(person): person for person, _ in draws}.values()
        initial, split, rounding = (drawn for _, drawn in draws)
        assert all(len(each) == SEED_BYTES for each in (initial, split, rounding))
        self.participations.append(Recorded(person, Seeds(initial, split, rounding), participation))

    def uploaded(self, number: int, attempt: int) -> list[Recorded]:
        """Returns those whose report was acknowledged in an attempt, in the order in which they told so."""
        return [
            each
            for each in self.participations
            if each.participation.outcome is Outcome.UPLOADED
            and (each.participation.round, each.participation.attempt) == (number, attempt)
        ]
