"""The service `Sums`: the coordinator's hand on the aggregators.

Rules: every call may be repeated, with the same outcome. `Merge` changes nothing but the blob store, and what it writes
follows from its arguments alone, so a merge that is repeated (elsewhere, or after a crash) gives the same digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fedrecon.aggregator import optimizers
from fedrecon.aggregator.attempts import Attempts
from fedrecon.aggregator.closed_sums import find_closed, read_closed
from fedrecon.aggregator.group_events import Config
from fedrecon.aggregator.growing import ShrunkError, grow
from fedrecon.aggregator.ingest import Staging
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.merging import (
    MismatchedCheckpointError,
    NotFiniteError,
    RoundSum,
    apply,
    combine,
)
from fedrecon.aggregator.messages import config_of, malformed, progress_of
from fedrecon.aggregator.optimizers import Optimizer, OptimizerStateMismatchError
from fedrecon.aggregator.privacy import Mechanism
from fedrecon.aggregator.refusals import taken_over
from fedrecon.aggregator.secure_sum import DamagedSumError
from fedrecon.aggregator.summing import Storage
from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.traces import Attempt, span
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    CloseResponse,
    GrowRequest,
    GrowResponse,
    MergeRequest,
    MergeResponse,
    OpenRequest,
    OpenResponse,
    StatusRequest,
    StatusResponse,
    WatchRequest,
    WatchResponse,
)
from fedrecon.v1.aggregator_pb2_grpc import SumsServicer
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.wire.digests import DIGEST_BYTES
from fedrecon.wire.manifests import MalformedPlanError, read_manifest
from fedrecon.wire.row_sets import MalformedRowSetError, read_row_set
from fedrecon.wire.tensors import MalformedTensorsError, read_safetensors, write_safetensors

_NOISE, _TREE_NOISE = b"fedrecon noise 1", b"fedrecon noise of trees 1"


class SumsService(SumsServicer):
    """Answers coordinators.

    Args:
        attempts: the sums.
        storage: where all aggregators keep theirs.
        staging: uploads on their way.
        blobs: checkpoints and optimizer states.
        target: where devices reach this aggregator, `host:port`.
        measures: what is counted.
        stopping: set when the process ends: watchers are sent away.
    """

    def __init__(
        self,
        attempts: Attempts,
        storage: Storage,
        staging: Staging,
        blobs: BlobStore,
        target: str,
        measures: Measures,
        stopping: asyncio.Event,
    ) -> None:
        self._attempts = attempts
        self._storage = storage
        self._staging = staging
        self._blobs = blobs
        self._target = target
        self._measures = measures
        self._stopping = stopping

    async def Open(self, request: OpenRequest, context: Any) -> OpenResponse:  # noqa: N802 - the contract's name
        """Opens the groups of an attempt."""
        del context
        config = config_of(request, self._staging.limit_bytes)
        with span("open", config.traced, devices=config.cohort_size):
            attempt = await self._attempts.open(config)
        return OpenResponse(groups=[one.group.group for one in attempt.summings], aggregator=self._target)

    async def Close(self, request: CloseRequest, context: Any) -> CloseResponse:  # noqa: N802
        """Ends the attempt's uploads, or gives the attempt up."""
        del context
        attempt = self._attempts.find(request.round)
        with span("close", attempt.config.traced, discard=request.discard):
            await asyncio.gather(*(one.end(discard=request.discard) for one in attempt.summings))
        if attempt.has_moved:
            raise taken_over()
        self._staging.drop_part(attempt.config.key)
        return CloseResponse(groups=progress_of(attempt))

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:  # noqa: N802
        """Streams an attempt's progress."""
        del context
        attempt = self._attempts.find(request.round)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while True:
                version = attempt.version
                if attempt.has_moved:
                    raise taken_over()
                yield WatchResponse(groups=progress_of(attempt))
                if attempt.ended:
                    return
                change = asyncio.create_task(attempt.changed(version))
                await asyncio.wait({change, stopping}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if stopping.done():
                    return
        finally:
            stopping.cancel()

    async def Merge(self, request: MergeRequest, context: Any) -> MergeResponse:  # noqa: N802
        """Makes a new checkpoint out of closed groups."""
        del context
        merged = request.round
        with span("merge", Attempt(merged.task, merged.round, merged.attempt), groups=len(request.groups)):
            return await self._merge(request)

    async def _merge(self, request: MergeRequest) -> MergeResponse:
        if self._attempts.is_without_sums(request.round):
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "EXPIRED",
                "The attempt has expired: its sums were removed.",
                "Open the next attempt; if this one should not have expired yet, compare the clocks.",
            )
        closed = await find_closed(self._attempts, self._storage, request)
        optimizer = _optimizer_of(closed.config, request)
        mechanism = _mechanism_of(closed.config, request, self._storage.snapshots.noise_key)
        try:
            sums = await read_closed(self._attempts, self._storage, request.round, closed)
            round_sum = await asyncio.to_thread(combine, sums, closed.config, mechanism)
        except DamagedSumError as error:
            raise Refusal(
                grpc.StatusCode.DATA_LOSS,
                "DAMAGED_SUM",
                f"Nothing is merged: {error}.",
                "Discard the attempt and open the next; look for what writes where sums lie.",
            ) from error
        if round_sum.reports < max(1, request.minimum_reports):
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "TOO_FEW_REPORTS",
                f"The sums hold {round_sum.reports} reports; {request.minimum_reports} are wanted.",
                "Discard the attempt and open the next.",
            )
        response = MergeResponse(
            reports=round_sum.reports,
            weight=round_sum.weight,
            metric_sums=round_sum.metric_sums,
            update_norm=round_sum.update_norm,
            sum_digest=round_sum.sum_digest,
            clip_norm=round_sum.clip_norm,
        )
        await asyncio.to_thread(self._write, request, closed.config, round_sum, optimizer, response)
        if optimizer is not None:
            self._measures.sum_norm.labels(task=request.round.task).set(round_sum.update_norm)
        return response

    async def Status(self, request: StatusRequest, context: Any) -> StatusResponse:  # noqa: N802
        """Tells how much is at work here."""
        del request, context
        return StatusResponse(aggregator=self._target, open_groups=self._attempts.open_groups)

    async def Grow(self, request: GrowRequest, context: Any) -> GrowResponse:  # noqa: N802
        """Appends rows for new items to a checkpoint and its optimizer state."""
        del context
        return await asyncio.to_thread(self._grow, request)

    def _grow(self, request: GrowRequest) -> GrowResponse:
        try:
            manifest = read_manifest(self._blobs.read(request.plan_digest))
            optimizer = optimizers.from_message(request.optimizer)
        except (BlobMissing, MalformedPlanError) as error:
            raise _unknown_blob(request.plan_digest, "plan") from error
        except ValueError as error:
            raise malformed(f"the server optimizer: {error}") from error
        checkpoint = self._read(request.checkpoint_digest, "checkpoint")
        digest = request.optimizer_state_digest
        state = self._read(digest, "optimizer state") if digest else None
        rows = {
            parameter.name: request.rows[parameter.vocabulary]
            for parameter in manifest.parameters
            if parameter.vocabulary in request.rows and parameter.name in checkpoint
        }
        try:
            after, kept = grow(checkpoint, state, rows, optimizer)
        except (ShrunkError, KeyError) as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "STATE_MISMATCH",
                f"Nothing is grown: {error}.",
                "Rows are appended and retired, never removed; name what belongs together.",
            ) from error
        return GrowResponse(checkpoint=self._put(after), optimizer_state=None if kept is None else self._put(kept))

    def _write(
        self,
        request: MergeRequest,
        config: Config,
        round_sum: RoundSum,
        optimizer: Optimizer | None,
        response: MergeResponse,
    ) -> None:
        """Writes checkpoint and state, and says which they are; runs in a thread."""
        if optimizer is None:  # an evaluation: all stays as it was
            response.checkpoint.CopyFrom(self._reference(request.checkpoint_digest))
            if request.optimizer_state_digest:
                response.optimizer_state.CopyFrom(self._reference(request.optimizer_state_digest))
            return
        checkpoint = self._read(request.checkpoint_digest, "checkpoint")
        state = None
        if request.optimizer_state_digest:
            state = self._read(request.optimizer_state_digest, "optimizer state")
        try:
            after, kept = apply(round_sum, checkpoint, optimizer, state, self._rows_of(config))
        except (MismatchedCheckpointError, OptimizerStateMismatchError) as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "STATE_MISMATCH",
                f"Nothing is merged: {error}.",
                "Name the checkpoint, the state and the optimizer that belong together.",
            ) from error
        except NotFiniteError as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_FINITE",
                f"Nothing is merged: {error}.",
                "Discard the attempt, and change the task's rates before the next.",
            ) from error
        response.checkpoint.CopyFrom(self._put(after))
        response.optimizer_state.CopyFrom(self._put(kept))

    def _rows_of(self, config: Config) -> dict[str, NDArray[np.int64]]:
        """Returns the rows that an attempt's sums hold, by parameter; those of row sets only."""
        named = {one.parameter: one.row_set_digest for one in config.segments if one.row_set_digest}
        read = {digest: self._read_row_set(digest) for digest in set(named.values())}
        return {parameter: read[digest] for parameter, digest in named.items()}

    def _read_row_set(self, digest: bytes) -> NDArray[np.int64]:
        try:
            return read_row_set(self._content(digest, "row set")).rows
        except MalformedRowSetError as error:
            raise malformed(str(error)) from error

    def _read(self, digest: bytes, what: str) -> dict[str, NDArray[Any]]:
        try:
            return read_safetensors(self._content(digest, what))
        except MalformedTensorsError as error:
            raise malformed(f"the {what} is no safetensors file: {error}") from error

    def _content(self, digest: bytes, what: str) -> bytes:
        try:
            return self._blobs.read(digest)
        except (BlobMissing, ValueError) as error:
            raise _unknown_blob(digest, what) from error
        except CorruptBlob as error:
            raise Refusal(
                grpc.StatusCode.DATA_LOSS,
                "CORRUPT_BLOB",
                f"The {what} {digest.hex()} is damaged.",
                "Put it into the blob store again, and check the disk.",
            ) from error

    def _reference(self, digest: bytes) -> BlobReference:
        size = self._blobs.size(digest)
        if size is None:
            raise _unknown_blob(digest, "checkpoint")
        return BlobReference(digest=digest, size=size)

    def _put(self, tensors: dict[str, NDArray[Any]] | dict[str, NDArray[np.float32]]) -> BlobReference:
        content = write_safetensors(tensors)
        return BlobReference(digest=self._blobs.put(content), size=len(content))


