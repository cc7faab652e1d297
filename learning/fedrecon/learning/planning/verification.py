"""Compares every graph of a plan with plain torch before anything is written.

A plan can be wrong without failing: ONNX Runtime's own optimiser has computed wrong numbers (a transposed matrix
times a 1-D vector, versions 1.20 to 1.31). So each graph runs at the default and at the basic optimisation level, on
random parameters, row numbers with repetitions, masks and rates, and on the edges: no steps, no examples, one
example, the limits of every hyperparameter. The answers come from `reference`, which shares no code with the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning.graphs import PlanGraph
from fedrecon.learning.planning.values import PER_STEP, PlanError
from fedrecon.learning.reconstruction import RECONSTRUCT_RIDGE, Hyperparameter, Ridge
from fedrecon.learning.reference import Steps, reconstruct, solve_ridge, update
from fedrecon.v1 import plan_pb2

Arrays = dict[str, NDArray[Any]]
Levels = tuple[tuple[str, Any], ...]

# A difference counts relative to the largest expected number; float32 carries 6e-8 of each number, so differences of
# sums of a few hundred numbers stay well below these.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6

# Row numbers that `touch` sees are those of the whole vocabulary, not only of the rows given to the other graphs.
TOUCHED_ROWS = 1000

levels: Levels = (
    ("default", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL),
    ("basic", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
)


@dataclass(frozen=True, slots=True)
class CaseShape:
    """The extents of a case, and where within its limits every hyperparameter lies.

    Attributes:
        name: how errors and recorded answers call it.
        examples: examples of the client.
        steps: steps of a schedule.
        batch: examples in a step.
        rows: rows of every vocabulary.
        place: 0 for the minimum of hyperparameters, 1 for the maximum, None for anything between.
        noise: smallest deviation of random parameters from the initial ones, which may be 0 and hide mistakes.
        recorded: whether it becomes one of the plan's recorded answers.
    """

    name: str
    examples: int
    steps: int
    batch: int
    rows: int
    place: float | None = None
    noise: float = 0.1
    recorded: bool = False


case_shapes = (
    CaseShape("typical", examples=13, steps=4, batch=3, rows=9, recorded=True),
    CaseShape("empty", examples=0, steps=0, batch=3, rows=0, recorded=True),
    CaseShape("no_steps", examples=6, steps=0, batch=3, rows=5),
    CaseShape("one_example", examples=1, steps=1, batch=1, rows=1),
    CaseShape("repeated", examples=31, steps=7, batch=5, rows=2),
    CaseShape("smallest", examples=200, steps=3, batch=19, rows=40, place=0.0),
    CaseShape("largest", examples=17, steps=3, batch=8, rows=12, place=1.0),
    # Parameters as large as trained ones and few examples: the hardest for conjugate gradient.
    CaseShape("few_large", examples=30, steps=2, batch=5, rows=30, place=0.0, noise=0.3),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one graph must give for one case.

    Attributes:
        case: name of the case.
        graph: name of the graph.
        inputs: arrays by the names of the graph's inputs.
        outputs: torch's own results by the names of its outputs.
        recorded: whether it becomes one of the plan's recorded answers.
    """

    case: str
    graph: str
    inputs: Arrays
    outputs: Arrays
    recorded: bool


def verify(model: FederatedModel, graphs: Sequence[PlanGraph], seed: int) -> tuple[list[Answer], float]:
    """Compares every graph with torch, at both optimisation levels.

    Args:
        model: what was compiled.
        graphs: what it became.
        seed: of the random parameters, examples, masks and rates.

    Returns:
        Torch's answers for every case and graph, and the largest difference relative to the largest expected number.

    Raises:
        PlanError: a graph fails or differs; the message names graph, case, level, output and difference.
    """
    answers = list(_answers(model, graphs, seed))
    largest = 0.0
    for graph in graphs:
        for level_name, level in levels:
            run = open_graph(graph.name, graph.content, level)
            for answer in answers:
                if answer.graph == graph.name:
                    where = f"graph {graph.name}, case {answer.case}, {level_name} optimisation"
                    largest = max(largest, compare(where, run(where, answer.inputs), answer.outputs))
    return answers, largest


