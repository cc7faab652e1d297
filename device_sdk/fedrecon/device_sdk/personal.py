"""The model that serves one user: found once, reconstructed once, and both again when data or model have changed.

A recommender file or the live recommender come first, else the plan and checkpoint of the last participation, which
are in the cache: no network is needed. If those are damaged and cannot be fetched, the ones before serve. Stored local
parameters are sealed under the app's key (`sealing`); without a key they live in this process only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.calling import Line, Steps
from fedrecon.device_sdk.errors import FedreconError, NoModelError, StorageFailedError, UnreachableError
from fedrecon.device_sdk.examples import ExampleSource
from fedrecon.device_sdk.files import remove, write_atomically
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.material import Material, fetch_material
from fedrecon.device_sdk.memory import Memory
from fedrecon.device_sdk.recommender import Recommendation, Recommender
from fedrecon.device_sdk.sealing import SEALING_KEY_BYTES, open_sealed, seal
from fedrecon.device_sdk.serving import fetch_recommender, predict_from, recommend_from, reconstruct_from
from fedrecon.v1.coordinator_pb2 import Assignment

Result = TypeVar("Result")

SEALED_FILE = "locals.sealed"


class Fetch(Protocol):
    """Runs a core outside a participation."""

    def __call__(self, core: Callable[[Line], Steps[Result]], /) -> Result:
        """Returns what the core returns."""
        ...


class PersonalModel:
    """Serves one user.

    Args:
        examples: the user's.
        memory: of the last participations.
        fetch: gets what is not in the cache.
        population: named in errors, and the task's name where nothing else is known.
        file: a recommender file that ships with the app.
        inference: target of an Inference service that names the live recommender.
        task: task whose recommender is wanted.
        place: this device's place among those that may get a task's canary.
        home: where sealed local parameters lie.
        key: seals them; None: they are not stored.

    Raises:
        ValueError: the key has not 32 bytes.
    """

    def __init__(
        self,
        examples: ExampleSource,
        memory: Memory,
        fetch: Fetch,
        *,
        population: str,
        file: str | Path | None,
        inference: str | None,
        task: str,
        place: Callable[[str], int],
        home: Path | None,
        key: bytes | None,
    ) -> None:
        if key is not None and len(key) != SEALING_KEY_BYTES:
            raise ValueError(f"locals_key has {len(key)} bytes; it must have {SEALING_KEY_BYTES}")
        self._examples, self._memory, self._fetch = examples, memory, fetch
        self._population, self._file, self._inference, self._task = population, file, inference, task
        self._place = place
        self._sealed = None if home is None else home / SEALED_FILE
        self._key = key
        self._recommender: Recommender | None = None
        self._version = 0
        self._material: tuple[bytes, Material] | None = None
        self._local: tuple[bytes, LocalParameters] | None = None

    def look_again(self) -> None:
        """Lets the next call ask for a newer recommender."""
        if self._inference is not None:
            self._recommender = None

    def forget(self) -> None:
        """Forgets what was reconstructed, also on disk, and the model."""
        self._recommender, self._material, self._local, self._version = None, None, None, 0
        if self._sealed is not None:
            remove(self._sealed)

    @property
    def version(self) -> int:
        """Version of what recommends; 0: nothing that was promoted does, or nothing was asked for yet."""
        return self._version

    def reconstruct(self) -> LocalParameters:
        """Returns the user's local parameters: those made before, as long as examples and model are the same."""
        columns = self._examples.columns()
        recommender = self._find_recommender()
        if recommender is not None:
            return self._once(recommender.digest, columns, lambda: recommender.reconstruct(columns))
        return self._reconstructed(*self._find_material(), columns)

    def recommend(self, k: int, exclude: Iterable[str], *, exclude_seen: bool) -> list[Recommendation]:
        """Returns the best items for the user, best first."""
        columns = self._examples.columns()
        recommender = self._find_recommender()
        if recommender is not None:
            return recommender.recommend(columns, k, exclude=exclude, exclude_seen=exclude_seen)
        assignment, material = self._find_material()
        local = self._reconstructed(assignment, material, columns)
        return recommend_from(material, local, columns, k, exclude, exclude_seen=exclude_seen)

    def predict(self, candidates: Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
        """Returns what the model predicts for the user and each candidate."""
        recommender = self._find_recommender()
        if recommender is not None:
            return recommender.predict(self._examples.columns(), candidates)
        assignment, material = self._find_material()
        local = self._reconstructed(assignment, material, self._examples.columns())
        return predict_from(material, local, candidates)

    def _reconstructed(
        self, assignment: Assignment, material: Material, columns: Mapping[str, NDArray[Any]]
    ) -> LocalParameters:
        work = assignment.work
        model = _model_of(assignment) + work.SerializeToString(deterministic=True)
        return self._once(model, columns, lambda: reconstruct_from(material, columns, work))

    def _once(
        self, model: bytes, columns: Mapping[str, NDArray[Any]], make: Callable[[], LocalParameters]
    ) -> LocalParameters:
        """Returns local parameters that were made of the same before, in this process or stored; else makes them."""
        made_of = hashlib.sha256(model + _digest_of(columns)).digest()
        if self._local is not None and self._local[0] == made_of:
            return self._local[1]
        local = self._stored(made_of)
        if local is None:
            local = make()
            self._store(local, made_of)
        self._local = made_of, local
        return local

    def _stored(self, made_of: bytes) -> LocalParameters | None:
        if self._key is None or self._sealed is None:
            return None
        try:
            return open_sealed(self._key, self._sealed.read_bytes(), made_of)
        except FileNotFoundError:
            return None

    def _store(self, local: LocalParameters, made_of: bytes) -> None:
        if self._key is None or self._sealed is None:
            return
        try:
            write_atomically(self._sealed, seal(self._key, local, made_of))
        except StorageFailedError:  # they are made again when they are wanted
            self._sealed.unlink(missing_ok=True)

    def _find_recommender(self) -> Recommender | None:
        """Returns the app's recommender file, or the live one of the Inference service; None if there is neither."""
        if self._recommender is None and self._file is not None:
            self._recommender = Recommender(self._file)
        inference = self._inference
        if self._recommender is None and inference is not None:
            last = self._memory.assignment
            task = self._task or (last.round.task if last is not None else self._population)
            try:
                place = self._place(task)
                self._recommender, self._version = self._fetch(
                    lambda line: fetch_recommender(line, inference, task, place)
                )
            except UnreachableError:
                if last is None:
                    raise
        return self._recommender

    def _find_material(self) -> tuple[Assignment, Material]:
        """Returns the last assignment whose plan and checkpoint can be had and run, with both."""
        newest, before = self._memory.assignment, self._memory.assignment_before
        if newest is None:
            raise NoModelError(f"this device of {self._population!r} has no recommender and never took part")
        try:
            return newest, self._load(newest)
        except FedreconError:
            if before is None:
                raise
            try:
                return before, self._load(before)
            except FedreconError:
                pass
            raise

    def _load(self, assignment: Assignment) -> Material:
        model = _model_of(assignment)
        if self._material is None or self._material[0] != model:
            self._material = model, self._fetch(lambda line: fetch_material(assignment, line))
        return self._material[1]


def _model_of(assignment: Assignment) -> bytes:
    vocabularies = b"".join(each.digest for _, each in sorted(assignment.vocabularies.items()))
    return assignment.plan.digest + assignment.checkpoint.digest + vocabularies


def _digest_of(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns a digest of examples: another one when any value, order or field is another."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        is_text = column.dtype.kind in "OUS"
        content = json.dumps(column.tolist()).encode() if is_text else np.ascontiguousarray(column).tobytes()
        digest.update(f"{name}\0{column.dtype.kind}\0{column.shape}\0{len(content)}\0".encode() + content)
    return digest.digest()
