"""Refuses models that cannot become a plan, naming the layer, the parameter or the field.

Three looks at a model: its layers (`layers`), its graph (row-sparse parameters are only looked up, by fields of their
own vocabulary, and those fields do nothing else: otherwise rows could not be renumbered), and its behaviour on random
examples (one prediction and loss per example, and one score where items are ranked; ridge only where the score is
linear in the local parameters; no update that is a copy of them).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning import values
from fedrecon.learning.planning.carrying import check_carries_no_copy
from fedrecon.learning.planning.export import example_arguments, first_reason
from fedrecon.learning.planning.layers import check_layers
from fedrecon.learning.planning.values import PlanError
from fedrecon.learning.reconstruction import Ridge

# Operators that only give row numbers another shape, or pick some of them.
_reshaping = frozenset(
    {
        "alias",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "flatten",
        "permute",
        "reshape",
        "select",
        "slice",
        "squeeze",
        "transpose",
        "unsqueeze",
        "view",
    }
)
# Operators that read only the extents of a tensor.
_measuring = frozenset({"sym_size", "_assert_tensor_metadata"})


def inspect(model: FederatedModel) -> None:
    """Refuses a model that cannot become a plan.

    Raises:
        PlanError: the message names the layer, parameter or field, and what to do instead.
    """
    if not model.local:
        raise PlanError(f"model {model.name!r} has no local parameter: there is nothing to reconstruct")
    check_layers(model)
    _check_behaviour(model)
    _check_graph(model, *_trace(model))


class _Traced(nn.Module):
    """The model as a function of its parameters and input fields, in that order."""

    def __init__(self, model: FederatedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.module = model.module
        self.declaration = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.names, tensors, strict=True))
        parameters = {name: named[f"parameter.{name}"] for name in self.declaration.parameters}
        fields = {each.name: named[f"field.{each.name}"] for each in self.declaration.inputs}
        return self.declaration.predict(parameters, fields)


def _trace(model: FederatedModel) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """Returns the graph of the prediction, whose nodes know the layer they come from, and its inputs by name."""
    inputs = (*values.parameters(model), *values.fields(model.inputs))
    names = [value.name for value in inputs]
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, extent in enumerate(value.shape) if isinstance(extent, str)}
        for value in inputs
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Traced(model, names), tuple(example_arguments(inputs)), dynamic_shapes=(dynamic,), strict=False
            )
    except Exception as error:
        raise PlanError(
            f"model {model.name!r} cannot be traced with varying numbers of examples and rows: {first_reason(error)}"
        ) from error
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    found = (nodes[name] for name in program.graph_signature.user_inputs if isinstance(name, str))
    return program.graph_module, dict(zip(names, found, strict=True))


def _check_graph(model: FederatedModel, traced: fx.GraphModule, found: Mapping[str, fx.Node]) -> None:
    for node in traced.graph.nodes:
        if _draws(node):
            raise PlanError(f"{_layer(node)} draws random numbers ({_operator(node)}); no graph may: remove it")
    lookups = {
        node: each.vocabulary
        for each in model.inputs
        if each.vocabulary is not None
        for node in _lookups(each.name, each.vocabulary, found[f"field.{each.name}"])
    }
    for name, vocabulary in model.vocabularies.items():
        _check_table(name, vocabulary, found[f"parameter.{name}"], lookups)
    tables = {found[f"parameter.{name}"] for name in model.vocabularies}
    for node, vocabulary in lookups.items():
        if node.args[0] not in tables:
            raise PlanError(
                f"{_layer(node)} looks rows of vocabulary {vocabulary!r} up in a table that is not row-sparse"
            )


def _draws(node: fx.Node) -> bool:
    """Returns whether an operator draws random numbers; dropout, of recurrent layers too, may be switched off."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False))
    return given.get("train") is not False and given.get("dropout") != 0


def _check_table(name: str, vocabulary: str, table: fx.Node, lookups: Mapping[fx.Node, str]) -> None:
    """Refuses any use of a row-sparse parameter but lookups by fields of its vocabulary."""
    for user in table.users:
        if _operator(user) in _measuring:
            continue
        if _operator(user) != "embedding" or user.args[0] is not table or user.args[1] is table:
            raise PlanError(
                f"row-sparse parameter {name!r} is used by {_layer(user)} ({_operator(user)}), not looked up; "
                "untie it, or leave it out of `vocabularies` so that it is dense"
            )
        if lookups.get(user) != vocabulary:
            raise PlanError(
                f"row-sparse parameter {name!r} is looked up in {_layer(user)} by something that is no field of "
                f"its vocabulary {vocabulary!r}"
            )


