"""A device: what an app embeds.

It takes part in training, reconstructs the user's local parameters, and recommends. Local parameters stay in this
process; what left the device is on the receipt. What the app insists on (`trusted_plans`, `secure_sum`, `min_group`,
`min_contributors`) is stated here and nowhere else: no server can lower it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience, Steps
from fedrecon.device_sdk.driving import Result, drive, run_blocking
from fedrecon.device_sdk.errors import BusyError, FedreconError, InvalidExampleError, OptedOutError
from fedrecon.device_sdk.examples import ExampleSource, OutcomeSource
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.history import History
from fedrecon.device_sdk.kinds import ClassName
from fedrecon.device_sdk.memory import Memory
from fedrecon.device_sdk.participant import Participant
from fedrecon.device_sdk.participation import Outcome, Participation
from fedrecon.device_sdk.personal import PersonalModel
from fedrecon.device_sdk.receipts import Receipt
from fedrecon.device_sdk.recommender import Recommendation
from fedrecon.device_sdk.session import Circumstances, Ending, take_part
from fedrecon.device_sdk.stopping import Stop, StoppableTransport
from fedrecon.device_sdk.transport import AsyncTransport, BlockingTransport, Transport

BLOBS_FOLDER = "blobs"
MEMORY_LIMIT_BYTES = 512 << 20


class Device:
    """One user's device.

    Args:
        server: target of the coordinator, `host:port`.
        population: name of the app's population.
        examples: the user's examples.
        home: folder for key, cache, memory and history; None keeps them in memory.
        trusted_plans: public keys of publishers whose plans may run, hexadecimal; empty: any.
        secure_sum: `"required"`: an update leaves only under a secure sum; `"allowed"`: also in clear.
        min_group: smallest group that is joined.
        min_contributors: devices that must be expected to update each row of a vocabulary that a report holds, by the
            task's own statement (a public row set); 0: any number. Default: 5 where a secure sum is required, since a
            row of one contributor gives away its user vector, else 0.
        authority: certificate authority of the services, PEM; None for plain connections.
        attest: asks the platform to vouch for this device, where the services want that: given the word of what is
            wanted and a challenge, returns the platform's answer.
        recommender: a recommender file that ships with the app.
        inference: target of an Inference service that names the live recommender.
        task: task whose recommender is wanted; the last one taken part in if not given, else the population's name.
        locals_key: 32 bytes under which reconstructed parameters are stored in `home`; None: they are never stored.
        memory_limit_bytes: an assignment that needs more is refused before anything of it is fetched.
        device_class: how well equipped the device is among the app's: `"low"`, `"middle"` or `"high"`. It is told at
            the end of a session, with the number of examples in three steps, so that operators see whom drop-out
            leaves out; None: neither is told.
        cache: blobs, to be shared by devices of one process; its own in `home` if not given.
        transport: for `participate_async`, to be shared by devices of one event loop; its own if not given. A blocking
            one, such as the fake of `fedrecon.device_sdk.testing`, serves every method.
        entropy: gives that many random bytes; only tests give another.
        patience: how long it goes on where a service does not answer.

    Example:
        >>> from fedrecon.device_sdk import Device, ExampleStore
        >>> device = Device("localhost:8470", "films", ExampleStore(":memory:"), min_group=20)
        >>> device.participate().outcome
        <Outcome.TOO_FEW_EXAMPLES: 'too few examples'>
        >>> print(device.receipt())
        nothing left the device
    """

    def __init__(
        self,
        server: str,
        population: str,
        examples: ExampleSource,
        *,
        home: Path | None = None,
        trusted_plans: Sequence[str] = (),
        secure_sum: Literal["required", "allowed"] = "required",
        min_group: int = 20,
        min_contributors: int | None = None,
        authority: bytes | None = None,
        attest: Callable[[str, bytes], bytes] | None = None,
        recommender: str | Path | None = None,
        inference: str | None = None,
        task: str = "",
        locals_key: bytes | None = None,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        device_class: ClassName | None = None,
        cache: BlobCache | None = None,
        transport: Transport | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        patience: Patience | None = None,
    ) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self._examples = examples
        self._authority = authority
        self._cache = cache or BlobCache(home / BLOBS_FOLDER if home is not None else None)
        self._owns_cache = cache is None
        self._transport = transport
        self._entropy = entropy
        self._patience = patience or Patience()
        self._memory = Memory(home)
        self._participant = Participant(
            server=server,
            population=population,
            examples=examples,
            home=home,
            floors=read_floors(trusted_plans, secure_sum, min_group, min_contributors),
            attest=attest,
            cache=self._cache,
            memory_bytes=memory_limit_bytes,
            device_class=device_class,
            entropy=entropy,
            patience=self._patience,
            memory=self._memory,
            history=History(home),
        )
        self._model = PersonalModel(
            examples,
            self._memory,
            self._fetch,
            population=population,
            file=recommender,
            inference=inference,
            task=task,
            place=self._participant.place,
            home=home,
            key=locals_key,
        )
        self._receipt = Receipt()

    def participate(self) -> Participation:
        """Takes part in training once, now, if the coordinator wants this device; waits until it is over.

        A session that a process began which then died is ended first: done again where that is safe, else given up.

        Returns:
            How it ended. Failures of network, services and plans are outcomes, not exceptions.

        Raises:
            StorageFailedError: the home folder cannot be written to.
        """
        try:
            with self._participant.taking_part() as (known, stop):
                return self._keep(self._block(take_part(known), stop), known)
        except (BusyError, OptedOutError) as error:
            return Participation(Outcome.NOT_NOW, error.reason, str(error))

    async def participate_async(self) -> Participation:
        """Takes part in training once, like `participate`, without blocking the event loop.

        Cancelling the task stops it, also inside a graph; the next participation ends the session.
        """
        try:
            with self._participant.taking_part() as (known, stop):
                if self._transport is not None:
                    return self._keep(await drive(take_part(known), StoppableTransport(self._transport, stop)), known)
                transport = AsyncTransport(self._authority)
                try:
                    return self._keep(await drive(take_part(known), StoppableTransport(transport, stop)), known)
                finally:
                    await transport.close()
        except (BusyError, OptedOutError) as error:
            return Participation(Outcome.NOT_NOW, error.reason, str(error))

    def stop(self, why: str = "the app asked") -> None:
        """Stops a participation that another thread runs, also within a step; nothing is lost by it.

        Args:
            why: for the participation's message.
        """
        self._participant.stop.ask(why)

    def rest_seconds(self) -> float:
        """Returns how long the device is to wait before it takes part again, as it was told; kept in `home`."""
        return self._memory.rest.seconds_left(time.time())

    def reconstruct(self) -> dict[str, NDArray[Any]]:
        """Returns the user's local parameters by name, of all examples. They are for the app alone.

        They are made once, and again when the examples or the model have changed.

        Raises:
            NoModelError: there is neither a recommender nor a plan.
            FedreconError: the model cannot be had or run.
        """
        return dict(self._model.reconstruct())

    def recommend(self, k: int, *, exclude_seen: bool = True, exclude: Iterable[str] = ()) -> list[Recommendation]:
        """Returns the best items for this user, best first; without examples, those for a new user.

        Args:
            k: how many, at least 1.
            exclude_seen: whether items of the examples are left out.
            exclude: keys left out besides.

        Raises:
            NoModelError: there is neither a recommender nor a plan.
            FedreconError: the model cannot be had or run.
        """
        return self._model.recommend(k, exclude, exclude_seen=exclude_seen)

    def predict(self, candidates: Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
        """Returns what the model predicts for this user and each candidate, `[candidates, ...] float32`.

        Args:
            candidates: values by field, items by their keys, for example `{"item": ["1193", "661"]}`.

        Raises:
            UnknownItemsError: the model does not know one of the items.
            NoModelError: there is neither a recommender nor a plan.
            FedreconError: the model cannot be had or run.
        """
        return self._model.predict(candidates)

    def record_outcome(self, shown: Sequence[str], chosen: Sequence[str] = ()) -> bool:
        """Keeps on this device how many recommendations were shown to the user, and how many of these chosen.

        Only the two numbers are kept, with the version that recommended; keys are not. They leave the device only as
        sums, in an evaluation of a task that asks for them, under the same secure sum as all reports.

        Args:
            shown: keys of one list that the user saw, each once.
            chosen: keys of those that the user took, each once.

        Returns:
            Whether it is kept: not before `recommend` had a promoted version of the Inference service.

        Raises:
            InvalidExampleError: something was chosen that was not shown, or a key is there twice.
            StorageFailedError: it cannot be written.
        """
        if len(set(shown)) < len(shown) or len(set(chosen)) < len(chosen) or not set(chosen) <= set(shown):
            raise InvalidExampleError("an outcome of keys that are there twice or were not shown", "give each key once")
        if not shown or not self._model.version or not isinstance(self._examples, OutcomeSource):
            return False
        self._examples.add_outcome(self._model.version, len(shown), len(chosen))
        return True

    def receipt(self) -> Receipt:
        """Returns all that left the device since its last participation began."""
        return self._receipt

    def history(self) -> tuple[Participation, ...]:
        """Returns the last hundred participations, the newest last, each with what left the device; kept in `home`."""
        return self._participant.history.read()

    @property
    def is_opted_out(self) -> bool:
        """Whether the user takes no part; kept in `home`, also when all else is forgotten."""
        return self._memory.is_opted_out

    def opt_out(self) -> None:
        """Takes no part from now on: what runs is stopped. Recommendations go on."""
        self._memory.keep_opted_out(is_opted_out=True)
        self.stop("the user opted out")

    def opt_in(self) -> None:
        """Takes part again."""
        self._memory.keep_opted_out(is_opted_out=False)

    def forget(self) -> bool:
        """Removes the user's examples, local parameters, history and receipt, the device's key, memory and own cache.

        A device that was enrolled asks the services first to forget its key and when it took part. The next
        participation is that of a new device. What was reported before cannot be called back: it is a part of sums.
        Examples of a source of the app's own are removed by its method `clear`, if it has one.

        Returns:
            Whether the services hold nothing of this device any more. Without an answer from them all is removed here
            all the same, and what they hold is good for nothing without the key, and runs out.

        Raises:
            BusyError: another process takes part with the same home and does not end.
        """
        self.stop("all is forgotten")
        with self._participant.waiting_for_home():
            is_forgotten = True
            if self._memory.enrolment is not None:
                try:
                    self._fetch(self._participant.speaking().forget)
                except FedreconError:
                    is_forgotten = False
            self._participant.forget()
            self._model.forget()
            self._receipt = Receipt()
            clear = getattr(self._examples, "clear", None)
            if clear is not None:
                clear()
            if self._owns_cache:
                self._cache.clear()
            return is_forgotten

    def _keep(self, ending: Ending, known: Circumstances) -> Participation:
        participation = self._participant.keep(ending, known)
        self._receipt = participation.receipt
        self._model.look_again()
        return participation

    def _block(self, core: Steps[Result], stop: Stop) -> Result:
        """Runs a core with a blocking transport."""
        if isinstance(self._transport, BlockingTransport):
            return run_blocking(drive(core, StoppableTransport(self._transport, stop)))
        transport = BlockingTransport(self._authority)
        try:
            return run_blocking(drive(core, StoppableTransport(transport, stop)))
        finally:
            transport.close()

    def _fetch(self, core: Callable[[Line], Steps[Result]], /) -> Result:
        """Runs a core outside a participation, and keeps the receipt of what it sends."""
        line = Line(time.monotonic, time.time, self._entropy, self._patience, self._cache)
        try:
            return self._block(core(line), Stop())
        finally:
            self._receipt = Receipt((*self._receipt, *line.departures))
