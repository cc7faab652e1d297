"""Runs a fleet: wakes devices, lets them take part, and counts how it went.

A population is larger than what is awake at any moment: at most `awake` devices try to take part, and come back as they
are told until they had their turn. Then they sleep at least as long as they are told, and others wake up.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedrecon.device_sdk import Device, Outcome, Participation
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.kinds import ClassName
from fedrecon.device_sdk.transport import AsyncTransport
from fedrecon.ops.fleet.behaviour import Behaviour, Phone, Vanished
from fedrecon.ops.fleet.people import Person

Entropy = Callable[[int], bytes]
"""Gives that many random bytes."""

VANISHED = "dropped out"
_LOOK_SECONDS = 0.05
_SILENT_SECONDS = 1.0
_CLASSES: tuple[ClassName, ...] = ("low", "middle", "high")
"""Rest of a device that was told no window: it vanished, or nobody answered."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A person's examples as the device SDK reads them."""

    person: Person

    def count(self) -> int:
        return self.person.examples

    def columns(self) -> Mapping[str, NDArray[Any]]:
        return self.person.columns


@dataclass(slots=True)
class Tally:
    """How the sessions of a fleet went.

    Attributes:
        outcomes: how often each outcome came, rejections among them; drop-outs under `VANISHED`.
        messages: what the last device with this outcome was told, where it was told anything.
        left_bytes: bytes that left all devices, by message.
        last: the last participation with an acknowledged report.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    left_bytes: Counter[str] = field(default_factory=Counter)
    last: Participation | None = None

    def note(self, participation: Participation | None) -> None:
        """Count one participation; None is a device that vanished."""
        if participation is None:
            self.outcomes[VANISHED] += 1
            return
        self.outcomes[participation.outcome.value] += 1
        if participation.message:
            self.messages[participation.outcome.value] = participation.message
        for departure in participation.receipt:
            self.left_bytes[departure.message] += departure.bytes
        if participation.outcome is Outcome.UPLOADED:
            self.last = participation


def _system_entropy(person: Person) -> Entropy:
    del person
    return os.urandom


@dataclass(slots=True)
class Fleet:
    """Devices of one population.

    Attributes:
        people: who they belong to.
        coordinator: target of the coordinator.
        population: the population that they check in to.
        behaviour: how they behave.
        awake: most devices that take part at once.
        seed: of behaviour and order; what devices draw for themselves comes from `entropy`.
        authority: certificate authority of the services in PEM; None for plaintext.
        cache_folder: where they keep blobs, together.
        entropy: where the device of a person draws from; tests give one that records what the system gave.
        tally: how it went so far.
    """

    people: Sequence[Person]
    coordinator: str
    population: str
    behaviour: Behaviour
    awake: int
    seed: int
    cache_folder: Path
    authority: bytes | None = None
    entropy: Callable[[Person], Entropy] = _system_entropy
    tally: Tally = field(default_factory=Tally)

    async def run(
        self, stopping: asyncio.Event, noted: Callable[[Participation | None], None] = lambda _: None
    ) -> Tally:
        """Let devices take part until told to stop.

        Args:
            stopping: set it to end; sessions under way are dropped.
            noted: called with every participation, None for a device that vanished.

        Returns:
            How it went.
        """
        source = random.Random(self.seed)  # noqa: S311 - behaviour, not secrets
        line, cache = AsyncTransport(self.authority), BlobCache(self.cache_folder)
        ready = [(0.0, source.random(), person) for person in range(len(self.people))]
        heapq.heapify(ready)
        devices: dict[int, tuple[Device, Phone]] = {}

        async def take_turns() -> None:
            while True:
                if not ready or ready[0][0] > time.monotonic():
                    await asyncio.sleep(_LOOK_SECONDS)
                    continue
                _, _, person = heapq.heappop(ready)
                if person not in devices:
                    devices[person] = self._device(person, cache, Phone(line))
                rest = await self._stay_awake(*devices[person], source, noted)
                heapq.heappush(ready, (time.monotonic() + rest, source.random(), person))

        workers = [asyncio.create_task(take_turns()) for _ in range(min(self.awake, len(self.people)))]
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({stopped, *workers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await _cancel(workers)
            await line.close()
        ended = [worker.exception() for worker in workers if not worker.cancelled()]
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return self.tally

    def _device(self, person: int, cache: BlobCache, phone: Phone) -> tuple[Device, Phone]:
        device = Device(
            self.coordinator,
            self.population,
            _Held(self.people[person]),
            secure_sum="allowed",
            min_group=1,
            device_class=_CLASSES[person % len(_CLASSES)],
            authority=self.authority,
            cache=cache,
            transport=phone,
            entropy=self.entropy(self.people[person]),
        )
        return device, phone

    async def _stay_awake(
        self, device: Device, phone: Phone, source: random.Random, noted: Callable[[Participation | None], None]
    ) -> float:
        """Let a device come back as it is told until it has had its turn; return how long it rests then, in seconds."""
        while True:
            phone.begin(self.behaviour.draw(source))
            try:
                participation = await device.participate_async()
            except Vanished:
                participation = None
            self.tally.note(participation)
            noted(participation)
            after = participation.retry_after_seconds if participation is not None else None
            rest = after if after is not None else _SILENT_SECONDS * (1 + source.random())
            if participation is None or participation.outcome is not Outcome.REJECTED:
                return rest
            await asyncio.sleep(rest)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library on the way may swallow one cancellation and go on."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_SILENT_SECONDS)
