"""One round of a task in this process: what the services would make of the same reports, to the bit.

A device's part is the device SDK's own (`make_report`), a group's part the aggregator's own (`TrustedSum`, `combine`,
`apply`, `from_message`), and the layout the coordinator's own (`prepare`): there is no second arithmetic here, only
the way from one to the next without network, journal and clock.

Rules: nothing is drawn here, seeds are arguments; the order of clients and their spread over groups change nothing;
a client whose device could not have reported is an error and never left out. What coordination decides (who takes
part, how many reports are enough, whether a round is abandoned) is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedrecon.aggregator.group_events import Config
from fedrecon.aggregator.merging import ClosedSum, RoundSum, apply, combine
from fedrecon.aggregator.messages import config_of, protocol_of
from fedrecon.aggregator.optimizers import from_message
from fedrecon.coordinator.specs import Prepared, prepare, work_of
from fedrecon.device_sdk.material import Material, make_report
from fedrecon.device_sdk.plans import Plan, load_plan, read_checkpoint
from fedrecon.device_sdk.runtime import Seeds
from fedrecon.learning.planning.bundle import read_bundle
from fedrecon.ops.plan_folders import manifest_file
from fedrecon.v1.aggregator_pb2 import OpenRequest
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.v1.coordinator_pb2 import SESSION_KIND_TRAIN, Assignment
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_TRUSTED, SecureSum, TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, add, read_vector, zero
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from fedrecon.wire.vocabularies import Items, read_vocabulary

_LARGEST_VECTOR_BYTES = 1 << 40
"""The aggregator's limit is the room that it has for uploads; here nothing is uploaded."""


@dataclass(frozen=True, slots=True)
class RunnablePlan:
    """A plan with all that its rounds begin with.

    Attributes:
        plan: its manifest and graphs.
        vocabularies: by name.
        initial_checkpoint: the parameters of the first round, a safetensors file.
    """

    plan: Plan
    vocabularies: Mapping[str, Items]
    initial_checkpoint: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One device's part in a round, as an `ExampleSource` of the device SDK.

    Attributes:
        examples: by field, `[examples, ...]`, oldest first; items by the app's own keys.
        seeds: what the device draws for its session.
    """

    examples: Mapping[str, NDArray[Any]]
    seeds: Seeds

    def count(self) -> int:
        """Returns how many examples there are."""
        return len(next(iter(self.examples.values()), ()))

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Returns the examples by field."""
        return self.examples


@dataclass(frozen=True, slots=True, eq=False)
class CommittedRound:
    """What a round made.

    Attributes:
        total: the reports' integers, added modulo the rings.
        round_sum: the same in real numbers: mean updates, weight, metric sums, digest.
        checkpoint: the new parameters, a safetensors file.
        optimizer_state: the server optimizer's state after this round, the same.
    """

    total: Vector
    round_sum: RoundSum
    checkpoint: bytes
    optimizer_state: bytes


def open_plan(directory: Path) -> RunnablePlan:
    """Returns a compiled plan, checked and ready to run.

    Args:
        directory: its folder, as `compile_plan` writes it.

    Raises:
        PlanError: a file is missing or damaged, or the signature is wrong.
        UnusablePlanError: a graph cannot be read here.
        MalformedVocabularyError: a vocabulary cannot be read.
    """
    bundle = read_bundle(directory)
    return RunnablePlan(
        plan=load_plan(manifest_file(directory).read_bytes(), bundle.blobs.__getitem__),
        vocabularies={
            name: read_vocabulary(bundle.blobs[reference.digest])
            for name, reference in bundle.manifest.vocabularies.items()
        },
        initial_checkpoint=bundle.blobs[bundle.manifest.initial_checkpoint.digest],
    )


def run_round(
    runnable: RunnablePlan,
    checkpoint: bytes,
    optimizer_state: bytes | None,
    spec: TaskSpec,
    clients: Sequence[Client],
    *,
    round_number: int,
) -> CommittedRound:
    """Runs one training round.

    Args:
        runnable: the plan and the vocabularies in force.
        checkpoint: the parameters that it starts from, a safetensors file.
        optimizer_state: what the last round left, the same; None before the first.
        spec: the task, of which `work`, `bounds`, `secure_sum` and `optimizer` count.
        clients: whose reports the round counts, at least one.
        round_number: from 1; says how many epochs there are where the task lets them grow.

    Raises:
        ValueError: there are no clients.
        InvalidSpec: specification and plan do not fit.
        Refusal: the aggregator would not open such a round.
        FedreconError: a client's device could not have reported: too few examples, or training diverged.
        MismatchedCheckpointError: the checkpoint is another model's.
        OptimizerStateMismatchError: the state is another optimizer's or another model's.
        NotFiniteError: a new parameter would not be finite.
    """
    if not clients:
        raise ValueError("a round needs at least one client")
    manifest = runnable.plan.manifest
    prepared = prepare(spec, manifest, {name: len(items.keys) for name, items in runnable.vocabularies.items()})
    config = _config_of(runnable.plan, checkpoint, spec, prepared, len(clients))
    material = Material(runnable.plan, read_checkpoint(checkpoint, manifest), dict(runnable.vocabularies))
    assignment = Assignment(
        kind=SESSION_KIND_TRAIN,
        secure_sum=spec.secure_sum,
        work=work_of(spec, round_number),
        layout=prepared.layout,
    )
    size = config.maximum_reports
    sums = [
        _sum_group(clients[start : start + size], assignment, material, config)
        for start in range(0, len(clients), size)
    ]
    total = zero(config.fixed_point)
    for one in sums:
        add(total, one.total)
    round_sum = combine(sums, config)
    state = None if optimizer_state is None else read_safetensors(optimizer_state)
    after, kept = apply(round_sum, read_safetensors(checkpoint), from_message(spec.optimizer), state)
    return CommittedRound(total, round_sum, write_safetensors(after), write_safetensors(kept))


def _config_of(plan: Plan, checkpoint: bytes, spec: TaskSpec, prepared: Prepared, cohort_size: int) -> Config:
    """Returns what groups of this round would be opened for; round and attempt are no part of its arithmetic."""
    # Masks cancel: reports add up to the same without them, and in one process there is nobody to hide from.
    in_clear = SecureSum()
    in_clear.CopyFrom(spec.secure_sum)
    in_clear.protocol = SUM_PROTOCOL_TRUSTED
    request = OpenRequest(
        round=RoundKey(task=spec.name, round=1, attempt=1),
        kind=SESSION_KIND_TRAIN,
        secure_sum=in_clear,
        layout=prepared.layout,
        segment_elements=prepared.segment_elements,
        metrics=prepared.manifest.metrics,
        cohort_size=cohort_size,
        plan_digest=plan.digest,
        checkpoint_digest=digest_of(checkpoint),
    )
    return config_of(request, _LARGEST_VECTOR_BYTES)


def _sum_group(clients: Sequence[Client], assignment: Assignment, material: Material, config: Config) -> ClosedSum:
    """Returns the sum of one group's reports, each checked before it is added as the aggregator checks it."""
    fixed_point, protocol = config.fixed_point, protocol_of(config)
    total = zero(fixed_point)
    for client in clients:
        report = read_vector(make_report(assignment, material, client.columns(), client.seeds).vector, fixed_point)
        protocol.check(report)
        add(total, report)
    return ClosedSum(total, len(clients))
