"""Recommends with what a participation left: the plan's own graphs and the checkpoint in the cache.

The way without a recommender file: slower to start, the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.calling import BLOB_LIMIT_BYTES, CALL_SECONDS, Line, Steps
from fedrecon.device_sdk.columns import map_examples, newest, rule_of
from fedrecon.device_sdk.errors import CallFailedError, DamagedBlobError, UnreachableError, UnusablePlanError
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.material import Material
from fedrecon.device_sdk.plans import rows_in_force
from fedrecon.device_sdk.recommender import Recommendation, Recommender, unknown_items
from fedrecon.device_sdk.requests import GET_RECOMMENDER, Compute
from fedrecon.device_sdk.runtime import reconstruct, score
from fedrecon.v1 import plan_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import Delta, GetRecommenderRequest, GetRecommenderResponse
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.deltas import MalformedDeltaError, apply_delta
from fedrecon.wire.digests import digest_of
from fedrecon.wire.keystream import SEED_BYTES

REFRESH_SECONDS = 3.0


def reconstruct_from(material: Material, columns: Mapping[str, NDArray[Any]], work: LocalWork) -> LocalParameters:
    """Returns a user's local parameters from a plan, a checkpoint and all of the user's examples.

    Initial values come from a seed of zeros, so equal examples give equal answers.
    """
    manifest = material.plan.manifest
    rows = rows_in_force(manifest, material.checkpoint)
    rules = [rule_of(field) for field in manifest.fields]
    mapped = newest(map_examples(rules, columns, material.vocabularies, rows), work.maximum_examples)
    return reconstruct(material.plan, material.checkpoint, mapped.columns, work, bytes(SEED_BYTES))


def recommend_from(
    material: Material,
    local: LocalParameters,
    columns: Mapping[str, NDArray[Any]],
    k: int,
    exclude: Iterable[str],
    *,
    exclude_seen: bool,
) -> list[Recommendation]:
    """Returns the best items for a user, best first.

    Raises:
        UnusablePlanError: the plan predicts from something else than one item and the user.
    """
    manifest = material.plan.manifest
    inputs = [field for field in manifest.fields if field.role == plan_pb2.FIELD_ROLE_INPUT]
    if len(inputs) != 1 or not inputs[0].vocabulary:
        raise UnusablePlanError(
            f"plan {manifest.name!r} predicts from {[field.name for field in inputs]}; a list of items can be ranked "
            "only where an item is all that it takes"
        )
    (item,) = inputs
    items = material.vocabularies[item.vocabulary]
    count = min(rows_in_force(manifest, material.checkpoint)[item.vocabulary], len(items.keys))
    scores = score(material.plan, material.checkpoint, local, {item.name: np.arange(count, dtype=np.int64)})
    seen = columns.get(item.name, ()) if exclude_seen else ()
    left_out = items.rows_of([*exclude, *(str(key) for key in seen)])
    allowed = np.ones(count, dtype=bool)
    allowed[left_out[(left_out >= 0) & (left_out < count)]] = False
    allowed[[row for row in items.retired if row < count]] = False
    ranked = np.argsort(-scores, kind="stable")
    best = ranked[allowed[ranked]][:k]
    return [Recommendation(items.keys[row], items.title_of(row), float(scores[row])) for row in best.tolist()]


def predict_from(
    material: Material, local: LocalParameters, candidates: Mapping[str, Sequence[Any]]
) -> NDArray[np.float32]:
    """Returns what a plan predicts for a user and each candidate.

    Raises:
        UnknownItemsError: a candidate names an item that the checkpoint has no row for.
        UnusablePlanError: the candidates lack a field that the plan predicts from, or hold a number that it refuses.
    """
    manifest = material.plan.manifest
    rules = [rule_of(field) for field in manifest.fields if field.role == plan_pb2.FIELD_ROLE_INPUT]
    columns = {name: np.asarray(values) for name, values in candidates.items()}
    count = len(next(iter(columns.values()), ()))
    mapped = map_examples(rules, columns, material.vocabularies, rows_in_force(manifest, material.checkpoint))
    if mapped.unknown_keys:
        raise unknown_items(mapped.unknown_keys)
    if mapped.left_out:
        raise UnusablePlanError(f"{mapped.left_out} of {count} candidates do not fit: {'; '.join(mapped.unfit)}")
    return score(material.plan, material.checkpoint, local, mapped.columns)


def fetch_recommender(line: Line, target: str, task: str, place: int) -> Steps[tuple[Recommender, int]]:
    """Returns the recommender of a task with its version, 0 for one that was not promoted.

    It is the live one, or the canary if this device's place is among those that get it: the device decides. Where the
    service does not answer it is the last one that was fetched.

    Raises:
        FedreconError: there is none, or it cannot be run here.
    """
    kept = line.cache.recall(f"recommender of {task}")
    before = GetRecommenderResponse.FromString(kept) if kept is not None else None
    if kept is not None:  # nobody waits long for a newer one
        line.patience = replace(line.patience, attempts=1)
    seconds = CALL_SECONDS if kept is None else REFRESH_SECONDS
    try:
        answer = yield from line.call(target, GET_RECOMMENDER, GetRecommenderRequest(task=task), seconds)
    except UnreachableError:
        if before is None:
            raise
        answer = before
    chosen = answer.canary.recommender if place < answer.canary.places else answer
    file = yield from _newer_file(line, target, chosen)
    items = yield from _blob(line, target, chosen.vocabulary, "items of the recommender")
    line.cache.note(f"recommender of {task}", answer.SerializeToString())
    return Recommender(file, items), chosen.version


def _newer_file(line: Line, target: str, chosen: GetRecommenderResponse) -> Steps[bytes]:
    """Returns the ONNX file: made of one that is here and a delta where there is such a thing, or fetched whole."""
    wanted = chosen.recommender
    if (yield Compute(lambda: line.cache.read(wanted.digest))) is None:
        for delta in chosen.deltas:
            known = delta.known
            old = yield Compute(lambda: line.cache.read(known))  # noqa: B023 - computed at once
            if old is not None:
                file = yield from _by_delta(line, target, old, delta, wanted)
                if file is not None:
                    return file
                break
    return (yield from _blob(line, target, wanted, "recommender"))


def _by_delta(line: Line, target: str, old: bytes, delta: Delta, wanted: BlobReference) -> Steps[bytes | None]:
    """Returns the ONNX file that a delta makes of an old one; None if it makes another, or cannot be had."""
    if not 0 <= wanted.size <= BLOB_LIMIT_BYTES or delta.blob.size >= wanted.size:
        return None
    try:
        difference = yield from _blob(line, target, delta.blob, "delta of the recommender")
        file: bytes = yield Compute(lambda: apply_delta(old, difference, wanted.size))
    except (CallFailedError, DamagedBlobError, MalformedDeltaError):
        return None  # the whole file is there as well
    if digest_of(file) != wanted.digest:
        return None
    yield Compute(lambda: line.cache.write(wanted.digest, file))
    return file


def _blob(line: Line, target: str, reference: BlobReference, what: str) -> Steps[bytes]:
    return (yield from line.fetch(target, reference, what))
