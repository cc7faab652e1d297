"""From an assignment to a report: what is fetched, and what is made of it on the device.

Part of the core: fetching yields requests, making is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from fedrecon.device_sdk.calling import Line, Steps
from fedrecon.device_sdk.clipping import clip
from fedrecon.device_sdk.columns import map_examples, newest, rule_of
from fedrecon.device_sdk.errors import TooFewExamplesError, UnusablePlanError
from fedrecon.device_sdk.graphs import Memo
from fedrecon.device_sdk.plans import Arrays, Plan, load_plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.requests import Compute
from fedrecon.device_sdk.restricting import restrict
from fedrecon.device_sdk.runtime import Seeds, agreement, report_vector, train
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.v1.plan_pb2 import Layout, Manifest
from fedrecon.wire import manifests
from fedrecon.wire.fixed_point import WITHIN_CLIP_BOUND, FixedPoint
from fedrecon.wire.outcomes import outcome_metrics, outcome_sums
from fedrecon.wire.row_sets import MalformedRowSetError, RowSet, read_row_set
from fedrecon.wire.spread import spread_metrics, spread_sums
from fedrecon.wire.vocabularies import Items, MalformedVocabularyError, read_vocabulary

_vocabularies: Memo[Items] = Memo(16)


@dataclass(frozen=True, slots=True)
class Material:
    """An assignment's plan, checkpoint, vocabularies and public row sets (by digest), ready for use."""

    plan: Plan
    checkpoint: dict[str, NDArray[Any]]
    vocabularies: dict[str, Items]
    row_sets: dict[bytes, RowSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What is about to leave the device."""

    vector: bytes
    fixed_point: FixedPoint
    examples: int
    unknown_keys: tuple[str, ...]


def fetch_material(assignment: Assignment, line: Line) -> Steps[Material]:
    """Returns an assignment's plan, checkpoint, vocabularies and row sets, from the cache or from its Blobs service.

    Raises:
        FedreconError: one of them cannot be had, or cannot be run here.
    """
    target = assignment.blobs or assignment.aggregator
    content = yield from line.fetch(target, assignment.plan, "plan")
    manifest: Manifest = yield Compute(lambda: _read_manifest(content))
    parts = {}
    for graph in manifest.graphs:
        parts[graph.blob.digest] = yield from line.fetch(target, graph.blob, f"graph of plan {manifest.name!r}")
    stored = yield from line.fetch(target, assignment.checkpoint, "checkpoint")
    named: dict[str, BlobReference] = {**manifest.vocabularies, **assignment.vocabularies}
    used = {parameter.vocabulary for parameter in manifest.parameters} | {each.vocabulary for each in manifest.fields}
    texts = {}
    for name in sorted(used - {""}):
        if name not in named:
            raise UnusablePlanError(f"plan {manifest.name!r} uses the vocabulary {name!r}, which nothing names")
        texts[name] = yield from line.fetch(target, named[name], f"vocabulary {name!r}")
    sets = {}
    for name, reference in sorted(assignment.row_sets.items()):
        sets[reference.digest] = yield from line.fetch(target, reference, f"row set of {name!r}")

    def make() -> Material:
        plan = load_plan(content, lambda digest: parts[digest])
        vocabularies = {name: _vocabulary(text, named[name].digest) for name, text in texts.items()}
        row_sets = {digest: _row_set(content) for digest, content in sets.items()}
        return Material(plan, read_checkpoint(stored, plan.manifest), vocabularies, row_sets)

    material: Material = yield Compute(make)
    return material


def _read_manifest(content: bytes) -> Manifest:
    try:
        return manifests.read_manifest(content)
    except manifests.MalformedPlanError as error:
        raise UnusablePlanError(str(error)) from error


def _vocabulary(content: bytes, digest: bytes) -> Items:
    try:
        return _vocabularies.get(digest, lambda: read_vocabulary(content))
    except MalformedVocabularyError as error:
        raise UnusablePlanError(str(error)) from error


def _row_set(content: bytes) -> RowSet:
    try:
        return read_row_set(content)
    except MalformedRowSetError as error:
        raise UnusablePlanError(str(error), "tell the operator of the task") from error


def make_report(
    assignment: Assignment,
    material: Material,
    columns: Arrays,
    seeds: Seeds,
    outcomes: Mapping[int, tuple[int, int]] | None = None,
) -> Report:
    """Returns what a device reports.

    Args:
        assignment: what is asked.
        material: what it names.
        columns: the app's examples by field, oldest first.
        seeds: randomness of the session.
        outcomes: recommendations shown, and chosen of these, by version of what is served; None: the app keeps none.

    Raises:
        TooFewExamplesError: the model knows too few of the examples.
        UnusablePlanError: the plan does not run on them.
        DivergedError: a result is not finite.
    """
    manifest, work = material.plan.manifest, assignment.work
    rules = [rule_of(field) for field in manifest.fields]
    rows = rows_in_force(manifest, material.checkpoint)
    mapped = newest(map_examples(rules, columns, material.vocabularies, rows), work.maximum_examples)
    if mapped.examples < max(work.minimum_examples, 1):
        why = "".join(f"; {reason}" for reason in mapped.unfit)
        raise TooFewExamplesError(
            f"the model can use {mapped.examples} examples; the task needs {max(work.minimum_examples, 1)}{why}"
        )
    result = train(material.plan, material.checkpoint, mapped.columns, work, seeds, assignment.kind)
    is_evaluation = assignment.kind == coordinator_pb2.SESSION_KIND_EVALUATE
    layout = Layout() if is_evaluation else assignment.layout
    result = restrict(result, layout, material.row_sets)
    result = clip(result, layout, assignment.clip_norm, adapts=assignment.clip_adapts)
    more_bounds: tuple[float, ...] = (WITHIN_CLIP_BOUND,) if assignment.clip_adapts else ()
    if assignment.tells_spread and is_evaluation:
        plans = [(metric.name, metric.bound) for metric in manifest.metrics]
        told = spread_sums(result.metric_sums[: len(plans)], result.examples)
        result = replace(result, metric_sums=(*result.metric_sums, *told))
        more_bounds += tuple(bound for _, bound in spread_metrics(plans))
    if is_evaluation and assignment.outcome_versions:
        told = outcome_sums(assignment.outcome_versions, outcomes or {})
        result = replace(result, metric_sums=(*result.metric_sums, *told))
        more_bounds += tuple(bound for _, bound in outcome_metrics(assignment.outcome_versions))
    fixed_point = agreement(result, manifest, layout, assignment.secure_sum, more_bounds, material.row_sets)
    vector = report_vector(result, layout, fixed_point, seeds.rounding)
    return Report(vector.to_bytes(), fixed_point, result.examples, mapped.unknown_keys)