def _optimizer_of(config: Config, request: MergeRequest) -> Optimizer | None:
    """Returns the server optimizer; None for an evaluation.

    Raises:
        Refusal: its numbers make no sense.
    """
    if not config.segments:
        return None
    try:
        return optimizers.from_message(request.optimizer)
    except ValueError as error:
        raise malformed(f"the server optimizer: {error}") from error


def _mechanism_of(config: Config, request: MergeRequest, noise_key: bytes) -> Mechanism | None:
    """Returns how the sum is made private; None if the task asks for no privacy.

    The seed follows from the groups, whose ids are random: the same merge has the same noise, another has another. With
    noise in a tree it follows from the names of its nodes.

    Raises:
        Refusal: its numbers make no sense.
    """
    if not request.HasField("privacy"):
        return None
    privacy = request.privacy
    if any(len(name) != DIGEST_BYTES for name in (request.noise_added or bytes(DIGEST_BYTES), *request.noise_removed)):
        raise malformed("nodes of noise are named by 32 bytes")
    if request.noise_added:
        seed = hmac.digest(noise_key, _TREE_NOISE + request.noise_added, hashlib.sha256)
    else:
        seed = hmac.digest(noise_key, _NOISE + b"".join(sorted(request.groups)), hashlib.sha256)
    mechanism = Mechanism(
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=request.clip_norm,
        clip_quantile=privacy.clip_quantile,
        denominator=request.denominator,
        seed=seed,
        removed=tuple(hmac.digest(noise_key, _TREE_NOISE + name, hashlib.sha256) for name in request.noise_removed),
    )
    positive = (mechanism.noise_multiplier, mechanism.clip_norm, float(mechanism.denominator))
    if not all(0 < number < float("inf") for number in positive) or config.maximum_weight != 1 or not config.segments:
        raise malformed("privacy needs noise, a clip norm, a denominator, reports that weigh one, and an update")
    try:
        _ = mechanism.update_multiplier
    except ValueError as error:
        raise malformed(str(error)) from error
    return mechanism


def _unknown_blob(digest: bytes, what: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_BLOB",
        f"The {what} {digest.hex()} is not in the blob store.",
        "Give coordinator and aggregator the same FEDRECON_BLOBS_URL.",
    )