def open_graph(name: str, content: bytes, level: Any) -> Callable[[str, Arrays], Arrays]:
    """Returns a function that runs an ONNX file on one thread; it takes what to call the run in errors, and inputs.

    Raises:
        PlanError: ONNX Runtime does not take the file; later, that it failed on the inputs.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    # Errors come back as exceptions; ONNX Runtime would print them as well.
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PlanError(f"graph {name}: ONNX Runtime does not take it: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def run(where: str, inputs: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(names, inputs), strict=True))
        except Exception as error:
            raise PlanError(f"{where}: ONNX Runtime fails: {error}") from error

    return run


def compare(where: str, found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """Returns the largest difference, relative to the largest expected number of each output (at least 0.1).

    Raises:
        PlanError: an output is missing, has another shape or type, or differs by more than the tolerance.
    """
    worst = 0.0
    for name, wanted in expected.items():
        if name not in found:
            raise PlanError(f"{where}: output {name} is missing")
        got = found[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise PlanError(
                f"{where}: output {name} is {list(got.shape)} {got.dtype}, "
                f"torch gives {list(wanted.shape)} {wanted.dtype}"
            )
        if not wanted.size:
            continue
        difference = float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max())
        scale = float(np.abs(wanted.astype(np.float64)).max())
        # Written so that a difference that is no number fails, too.
        if not difference <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * scale:
            raise PlanError(
                f"{where}: output {name} differs from torch by {difference:.3g}, "
                f"where the largest number is {scale:.3g}; either the graph is wrong, or steps "
                "diverge at the largest rates (lower the maximum of the rate), or Adam or Adagrad follows a gradient "
                "that is 0 but for rounding (leave the parameter out)"
            )
        worst = max(worst, difference / max(scale, ABSOLUTE_TOLERANCE / RELATIVE_TOLERANCE))
    return worst


def _answers(model: FederatedModel, graphs: Sequence[PlanGraph], seed: int) -> Iterator[Answer]:
    """Yields torch's answer to every case of every graph."""
    for number, shape in enumerate(case_shapes):
        generator = np.random.Generator(np.random.PCG64([seed, number]))
        case = draw_case(model, shape, generator)
        for graph in graphs:
            expected = answer_case(model, case, graph)
            inputs = {value.name: case_input(case, graph, value.name, value.reference) for value in graph.inputs}
            yield Answer(shape.name, graph.name, inputs, expected, shape.recorded)


@dataclass(frozen=True, slots=True)
class Case:
    """Random inputs of one client.

    Attributes:
        global_parameters: by name; rows only of row-sparse ones.
        local_parameters: by name.
        fields: by name, numbered by the rows given.
        touched: the fields with a vocabulary as `touch` sees them: row numbers of the whole vocabulary.
        steps: order and mask of a schedule.
        used: `[examples]`, for graphs that take all examples at once.
        hyperparameters: by name.
    """

    global_parameters: dict[str, Tensor]
    local_parameters: dict[str, Tensor]
    fields: dict[str, Tensor]
    touched: dict[str, Tensor]
    steps: Steps
    used: Tensor
    hyperparameters: dict[str, Tensor]


