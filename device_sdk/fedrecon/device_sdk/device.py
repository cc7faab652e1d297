"""A device: what an app embeds.

It takes part in training, reconstructs the user's local parameters, and recommends. Local parameters stay in this
process; what left the device is on the receipt. What the app insists on (`trusted_plans`, `secure_sum`, `min_group`,
`min_contributors`) is stated here and nowhere else: no server can lower it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience, Steps
from fedrecon.device_sdk.driving import Result, drive, run_blocking
from fedrecon.device_sdk.errors import FedreconError, NoModelError, UnreachableError
from fedrecon.device_sdk.examples import ExampleSource
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.identity import device_key, public_bytes
from fedrecon.device_sdk.material import Material, fetch_material
from fedrecon.device_sdk.memory import Memory
from fedrecon.device_sdk.participation import Participation
from fedrecon.device_sdk.receipts import Receipt
from fedrecon.device_sdk.recommender import Recommendation, Recommender
from fedrecon.device_sdk.serving import fetch_recommender, recommend_from, reconstruct_from
from fedrecon.device_sdk.session import Circumstances, Ending, take_part
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.device_sdk.transport import AsyncTransport, BlockingTransport, Transport

KEY_FILE, BLOBS_FOLDER = "device.key", "blobs"


class Device:
    """One user's device.

    Args:
        server: target of the coordinator, `host:port`.
        population: name of the app's population.
        examples: the user's examples.
        home: folder for key, cache and memory; None keeps them in memory.
        trusted_plans: public keys of publishers whose plans may run, hexadecimal; empty: any.
        secure_sum: `"required"`: an update leaves only under a secure sum; `"allowed"`: also in clear.
        min_group: smallest group that is joined.
        min_contributors: devices that must be expected to update each row of a vocabulary that a report holds, by the
            task's own statement (a public row set); 0 asks for none. A matrix factorisation wants 5.
        authority: certificate authority of the services, PEM; None for plain connections.
        attest: asks the platform to vouch for this device, where the services want that: given the word of what is
            wanted and a challenge, returns the platform's answer.
        recommender: a recommender file that ships with the app.
        inference: target of an Inference service that names the live recommender.
        task: task whose recommender is wanted; the last one taken part in if not given, else the population's name.
        cache: blobs, to be shared by devices of one process; its own in `home` if not given.
        transport: for `participate_async`, to be shared by devices of one event loop; its own if not given.
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
        min_contributors: int = 0,
        authority: bytes | None = None,
        attest: Callable[[str, bytes], bytes] | None = None,
        recommender: str | Path | None = None,
        inference: str | None = None,
        task: str = "",
        cache: BlobCache | None = None,
        transport: Transport | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        patience: Patience | None = None,
    ) -> None:
        self._server = server
        self._population = population
        self._examples = examples
        self._home = home
        self._floors = read_floors(trusted_plans, secure_sum, min_group, min_contributors)
        self._authority = authority
        self._attest = attest
        self._recommender_file = recommender
        self._inference = inference
        self._task = task
        self._cache = cache or BlobCache(home / BLOBS_FOLDER if home is not None else None)
        self._owns_cache = cache is None
        self._transport = transport
        self._entropy = entropy
        self._patience = patience or Patience()
        self._memory = Memory(home)
        self._speaker: Speaker | None = None
        self._recommender: Recommender | None = None
        self._receipt = Receipt()

    def participate(self) -> Participation:
        """Takes part in training once, if the coordinator wants this device; waits until it is over.

        Returns:
            How it ended. Failures of network, services and plans are outcomes, not exceptions.
        """
        with self._remembering():
            return self._keep(self._block(take_part(self._circumstances())))

    async def participate_async(self) -> Participation:
        """Takes part in training once, like `participate`, without blocking the event loop."""
        with self._remembering():
            if self._transport is not None:
                return self._keep(await drive(take_part(self._circumstances()), self._transport))
            transport = AsyncTransport(self._authority)
            try:
                return self._keep(await drive(take_part(self._circumstances()), transport))
            finally:
                await transport.close()

    def reconstruct(self) -> dict[str, NDArray[Any]]:
        """Returns the user's local parameters by name, made now from all examples. They are for the app alone.

        Raises:
            NoModelError: there is neither a recommender nor a plan.
            FedreconError: the model cannot be had or run.
        """
        columns = self._examples.columns()
        recommender = self._find_recommender()
        if recommender is not None:
            return dict(recommender.reconstruct(columns))
        assignment, material = self._material()
        return dict(reconstruct_from(material, columns, assignment.work))

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
        columns = self._examples.columns()
        recommender = self._find_recommender()
        if recommender is not None:
            return recommender.recommend(columns, k, exclude=exclude, exclude_seen=exclude_seen)
        assignment, material = self._material()
        return recommend_from(material, columns, assignment.work, k, exclude, exclude_seen=exclude_seen)

    def receipt(self) -> Receipt:
        """Returns all that left the device since its last participation began."""
        return self._receipt

    def forget(self) -> bool:
        """Removes the device's key, its memory, its receipt and its own cache; the app's examples stay its own.

        A device that was enrolled asks the services first to forget its key and when it took part. The next
        participation is that of a new device. What was reported before cannot be called back: it is a part of sums.

        Returns:
            Whether the services hold nothing of this device any more. Without an answer from them all is removed here
            all the same, and what they hold is good for nothing without the key, and runs out.
        """
        is_forgotten = True
        if self._memory.enrolment is not None:
            try:
                self._fetch(self._speaking().forget)
            except FedreconError:
                is_forgotten = False
        self._memory.clear()
        self._receipt = Receipt()
        self._speaker, self._recommender = None, None
        if self._owns_cache:
            self._cache.clear()
        if self._home is not None:
            (self._home / KEY_FILE).unlink(missing_ok=True)
        return is_forgotten

    def _circumstances(self) -> Circumstances:
        return Circumstances(
            population=self._population,
            floors=self._floors,
            speaker=self._speaking(),
            examples=self._examples,
            minimum_examples=self._memory.minimum_examples,
            cache=self._cache,
            entropy=self._entropy,
            clock=time.monotonic,
            wall_clock=time.time,
            patience=self._patience,
        )

    def _speaking(self) -> Speaker:
        if self._speaker is None:
            key = device_key(self._home / KEY_FILE if self._home is not None else None)
            enrolment = self._memory.enrolment
            self._speaker = Speaker(self._server, public_bytes(key), key.sign, self._attest, enrolment)
        return self._speaker

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """Keeps the token that the device got, however its work ends."""
        try:
            yield
        finally:
            self._memory.keep_enrolment(None if self._speaker is None else self._speaker.enrolment)

    def _keep(self, ending: Ending) -> Participation:
        self._memory.keep(ending.minimum_examples, ending.assignment)
        self._receipt = ending.participation.receipt
        if self._inference is not None:
            self._recommender = None  # there may be a newer one
        return ending.participation

    def _block(self, core: Steps[Result]) -> Result:
        """Runs a core with a blocking transport of its own."""
        transport = BlockingTransport(self._authority)
        try:
            return run_blocking(drive(core, transport))
        finally:
            transport.close()

    def _fetch(self, core: Callable[[Line], Steps[Result]]) -> Result:
        """Runs a core outside a participation, and keeps the receipt of what it sends."""
        line = Line(time.monotonic, time.time, self._entropy, self._patience, self._cache)
        try:
            return self._block(core(line))
        finally:
            self._receipt = Receipt((*self._receipt, *line.departures))

    def _find_recommender(self) -> Recommender | None:
        """Returns the app's recommender file, or the live one of the Inference service; None if there is neither."""
        if self._recommender is None and self._recommender_file is not None:
            self._recommender = Recommender(self._recommender_file)
        inference = self._inference
        if self._recommender is None and inference is not None:
            last = self._memory.assignment
            task = self._task or (last.round.task if last is not None else self._population)
            try:
                self._recommender = self._fetch(lambda line: fetch_recommender(line, inference, task))
            except UnreachableError:
                if last is None:
                    raise
        return self._recommender

    def _material(self) -> tuple[Any, Material]:
        """Returns the last assignment with its plan and checkpoint."""
        assignment = self._memory.assignment
        if assignment is None:
            raise NoModelError(f"this device of {self._population!r} has no recommender and never took part")
        return assignment, self._fetch(lambda line: fetch_material(assignment, line))
