"""From the app's examples to what a graph takes: keys become rows, values get their type.

Examples that a model cannot use are left out and counted: an item that its vocabulary does not know, a number
beyond the field's limits. Order is kept: oldest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.v1.plan_pb2 import Field
from fedrecon.wire.tensors import numpy_types
from fedrecon.wire.vocabularies import Items


@dataclass(frozen=True, slots=True)
class FieldRule:
    """What a model expects of one field.

    Attributes:
        name: name of the field.
        dtype: type in the graphs.
        shape: extent of one example's value.
        vocabulary: name of the vocabulary, or empty.
        limits: smallest and largest value, or None.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    vocabulary: str = ""
    limits: tuple[float, float] | None = None


def rule_of(field: Field) -> FieldRule:
    """Returns the rule of a manifest's field.

    Raises:
        UnusablePlanError: its element type is not known.
    """
    dtype = numpy_types.get(field.dtype)
    if dtype is None:
        raise UnusablePlanError(f"field {field.name} has element type {field.dtype}, which is not known")
    return FieldRule(
        name=field.name,
        dtype=dtype,
        shape=tuple(field.shape),
        vocabulary=field.vocabulary,
        limits=(field.minimum, field.maximum) if field.limited else None,
    )


@dataclass(frozen=True, slots=True)
class MappedExamples:
    """Examples as a model takes them.

    Attributes:
        columns: by field, `[examples, ...]`; a field with a vocabulary holds row numbers.
        examples: how many are left.
        unknown_keys: keys that no vocabulary knows, each once; their examples are left out.
        left_out: examples that are not in `columns`.
        unfit: for people, what else left examples out: numbers outside the limits of a field.
    """

    columns: dict[str, NDArray[Any]]
    examples: int
    unknown_keys: tuple[str, ...]
    left_out: int
    unfit: tuple[str, ...] = ()


def map_examples(
    rules: Sequence[FieldRule],
    columns: Mapping[str, NDArray[Any]],
    vocabularies: Mapping[str, Items],
    rows: Mapping[str, int],
) -> MappedExamples:
    """Returns the examples that a model can use.

    Args:
        rules: the model's fields.
        columns: the app's columns by field, oldest first; none at all for a user without examples.
        vocabularies: by name.
        rows: rows that the checkpoint has, by vocabulary: keys beyond them are unknown.

    Raises:
        UnusablePlanError: the examples lack a field, or hold something else than the model takes.
    """
    count = len(next(iter(columns.values()))) if columns else 0
    usable = np.ones(count, dtype=bool)
    mapped: dict[str, NDArray[Any]] = {}
    unknown: dict[str, None] = {}
    unfit: list[str] = []
    for rule in rules:
        column = columns.get(rule.name) if count else np.zeros((0, *rule.shape))
        if column is None:
            raise UnusablePlanError(
                f"the plan needs the field {rule.name!r}; the examples have {sorted(columns)}",
                "add it to the examples, or check that the app speaks to the right population",
            )
        if rule.vocabulary:
            values = vocabularies[rule.vocabulary].rows_of(str(key) for key in column)
            values[values >= rows[rule.vocabulary]] = -1
            known = values >= 0
            unknown.update(dict.fromkeys(str(key) for key, here in zip(column, known, strict=True) if not here))
        else:
            values, known = _numbers(rule, column, count)
            if not known.all():
                limits = f"not within {rule.limits[0]:g} to {rule.limits[1]:g}" if rule.limits else "not finite"
                unfit.append(f"{rule.name} is {limits} in {count - int(known.sum())} of {count} examples")
        usable &= known
        mapped[rule.name] = values.astype(rule.dtype)
    kept = int(usable.sum())
    return MappedExamples(
        columns={name: values[usable] for name, values in mapped.items()},
        examples=kept,
        unknown_keys=tuple(unknown),
        left_out=count - kept,
        unfit=tuple(unfit),
    )


def _numbers(rule: FieldRule, column: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns a field's numbers, and which examples are within its limits."""
    try:
        values = np.asarray(column, dtype=np.float64).reshape(count, *rule.shape)
    except (TypeError, ValueError) as error:
        raise UnusablePlanError(
            f"the field {rule.name!r} is a number of shape {list(rule.shape)} in the plan; the examples hold "
            f"something else, for example {column[0]!r}",
            "give numbers for it when adding examples",
        ) from error
    flat = values.reshape(count, math.prod(rule.shape))
    lowest, highest = rule.limits if rule.limits is not None else (-np.inf, np.inf)
    within = np.isfinite(flat) & (flat >= lowest) & (flat <= highest)
    return values, np.logical_and.reduce(within, axis=1, dtype=np.bool_)


def newest(examples: MappedExamples, maximum: int) -> MappedExamples:
    """Returns the newest examples, at most `maximum` of them; 0 means all."""
    if not maximum or examples.examples <= maximum:
        return examples
    return replace(
        examples,
        columns={name: values[-maximum:] for name, values in examples.columns.items()},
        examples=maximum,
        left_out=examples.left_out + examples.examples - maximum,
    )