def draw_case(model: FederatedModel, shape: CaseShape, generator: np.random.Generator) -> Case:
    """Returns random inputs of these extents."""
    globals_ = {
        name: _near(value, shape.rows if name in model.vocabularies else None, shape.noise, generator)
        for name, value in model.global_parameters.items()
    }
    locals_ = {name: _near(value, None, shape.noise, generator) for name, value in model.local_parameters.items()}
    fields: dict[str, Tensor] = {}
    touched: dict[str, Tensor] = {}
    for each in model.fields:
        extents = (shape.examples, *each.shape)
        if each.vocabulary is not None:
            fields[each.name] = torch.from_numpy(generator.integers(0, max(shape.rows, 1), extents))
            touched[each.name] = torch.from_numpy(generator.integers(0, TOUCHED_ROWS, extents) // 7)
        elif each.dtype == torch.float32 and each.minimum is None:
            fields[each.name] = torch.from_numpy(generator.standard_normal(extents, dtype=np.float32))
        elif each.dtype == torch.float32:
            drawn = generator.uniform(each.minimum or 0.0, each.maximum or 0.0, extents)
            fields[each.name] = torch.from_numpy(drawn.astype(np.float32))
        else:
            smallest, largest = int(each.minimum or 0), int(each.maximum if each.maximum is not None else 1)
            fields[each.name] = torch.from_numpy(generator.integers(smallest, largest + 1, extents)).to(each.dtype)
    positions = generator.integers(0, max(shape.examples, 1), (shape.steps, shape.batch))
    mask = generator.random((shape.steps, shape.batch)) < 0.8  # noqa: PLR2004 a fifth is padding
    mask[-1:] = False  # a step that is all padding, which must change nothing
    steps = Steps(torch.from_numpy(np.where(mask, positions, 0)), torch.from_numpy(mask.astype(np.float32)))
    if shape.steps == 1:
        steps = Steps(steps.order, torch.ones_like(steps.mask))
    used = torch.from_numpy((generator.random(shape.examples) < 0.7).astype(np.float32))  # noqa: PLR2004 most of them
    numbers: dict[str, Tensor] = {}
    for name, limits in model.hyperparameters.items():
        extents = (shape.steps,) if name in PER_STEP else ()
        place = generator.random(extents) if shape.place is None else np.full(extents, shape.place)
        numbers[name] = torch.from_numpy(np.asarray(_between(limits, place), dtype=np.float32))
    return Case(globals_, locals_, fields, touched, steps, used, numbers)


def _between(limits: Hyperparameter, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns numbers between the limits; by their logarithm where the limits are positive, as ridges are."""
    if limits.minimum > 0:
        return limits.minimum * (limits.maximum / limits.minimum) ** place
    return limits.minimum + (limits.maximum - limits.minimum) * place


def _near(value: Tensor, rows: int | None, smallest: float, generator: np.random.Generator) -> Tensor:
    """Returns `value` (of another number of rows, repeated or cut) with noise of its own size."""
    array = value.numpy()
    if rows is not None:
        array = np.resize(array, (rows, *array.shape[1:]))
    noise = max(float(array.std()) if array.size > 1 else 0.0, smallest)
    drawn = array + noise * generator.standard_normal(array.shape)
    return torch.from_numpy(np.asarray(drawn, dtype=np.float32))


def case_input(case: Case, graph: PlanGraph, name: str, reference: str) -> NDArray[Any]:
    """Returns the array of one input of a graph."""
    kind = name.split(".", 1)[0]
    match kind:
        case "parameter":
            return {**case.global_parameters, **case.local_parameters}[reference].numpy()
        case "field":
            touched = graph.role == plan_pb2.GRAPH_ROLE_TOUCH
            return (case.touched if touched else case.fields)[reference].numpy()
        case "order":
            return case.steps.order.numpy()
        case "mask":
            per_step = any(value.name == "losses" for value in graph.outputs)
            return (case.steps.mask if per_step else case.used).numpy()
        case "hyperparameter":
            return case.hyperparameters[reference].numpy()
        case _:
            raise PlanError(f"graph {graph.name} has an input {name!r} that no case knows")


def answer_case(model: FederatedModel, case: Case, graph: PlanGraph) -> Arrays:
    """Returns what torch gives where the graph shall give the same, by the names of its outputs."""
    match graph.role:
        case plan_pb2.GRAPH_ROLE_TOUCH:
            return _answer_touch(model, case)
        case plan_pb2.GRAPH_ROLE_RECONSTRUCT:
            tensors = _answer_reconstruct(model, case)
        case plan_pb2.GRAPH_ROLE_UPDATE:
            after, _, losses = update(
                model,
                case.global_parameters,
                case.local_parameters,
                case.fields,
                case.steps,
                case.hyperparameters,
            )
            tensors = {f"update.{name}": after[name] - value for name, value in case.global_parameters.items()}
            tensors["losses"] = losses
        case _:
            tensors = _answer_measures(model, case, graph)
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _answer_touch(model: FederatedModel, case: Case) -> Arrays:
    answers: Arrays = {}
    for vocabulary in dict.fromkeys(model.row_sparse.values()):
        members = [each.name for each in model.fields if each.vocabulary == vocabulary]
        every = np.concatenate([case.touched[name].numpy().ravel() for name in members])
        rows = np.unique(every)
        answers[f"rows.{vocabulary}"] = rows
        for name in members:
            answers[f"renumbered.{name}"] = np.searchsorted(rows, case.touched[name].numpy())
    return answers


def _answer_reconstruct(model: FederatedModel, case: Case) -> dict[str, Tensor]:
    if isinstance(model.reconstruction, Ridge):
        ridge = case.hyperparameters[RECONSTRUCT_RIDGE]
        found = solve_ridge(model, case.global_parameters, case.local_parameters, case.fields, case.used, ridge)
        return {f"reconstructed.{name}": value for name, value in found.items()}
    found, losses = reconstruct(
        model, case.global_parameters, case.local_parameters, case.fields, case.steps, case.hyperparameters
    )
    return {**{f"reconstructed.{name}": value for name, value in found.items()}, "losses": losses}


def _answer_measures(model: FederatedModel, case: Case, graph: PlanGraph) -> dict[str, Tensor]:
    parameters = {**case.global_parameters, **case.local_parameters}
    if graph.role == plan_pb2.GRAPH_ROLE_PREDICT:
        return {"scores": model.scores(parameters, case.fields)}
    prediction = model.predict(parameters, case.fields)
    targets = model.only_targets(case.fields)
    return {
        f"metric.{name}": (metric.function(prediction, targets) * case.used).sum()
        for name, metric in model.metrics.items()
    }
