"""Plans, checkpoints and hyperparameters as a device holds them: read, checked against each other, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.device_sdk.graphs import Memo, RunnableGraph, runnable_graph
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Graph, GraphRole, Manifest
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import manifests
from fedrecon.wire.checkpoints import MismatchedCheckpointError, global_parameters
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import MalformedTensorsError, read_safetensors

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class WiredGraph:
    """A graph with what its inputs and outputs are, read out of the manifest once: it is run thousands of times.

    Attributes:
        runnable: the graph.
        inputs: name, `ValueSource` and reference of each.
        outputs: the same.
        takes_order: whether it runs batch by batch.
    """

    runnable: RunnableGraph
    inputs: tuple[tuple[str, int, str], ...]
    outputs: tuple[tuple[str, int, str], ...]
    takes_order: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that can be run.

    Attributes:
        digest: digest of its manifest.
        manifest: what it says of itself.
        graphs: its graphs by role.
        per_step: hyperparameters that have a value for each step.
    """

    digest: bytes
    manifest: Manifest
    graphs: Mapping[int, WiredGraph] = field(repr=False)
    per_step: frozenset[str] = frozenset()

    def runs(self, role: GraphRole.ValueType) -> bool:
        """Says whether the plan has a graph of this role."""
        return role in self.graphs


_plans: Memo[Plan] = Memo(16)


def load_plan(manifest_content: bytes, blob: Callable[[bytes], bytes]) -> Plan:
    """Returns a plan ready to run, the same object for the same manifest.

    Args:
        manifest_content: bytes of `manifest.json`.
        blob: gives the content of a digest, for the graphs.

    Raises:
        UnusablePlanError: the manifest or a graph cannot be read here.
    """
    digest = digest_of(manifest_content)
    return _plans.get(digest, lambda: _load(digest, manifest_content, blob))


def _load(digest: bytes, manifest_content: bytes, blob: Callable[[bytes], bytes]) -> Plan:
    try:
        manifest = manifests.read_manifest(manifest_content)
    except manifests.MalformedPlanError as error:
        raise UnusablePlanError(str(error)) from error
    graphs = {}
    for graph in manifest.graphs:
        name = manifests.role_names.get(graph.role, str(graph.role))
        runnable = runnable_graph(blob(graph.blob.digest), f"{manifest.name}/{name}", graph.blob.digest)
        graphs[int(graph.role)] = _wired(graph, runnable)
    per_step = frozenset(name for name, limits in manifest.hyperparameters.items() if limits.per_step)
    return Plan(digest, manifest, graphs, per_step)


def _wired(graph: Graph, runnable: RunnableGraph) -> WiredGraph:
    inputs, outputs = (
        tuple((value.name, int(value.source), value.reference) for value in values)
        for values in (graph.inputs, graph.outputs)
    )
    takes_order = any(source == plan_pb2.VALUE_SOURCE_ORDER for _, source, _ in inputs)
    return WiredGraph(runnable, inputs, outputs, takes_order)


def read_checkpoint(content: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Returns the global parameters of a checkpoint in their plan's types.

    Raises:
        UnusablePlanError: a parameter is missing, has another shape, or holds a value that is not finite.
    """
    try:
        return global_parameters(manifest, read_safetensors(content))
    except MalformedTensorsError as error:
        raise UnusablePlanError(f"the checkpoint cannot be read: {error}") from error
    except MismatchedCheckpointError as error:
        raise UnusablePlanError(f"checkpoint: {error}") from error


def rows_in_force(manifest: Manifest, checkpoint: Arrays) -> dict[str, int]:
    """Returns how many rows every vocabulary has in a checkpoint.

    Raises:
        UnusablePlanError: two parameters of one vocabulary have different numbers of rows.
    """
    rows: dict[str, int] = {}
    for parameter in manifest.parameters:
        if parameter.vocabulary and parameter.placement == plan_pb2.PLACEMENT_GLOBAL:
            count = len(checkpoint[parameter.name])
            if rows.setdefault(parameter.vocabulary, count) != count:
                raise UnusablePlanError(
                    f"checkpoint: parameters of vocabulary {parameter.vocabulary!r} have "
                    f"{rows[parameter.vocabulary]} and {count} rows"
                )
    return rows


def hyperparameters_of(manifest: Manifest, work: LocalWork) -> dict[str, float]:
    """Returns every hyperparameter: the task's value where it sets one, else the plan's.

    Raises:
        UnusablePlanError: the task names one that the plan lacks, or a value beyond its limits.
    """
    unknown = set(work.hyperparameters) - set(manifest.hyperparameters)
    if unknown:
        raise UnusablePlanError(
            f"the task sets {sorted(unknown)}; plan {manifest.name!r} has {sorted(manifest.hyperparameters)}",
            "tell the operator of the task",
        )
    values = {}
    for name, limits in manifest.hyperparameters.items():
        value = work.hyperparameters.get(name, limits.default_value)
        if not limits.minimum <= value <= limits.maximum:
            raise UnusablePlanError(
                f"hyperparameter {name} = {value} is beyond its limits {limits.minimum} to {limits.maximum}",
                "tell the operator of the task",
            )
        values[name] = value
    return values
