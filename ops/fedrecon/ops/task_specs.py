"""Task specifications as people write them: defaults, a TOML file, and single values on the command line.

Names are those of `TaskSpec` in `task.proto`, so a file says what the contract says:

    [rounds]
    report_goal = 100
    over_selection = 1.3

    [optimizer]
    rule = "ADAGRAD"
    rate = 0.1
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from fedrecon.ops.mistakes import UserMistake
from fedrecon.v1.task_pb2 import TaskSpec

DEFAULTS: Mapping[str, Any] = {
    "rounds": {
        "report_goal": 50,
        "over_selection": 1.3,
        "selection_milliseconds": 2_000,
        "reporting_milliseconds": 60_000,
        "aggregating_milliseconds": 60_000,
        "maximum_attempts": 10,
        "retry_milliseconds": 1_000,
    },
    "work": {"split": "ALTERNATE_BATCHES", "minimum_examples": 10},
    # Adagrad was best for Federated Reconstruction (Singhal et al. 2021, table 1).
    "optimizer": {"rule": "ADAGRAD", "rate": 0.1, "adaptivity": 1e-3},
    # Apps ask for groups of 20 unless they say otherwise.
    "secure_sum": {"protocol": "SECAGG_PLUS", "ring_bits": 32, "maximum_weight": 100, "minimum_group": 20},
}

_ENUM_PREFIXES = {
    ("work", "split"): "SPLIT_RULE_",
    ("optimizer", "rule"): "OPTIMIZER_RULE_",
    ("secure_sum", "protocol"): "SUM_PROTOCOL_",
}

_DOTTED_NAMES = {"work.hyperparameters.": 2, "bounds.": 1}

_EXAMPLE = "rounds.report_goal=20"
_OUTER_FIELD = re.compile(r"Failed to parse (\w+) field: ")

_SHARE_OF_GOAL = 0.8
"""Reports without which a round is given up, where the specification does not say: this share of the goal."""


def build_spec(name: str, file: Path | None, assignments: Sequence[str]) -> TaskSpec:
    """Return the specification of a task, without its plan.

    Args:
        name: Name of the task.
        file: TOML file, or None.
        assignments: Single values, `rounds.report_goal=20`; they win over the file.

    Raises:
        UserMistake: A name is not one of the contract's, or a value does not fit.
    """
    tree = _merged(DEFAULTS, {} if file is None else _read(file))
    for assignment in assignments:
        tree = _merged(tree, _parse(assignment))
    tree = _merged({"population": name}, tree) | {"name": name}
    for part in DEFAULTS:
        if not isinstance(tree[part], Mapping):
            raise UserMistake(f"{part} is {tree[part]!r}, but it has values of its own.", f"Write them as {_EXAMPLE}.")
    _fill(tree)
    return _as_message(tree)


def edit_spec(spec: TaskSpec, file: Path | None, assignments: Sequence[str]) -> TaskSpec:
    """Return a task's specification with changes.

    Args:
        spec: The one in force.
        file: TOML file with what changes, or None.
        assignments: Single values, as for `build_spec`.

    Raises:
        UserMistake: As `build_spec`, or nothing changes.
    """
    tree = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    changes: dict[str, Any] = {} if file is None else _read(file)
    for assignment in assignments:
        changes = _merged(changes, _parse(assignment))
    edited = _as_message(_merged(tree, changes))
    if edited == spec:
        raise UserMistake("Nothing changes.", f"State what does: --set {_EXAMPLE}, or a file.")
    return edited


def _as_message(tree: dict[str, Any]) -> TaskSpec:
    for (part, field), prefix in _ENUM_PREFIXES.items():
        inner = tree.get(part)
        value = inner.get(field) if isinstance(inner, Mapping) else None
        if isinstance(value, str):
            tree[part][field] = prefix + value.upper().removeprefix(prefix)
    try:
        return json_format.ParseDict(tree, TaskSpec())
    except json_format.ParseError as error:
        raise UserMistake(
            f"The task's specification is wrong: {_reason(error)}.", "The names are those of TaskSpec in task.proto."
        ) from error


def _reason(error: json_format.ParseError) -> str:
    """Say what protobuf's parser found, with the names as people write them."""
    path = ".".join(_OUTER_FIELD.findall(str(error)))
    rest = re.sub(r" at (\"TaskSpec[^\"]*\"|TaskSpec[\w.]*)", "", _OUTER_FIELD.sub("", str(error))).rstrip(". ")
    names = re.findall(r"'(\w+)'", rest.partition("Available Fields")[2])
    if names:
        known = sorted(re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name) for name in names)
        unknown = re.findall(r'no field named "(\w+)"', rest)
        return f"there is no {'.'.join([*path.split('.'), *unknown]).strip('.')}; there are {', '.join(known)}"
    return f"{path}: {rest[:1].lower()}{rest[1:]}" if path else rest


def _fill(tree: dict[str, Any]) -> None:
    """Fill in what follows from other values."""
    rounds, secure_sum = tree["rounds"], tree["secure_sum"]
    try:
        goal, ratio = int(rounds["report_goal"]), float(rounds["over_selection"])
        rounds.setdefault("minimum_reports", max(1, math.ceil(goal * _SHARE_OF_GOAL)))
        cohort = max(1, math.ceil(goal * ratio))
        # A cohort that is not full misses its goal when devices drop out, and then waits for the window's end.
        rounds.setdefault("minimum_cohort", cohort)
        secure_sum.setdefault("maximum_reports", cohort)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserMistake(
            f"rounds.report_goal {rounds['report_goal']} or rounds.over_selection {rounds['over_selection']} is no "
            f"number that a round can have: {error}.",
            f"Write them as {_EXAMPLE} and rounds.over_selection=1.3.",
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UserMistake(f"{file} cannot be read: {error.strerror}.", "--spec names a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserMistake(f"{file} is no TOML: {error}.", "Its names are those of TaskSpec in task.proto.") from error


def _parse(assignment: str) -> dict[str, Any]:
    value: Any
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise UserMistake(f"{assignment!r} sets nothing.", f"Write it as {_EXAMPLE}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    # Names of hyperparameters and parameters have dots of their own: `work.hyperparameters.update.rate`.
    depth = next((depth for prefix, depth in _DOTTED_NAMES.items() if path.startswith(prefix)), -1)
    parts = path.split(".", depth)
    for part in reversed(parts):
        value = {part: value}
    return {**value}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
