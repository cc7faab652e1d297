"""Plans that are linear in their local parameters, as numbers: what a small and fast recommender is drawn from.

Most recommenders score an item by a dot product: score of row i = offsets[i] + design[i] @ local, local being all
local parameters one after the other. Such a plan is asked what its design and offsets are, through its own graphs,
whatever they look like inside: the design's columns are the differences of scores between one large local parameter
and none. Reconstruction is then one of two: ridge regression, with or without a background (a pull of every row's
score to 0), or steps of gradient descent on the mean squared error of a batch.

Rules: this is a guess about a plan, cheap and sometimes wrong; what is drawn from it is proved against the plan like
everything else (`verifying`), and the plan's own graphs are laid in instead where the guess does not hold. Numbers are
the same on every machine: a column's sums have one term that is not 0, and what is summed here is summed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedrecon.inference.bundles import Arrays, Bundle, hyperparameter_of, schedule_of
from fedrecon.inference.stepwise import Stepwise
from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Field
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.keystream import SEED_BYTES
from fedrecon.wire.manifests import initial_locals

RIDGE, RATE = "reconstruct.ridge", "reconstruct.rate"

_LARGE = 1024.0
"""The local parameter that is asked with: a power of two, so that dividing by it is exact."""

_LIKE = 1e-5
"""Difference, relative to the largest number compared, up to which a guess holds."""

_EXAMPLES_ASKED = 3
_DIGITS = 6  # of a background's weight: more than the one user asked tells apart


@dataclass(frozen=True, slots=True)
class Part:
    """A local parameter's place among all of them.

    Attributes:
        name: of the parameter.
        shape: its shape.
        size: numbers in it.
    """

    name: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class LinearForm:
    """A plan with a checkpoint, linear in its local parameters.

    Attributes:
        design: `[items, width] float32`.
        offsets: `[items] float32`, the scores of the initial local parameters.
        start: `[width] float32`, the initial local parameters.
        parts: the local parameters, in their order.
        target: the field whose numbers are fitted.
        ridge: of a ridge regression; None for gradient descent.
        rate: of gradient descent; None for ridge.
        background: `[width, width] float32`, added to the curvature for each example; None for none.
    """

    design: NDArray[np.float32]
    offsets: NDArray[np.float32]
    start: NDArray[np.float32]
    parts: tuple[Part, ...]
    target: str
    ridge: float | None = None
    rate: float | None = None
    background: NDArray[np.float32] | None = None


def find_linear_form(bundle: Bundle, checkpoint: Arrays, rows: int, work: LocalWork) -> LinearForm | None:
    """Returns the linear form of a plan, or None where it is not linear as far as can be told.

    Args:
        bundle: the plan.
        checkpoint: its global parameters.
        rows: of the vocabulary.
        work: the task's choice of schedule and hyperparameters.

    Raises:
        NotExportableError: the plan names what it does not have.
    """
    graph = bundle.graph(plan_pb2.GRAPH_ROLE_RECONSTRUCT)
    sources = {value.source for value in graph.inputs}
    chosen = {value.reference for value in graph.inputs if value.source == plan_pb2.VALUE_SOURCE_HYPERPARAMETER}
    stepwise = plan_pb2.VALUE_SOURCE_ORDER in sources
    target = _target_of(bundle)
    if chosen != {RATE if stepwise else RIDGE} or target is None or (stepwise and not _has_steps(bundle, work)):
        return None
    if any(len(values) != rows for name, values in checkpoint.items() if bundle.parameter(name).vocabulary):
        return None
    asked = Stepwise.open(bundle, checkpoint, work)
    form = _ask_for_scores(asked, rows, target.name)
    if form is None:
        return None
    if stepwise:
        return replace(form, rate=hyperparameter_of(bundle, work, RATE))
    return _with_ridge(replace(form, ridge=hyperparameter_of(bundle, work, RIDGE)), asked, target)


def _target_of(bundle: Bundle) -> Field | None:
    """Returns the one field beside the item that the plan has, if it holds numbers."""
    item = bundle.item_field().name
    others = [field for field in bundle.manifest.fields if field.name != item]
    fits = len(others) == 1 and not others[0].vocabulary and not others[0].shape
    return others[0] if fits else None


def _has_steps(bundle: Bundle, work: LocalWork) -> bool:
    schedule = schedule_of(bundle, work)
    return schedule.epochs > 0 and schedule.batch_size > 0


def _ask_for_scores(asked: Stepwise, rows: int, target: str) -> LinearForm | None:
    """Returns design and offsets, or None where the scores are not linear in the local parameters."""
    start = initial_locals(asked.bundle.manifest, asked.checkpoint, bytes(SEED_BYTES))
    if any(values.dtype != np.float32 for values in start.values()):
        return None
    parts = tuple(Part(name, values.shape, values.size) for name, values in start.items())
    flat = np.concatenate([values.ravel() for values in start.values()])

    def scores(local: NDArray[np.float32]) -> NDArray[np.float64]:
        return asked.predict(cut(local, parts), rows).astype(np.float64)

    nothing = scores(np.zeros_like(flat))
    some = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)
    moved = scores(some)
    # Before a run for each number: twice as far must be twice as much.
    if not _alike(scores(2 * some) - nothing, 2 * (moved - nothing), np.abs(moved)):
        return None
    design = np.empty((rows, flat.size), dtype=np.float32)
    for column in range(flat.size):
        unit = np.zeros_like(flat)
        unit[column] = _LARGE
        design[:, column] = (scores(unit) - nothing) / _LARGE
    if not _alike(nothing + _times(design, some), moved, np.abs(moved)):
        return None
    offsets = (nothing + _times(design, flat)).astype(np.float32)
    return LinearForm(design, offsets, flat, parts, target)


def _with_ridge(form: LinearForm, asked: Stepwise, target: Field) -> LinearForm | None:
    """Returns the form with its background, if it has one; None where the reconstruction is no ridge regression.

    One user's answer must solve (A'A + n B + ridge) change = A' residual - n B start, A being the design of n examples
    and B the background: 0, or a weight times the mean square of all rows' scores by one of the local parameters.
    """
    random = np.random.default_rng(0)
    examples = random.permutation(len(form.design))[:_EXAMPLES_ASKED]
    given = random.uniform(target.minimum, target.maximum, examples.size) if target.limited else np.ones(examples.size)
    found = asked.reconstruct({asked.bundle.item_field().name: examples, target.name: given.astype(np.float32)})
    local = np.concatenate([found[part.name].ravel() for part in form.parts]).astype(np.float64)
    change = local - form.start
    design = form.design[examples].astype(np.float64)
    if form.ridge is None or not np.isfinite(local).all():
        return None
    pull = design.T @ (given.astype(np.float32) - form.offsets[examples] - design @ change)
    missing = pull - form.ridge * change
    if _alike(missing, 0, np.abs(pull)):
        return form
    end = 0
    for part in form.parts:
        begin, end = end, end + part.size
        curvature = np.zeros((form.start.size, form.start.size))
        block = form.design[:, begin:end].astype(np.float64)
        curvature[begin:end, begin:end] = block.T @ block / len(block)
        along = examples.size * curvature @ local
        length = max(float(along @ along), float(np.finfo(np.float64).tiny))
        weight = float(f"{float(along @ missing) / length:.{_DIGITS}g}")
        if weight > 0 and _alike(weight * along, missing, np.abs(pull)):
            return replace(form, background=(weight * curvature).astype(np.float32))
    return None


def cut(local: NDArray[np.float32], parts: tuple[Part, ...]) -> dict[str, NDArray[np.float32]]:
    """Returns local parameters by name, from all of them one after the other."""
    ends = np.cumsum([part.size for part in parts])[:-1]
    return {part.name: piece.reshape(part.shape) for part, piece in zip(parts, np.split(local, ends), strict=True)}


def _times(design: NDArray[np.float32], local: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns design @ local in float64, summed column by column: the same on every machine."""
    total = np.zeros(len(design))
    for column in np.flatnonzero(local):
        total += design[:, column].astype(np.float64) * float(local[column])
    return total


def _alike(found: NDArray[np.float64], wanted: NDArray[np.float64] | float, scale: NDArray[np.float64]) -> bool:
    """Whether two arrays differ by no more than float32 leaves, numbers of this size being at hand."""
    return bool(np.abs(found - wanted).max() <= _LIKE * max(float(scale.max()), math.ulp(0.0)))
