"""One device's participations: who may begin one, what it depends on, and what is kept of it.

One at a time: within a process by a lock, across processes by the home folder's. How a participation ended is written
down when it has ended, history first and the end of its session last: a process that dies in between tells it once
more, and the history keeps the newer word. A disk that is full then changes no outcome.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.errors import BusyError, OptedOutError, StorageFailedError
from fedrecon.device_sdk.examples import ExampleSource
from fedrecon.device_sdk.files import remove
from fedrecon.device_sdk.floors import Floors
from fedrecon.device_sdk.history import DepartureLog, History
from fedrecon.device_sdk.home_lock import sole_use
from fedrecon.device_sdk.identity import device_key, public_bytes
from fedrecon.device_sdk.kinds import ClassName
from fedrecon.device_sdk.memory import Memory, Rest
from fedrecon.device_sdk.participation import Participation, rest_after
from fedrecon.device_sdk.session import Circumstances, Ending
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.device_sdk.stopping import Stop
from fedrecon.wire.places import place_of

KEY_FILE = "device.key"
FORGETTING_SECONDS = 10.0
_LOOK_SECONDS = 0.02

LOGGER = "fedrecon.device_sdk"


@dataclass(slots=True)
class Participant:
    """Begins participations and keeps how they ended; the arguments are those of `Device`.

    Attributes:
        memory: what the device remembers between them.
        history: how they ended.
        stop: ends the one that runs.
    """

    server: str
    population: str
    examples: ExampleSource
    home: Path | None
    floors: Floors
    attest: Callable[[str, bytes], bytes] | None
    cache: BlobCache
    memory_bytes: int
    device_class: ClassName | None
    entropy: Callable[[int], bytes]
    patience: Patience
    memory: Memory
    history: History
    stop: Stop = field(default_factory=Stop)
    _speaker: Speaker | None = None
    _key: Ed25519PrivateKey | None = None
    _in_use: threading.Lock = field(default_factory=threading.Lock)

    def speaking(self) -> Speaker:
        """Returns who speaks, with a key made now if there is none."""
        if self._speaker is None:
            key = self._own_key()
            self._speaker = Speaker(self.server, public_bytes(key), key.sign, self.attest, self.memory.enrolment)
        return self._speaker

    def place(self, task: str) -> int:
        """Returns this device's place among those that may get a task's canary: the same for as long as its key is."""
        return place_of(self._own_key().private_bytes_raw(), task)

    def _own_key(self) -> Ed25519PrivateKey:
        if self._key is None:
            self._key = device_key(self.home / KEY_FILE if self.home is not None else None)
        return self._key

    def forget(self) -> None:
        """Forgets key, memory, history and what was about to be told; whoever calls holds the home."""
        self.memory.clear()
        self.history.clear()
        DepartureLog(self.home).forget()
        self._speaker, self._key = None, None
        if self.home is not None:
            remove(self.home / KEY_FILE)

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[tuple[Circumstances, Stop]]:
        """Holds the home folder, and keeps the token that the device got, however its work ends."""
        with self._holding_home():
            self.stop = stop = Stop()
            self.memory.read_again()
            if self.memory.is_opted_out:
                raise OptedOutError(f"the user takes no part in {self.population!r}")
            try:
                yield self._circumstances(), stop
            finally:
                if self._speaker is not None:
                    self._store(lambda: self.memory.keep_enrolment(self.speaking().enrolment))

    @contextlib.contextmanager
    def _holding_home(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise BusyError("this device takes part already")
        try:
            with sole_use(self.home) if self.home is not None else contextlib.nullcontext():
                yield
        finally:
            self._in_use.release()

    @contextlib.contextmanager
    def waiting_for_home(self) -> Iterator[None]:
        """Holds the home folder as soon as whoever holds it has ended.

        Raises:
            BusyError: it does not end.
        """
        deadline = time.monotonic() + FORGETTING_SECONDS
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._holding_home())
                except BusyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_LOOK_SECONDS)
                else:
                    break
            yield

    def _circumstances(self) -> Circumstances:
        return Circumstances(
            population=self.population,
            floors=self.floors,
            speaker=self.speaking(),
            examples=self.examples,
            minimum_examples=self.memory.minimum_examples,
            cache=self.cache,
            entropy=self.entropy,
            clock=time.monotonic,
            wall_clock=time.time,
            patience=self.patience,
            memory_bytes=self.memory_bytes,
            device_class=self.device_class,
            unfinished=self.memory.unfinished,
            keep_unfinished=self.memory.keep_unfinished if self.home is not None else None,
            departures=DepartureLog(self.home),
        )

    def keep(self, ending: Ending, known: Circumstances) -> Participation:
        """Writes down how a participation ended; a full disk does not change that."""
        now = time.time()
        participation = replace(ending.participation, ended=now)
        rest = Rest(now, now + rest_after(participation, self.entropy))
        assignment = ending.assignment
        if assignment is not None:
            self._store(lambda: self.memory.keep_assignment(assignment))
        self._store(lambda: self.memory.keep_state(ending.minimum_examples, rest))
        if len(participation.receipt):
            self._store(lambda: self.history.add(participation))
        self._store(lambda: self.memory.keep_unfinished(None))
        if isinstance(known.departures, DepartureLog):
            self._store(known.departures.forget)
        import logging

        logging.getLogger(LOGGER).info(
            "participation ended: outcome=%r reason=%s task=%s round=%d attempt=%d shape=%s bytes_sent=%d",
            participation.outcome.value,
            participation.reason,
            participation.task,
            participation.round,
            participation.attempt,
            participation.shape,
            participation.receipt.bytes,
        )
        return participation

    def _store(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StorageFailedError as error:
            import logging

            logging.getLogger(LOGGER).warning("something of a participation could not be stored: %s", error)