def _lookups(field: str, vocabulary: str, start: fx.Node) -> list[fx.Node]:
    """Returns the lookups that a field goes to, refusing any other use of it."""
    lookups: list[fx.Node] = []
    waiting = [start]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            operator = _operator(user)
            if operator in _measuring:
                continue
            if operator in _reshaping and user.args[0] is node:
                waiting.append(user)
            elif operator == "embedding" and user.args[1] is node:
                lookups.append(user)
            else:
                raise PlanError(
                    f"field {field!r} of vocabulary {vocabulary!r} goes to {_layer(user)} ({operator}); row numbers "
                    "mean nothing but rows, so they can only be looked up in row-sparse parameters"
                )
    return lookups


def _operator(node: fx.Node) -> str:
    """Returns the name of a node's operator, without namespace and overload."""
    if node.op != "call_function":
        return str(node.op)
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def _layer(node: fx.Node) -> str:
    """Returns the layer that a node comes from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = path.removeprefix("module").removeprefix(".")
    return f"layer {path!r}" if path else "the model itself"


def _check_behaviour(model: FederatedModel) -> None:
    """Runs the model on random examples, and on none, and looks at the shapes; for ridge at the linearity."""
    generator = torch.Generator().manual_seed(0)
    count = 7
    examples = _draw_examples(model, count, generator)
    parameters = {**model.global_parameters, **model.local_parameters}
    targets = model.only_targets(examples)
    try:
        prediction = model.predict(parameters, examples)
    except Exception as error:
        raise PlanError(
            f"model {model.name!r} fails on {count} random examples ({', '.join(examples)}): {error}"
        ) from error
    score = model.scores(parameters, examples)
    for what, shape in (("model " + repr(model.name), prediction.shape), ("the score", score.shape)):
        if shape[:1] != (count,):
            raise PlanError(f"{what} gives {list(shape)} for {count} examples, not one each")
    measured = {"the loss": model.loss(prediction, targets)}
    measured |= {f"metric {name!r}": metric.function(prediction, targets) for name, metric in model.metrics.items()}
    if model.vocabularies or isinstance(model.reconstruction, Ridge):
        measured["the score"] = score
    for what, result in measured.items():
        if result.shape != (count,) or result.dtype != torch.float32:
            raise PlanError(
                f"{what} gives {list(result.shape)} {result.dtype} for {count} examples, not [{count}] float32"
            )
    try:
        model.losses(parameters, {name: column[:0] for name, column in examples.items()})
    except Exception as error:
        raise PlanError(f"model {model.name!r} fails on a user without examples: {error}") from error
    if isinstance(model.reconstruction, Ridge):
        _check_linear(model, examples, generator)
    check_carries_no_copy(model, lambda: _draw_examples(model, count, generator), generator)


def _draw_examples(model: FederatedModel, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns random examples within the limits of the fields, `[count, ...]` by field."""
    examples: dict[str, Tensor] = {}
    for each in model.fields:
        shape = (count, *each.shape)
        if each.vocabulary is not None:
            rows = min(
                model.parameters[name].shape[0] for name, its in model.vocabularies.items() if its == each.vocabulary
            )
            examples[each.name] = torch.randint(0, rows, shape, generator=generator)
        else:
            smallest = 0.0 if each.minimum is None else each.minimum
            largest = 1.0 if each.maximum is None else each.maximum
            drawn = torch.rand(shape, generator=generator) * (largest - smallest) + smallest
            examples[each.name] = drawn.round().to(each.dtype) if each.dtype != torch.float32 else drawn
    return examples


def _check_linear(model: FederatedModel, examples: dict[str, Tensor], generator: torch.Generator) -> None:
    """Refuses ridge where the score halfway between two points is not halfway between the scores."""

    def score(local: dict[str, Tensor]) -> Tensor:
        return model.scores({**model.global_parameters, **local}, examples)

    first, second = (
        {name: torch.randn(value.shape, generator=generator) for name, value in model.local_parameters.items()}
        for _ in range(2)
    )
    middle = {name: (first[name] + second[name]) / 2 for name in first}
    expected = (score(first) + score(second)) / 2
    if not torch.allclose(score(middle), expected, rtol=1e-4, atol=1e-5):
        raise PlanError(
            f"model {model.name!r} is not linear in its local parameters ({', '.join(model.local)}), so ridge cannot "
            "reconstruct them; use GradientSteps"
        )
