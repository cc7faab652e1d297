"""A recommender in fewer bytes: its tables in 16 bits, or in 8 with a scale for each row.

A phone or a page fetches the file over the air, and nearly all of it is one table. Numbers are widened to float32 when
the file is opened (casts of constants, which every runtime folds), so it takes the same time and memory to run, and no
operator of a lower precision, which runtimes differ in.

Rules: the lighter file is proved like every other, in two parts. It must give the scores of the full file holding the
same rounded numbers, to 1e-5, at the default and the basic level: so nothing but the rounding differs. And what the
rounding does is measured and written inside (`fedrecon.precision`, `.precision_difference`), with the error on users'
ratings where there are some (`.precision_rmse`, JSON: both errors and the relative loss).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fedrecon.device_sdk.recommender import ITEMS_SUFFIX
from fedrecon.inference.judging import Judged, Rater, judge_users
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.stepwise import open_session
from fedrecon.inference.taken_fields import FIELDS_KEY, TakenField, read_fields
from fedrecon.inference.verifying import TOLERANCE, Exported, WrongRecommenderError
from fedrecon.wire.digests import digest_of
from fedrecon.wire.vocabularies import Items

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

BUNDLE_FORMAT = "1"

_LARGEST = 127
_EXAMPLES = (0, 1, 7, 30)


@dataclass(frozen=True, slots=True)
class Lightened:
    """A lighter recommender, proved.

    Attributes:
        recommender: the ONNX file.
        precision: of its tables.
        difference: largest difference of a score from the full file, over made-up users.
        rmse: error on users' ratings of the full file and of this one; None where there were none.
    """

    recommender: bytes
    precision: Precision
    difference: float
    rmse: tuple[float, float] | None


def lighten(recommender: bytes, items: Items, precision: Precision, users: Sequence[Rater] = ()) -> Lightened:
    """Returns a recommender with tables of a lower precision.

    Args:
        recommender: an exported file, full and proved.
        items: its vocabulary.
        precision: `float16` or `int8`; `float32` gives the file back.
        users: whose ratings tell the loss, if there are any: people whom the model was not trained on.

    Raises:
        WrongRecommenderError: the lighter file does not compute what its numbers say.
        UnjudgeableError: the users cannot be judged.
    """
    if precision == "float32":
        return Lightened(recommender, precision, 0.0, None)
    light, rounded = onnx.load_from_string(recommender), onnx.load_from_string(recommender)
    for table in [each for each in light.graph.initializer if _is_table(each, len(items.keys))]:
        values = _store(light, table, precision)
        (same,) = [each for each in rounded.graph.initializer if each.name == table.name]
        same.CopyFrom(numpy_helper.from_array(values, table.name))
    content = _bytes_of(light)
    _prove(content, rounded.SerializeToString(), items)
    difference = max(_differences(content, recommender, items, basic=False))
    rmse = None
    if users:
        rmse = _rmse(recommender, items, users), _rmse(content, items, users)
    told = {"fedrecon.precision": precision, "fedrecon.precision_difference": f"{difference:.3g}"}
    if rmse is not None:
        figures = {"float32": rmse[0], precision: rmse[1], "loss": rmse[1] / rmse[0] - 1, "users": len(users)}
        told["fedrecon.precision_rmse"] = json.dumps(figures)
    metadata = {each.key: each.value for each in light.metadata_props} | told
    del light.metadata_props[:]
    helper.set_model_props(light, metadata)
    return Lightened(_bytes_of(light), precision, difference, rmse)


def describe_bundle(out: Path, light: Lightened, exported: Exported) -> bytes:
    """Returns the manifest that lies beside an export: what its files are, and their digests.

    Args:
        out: the ONNX file; its items lie beside it.
        light: the recommender.
        exported: what it was made of.
    """
    items = out.with_suffix(ITEMS_SUFFIX)
    files = {"recommender": (out, light.recommender), "items": (items, exported.items)}
    told = {
        "format": BUNDLE_FORMAT,
        "round": exported.round,
        "precision": light.precision,
        "largest_difference": exported.largest_difference,
        "precision_difference": light.difference,
        "precision_rmse": light.rmse,
        **{
            name: {"file": file.name, "size": len(content), "sha256": digest_of(content).hex()}
            for name, (file, content) in files.items()
        },
    }
    return (json.dumps(told, indent=1) + "\n").encode()


def _is_table(value: TensorProto, rows: int) -> bool:
    """Whether a constant has numbers for every item."""
    return value.data_type == TensorProto.FLOAT and len(value.dims) > 1 and value.dims[0] == rows


def _store(model: ModelProto, table: TensorProto, precision: Precision) -> NDArray[np.float32]:
    """Stores a table with fewer bits, widened under its old name; returns the numbers that are left of it."""
    values, name = numpy_helper.to_array(table), table.name
    stored = f"{name}/{precision}"
    nodes = []
    if precision == "float16":
        kept = values.astype(np.float16)
        left = kept.astype(np.float32)
        nodes.append(helper.make_node("Cast", [stored], [name], name=name, to=TensorProto.FLOAT))
    else:
        axes = tuple(range(1, values.ndim))
        scales = (np.abs(values).max(axis=axes, keepdims=True) / _LARGEST).astype(np.float32)
        steps = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
        kept = np.rint(steps).astype(np.int8)
        left = kept.astype(np.float32) * scales
        model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
        nodes.append(helper.make_node("Cast", [stored], [f"{name}/steps"], name=f"{name}/steps", to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}/steps", f"{name}/scales"], [name], name=name))
    model.graph.initializer.append(numpy_helper.from_array(kept, stored))
    model.graph.initializer.remove(table)
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    return left


def _prove(content: bytes, rounded: bytes, items: Items) -> None:
    """Refuses a lighter file that computes something else than the full graph on its numbers."""
    for basic in (False, True):
        difference = max(_differences(content, rounded, items, basic=basic))
        if not difference <= TOLERANCE:
            level = "basic" if basic else "default"
            raise WrongRecommenderError(
                f"{level} optimisation: the lighter file differs from its own numbers by {difference:.3g}, more than "
                f"{TOLERANCE:g}; it is not written"
            )


def _differences(found: bytes, wanted: bytes, items: Items, *, basic: bool) -> list[float]:
    """Returns the largest difference of a score for some made-up users, relative to the largest score above 1."""
    sessions = [open_session(each, basic=basic) for each in (found, wanted)]
    fields = read_fields(sessions[0].get_modelmeta().custom_metadata_map[FIELDS_KEY])
    random = np.random.default_rng(0)
    differences = []
    for examples in _EXAMPLES:
        user = {field.name: _column(field, len(items.keys), examples, random) for field in fields}
        user |= {EXCLUDED: np.zeros(0, dtype=np.int64), COUNT: np.array([len(items.keys)], dtype=np.int64)}
        scores = []
        for session in sessions:
            rows, found_scores = session.run([ROWS, SCORES], user)
            by_row = np.zeros(len(items.keys))
            by_row[rows] = found_scores
            scores.append(by_row)
        differences.append(float(np.abs(scores[0] - scores[1]).max()) / max(1.0, float(np.abs(scores[1]).max())))
    return differences


def _column(field: TakenField, rows: int, examples: int, random: np.random.Generator) -> NDArray[Any]:
    if field.vocabulary:
        return random.integers(0, rows, examples)
    low, high = (0.0, 1.0) if field.minimum is None or field.maximum is None else (field.minimum, field.maximum)
    return random.uniform(low, high, examples).astype(np.float32)


def _rmse(content: bytes, items: Items, users: Sequence[Rater]) -> float:
    judged: Judged = judge_users(OpenRecommender.open(content, items), users)
    return math.nan if judged.squares is None else math.sqrt(judged.squares.sum() / judged.counts.sum())


def _bytes_of(model: ModelProto) -> bytes:
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
