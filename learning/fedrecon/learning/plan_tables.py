"""What a plan holds, as tables for people. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.wire.manifests import role_names

if TYPE_CHECKING:
    from fedrecon.learning.planning import Bundle


def tables_of(bundle: Bundle) -> Iterator[Table]:
    """Yields the tables that describe a plan."""
    manifest = bundle.manifest
    yield _table(
        "Plan",
        ("", ""),
        [
            ("name", manifest.name),
            ("digest", bundle.digest.hex()),
            ("publisher", bundle.signature.publisher_key.hex()),
            (
                "compiled with",
                ", ".join(f"{name} {version}" for name, version in sorted(manifest.compiled_with.items())),
            ),
        ],
    )
    bounds = {segment.parameter: f"{segment.bound:g}" for segment in manifest.layout.segments}
    yield _table(
        "Parameters",
        ("name", "placement", "shape", "rows of", "starts as", "bound"),
        [
            (
                each.name,
                _word(plan_pb2.Placement.Name(each.placement), "PLACEMENT_"),
                "x".join(map(str, each.shape)) or "scalar",
                each.vocabulary,
                _start(each),
                bounds.get(each.name, ""),
            )
            for each in manifest.parameters
        ],
    )
    yield _table(
        "Fields",
        ("name", "role", "type", "rows of", "limits"),
        [
            (
                each.name,
                _word(plan_pb2.FieldRole.Name(each.role), "FIELD_ROLE_"),
                "x".join([_word(common_pb2.Dtype.Name(each.dtype), "DTYPE_"), *map(str, each.shape)]),
                each.vocabulary,
                f"{each.minimum:g} to {each.maximum:g}" if each.limited else "",
            )
            for each in manifest.fields
        ],
    )
    yield _table(
        "Graphs",
        ("role", "bytes", "inputs", "outputs"),
        [
            (
                role_names.get(graph.role, str(graph.role)),
                str(graph.blob.size),
                "\n".join(value.name for value in graph.inputs),
                "\n".join(value.name for value in graph.outputs),
            )
            for graph in manifest.graphs
        ],
    )
    yield _table(
        "Hyperparameters",
        ("name", "default", "limits", ""),
        [
            (
                name,
                f"{each.default_value:g}",
                f"{each.minimum:g} to {each.maximum:g}",
                "per step" if each.per_step else "",
            )
            for name, each in sorted(manifest.hyperparameters.items())
        ],
    )
    yield _table("Metrics", ("name", "bound"), [(each.name, f"{each.bound:g}") for each in manifest.metrics])


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _word(name: str, prefix: str) -> str:
    """Returns the name of an enum's value as a person reads it."""
    return name.removeprefix(prefix).lower()


def _start(parameter: plan_pb2.Parameter) -> str:
    """Returns how a local parameter starts, for people."""
    initial: Any = parameter.initial
    match initial.WhichOneof("rule"):
        case "constant":
            return f"{initial.constant:g}"
        case "uniform_bound":
            return f"uniform in ±{initial.uniform_bound:g}"
        case "global_parameter":
            return str(initial.global_parameter)
        case _:
            return "checkpoint"
