"""A recommender is proved before anybody is served: against its plan's own graphs, run step by step.

Rules: ONNX Runtime at its default and at its basic optimisation level, because it has been seen to compute wrong
numbers, silently, at one and not at the other. Users are random and seeded: none, one and many examples. First the
plan's graphs must give torch's recorded answers here; then the recommender must give the graphs' scores, and a ranking
that is those scores in order. What differs is refused, with the largest difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedrecon.inference.bundles import Arrays, Bundle, NotExportableError, hyperparameter_of, schedule_of
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.v1.plan_pb2 import Field, Graph, GraphRole
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import schedules
from fedrecon.wire.keystream import SEED_BYTES
from fedrecon.wire.manifests import graph_of, initial_locals
from fedrecon.wire.tensors import numpy_types
from fedrecon.wire.vocabularies import Items

TOLERANCE = 1e-5
"""Largest difference of a score, relative to the largest score where that is above 1: what float32 leaves."""

_NUMBERS_OF_EXAMPLES = (0, 1, 2, 7, 61)
_SHARE_EXCLUDED = 0.1


class WrongRecommenderError(NotExportableError):
    """A recommender differs from the plan that it was made of."""


def open_session(content: bytes, *, basic: bool = False) -> onnxruntime.InferenceSession:
    """Opens a graph on one thread, at the default or the basic optimisation level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about speed
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def verify_export(
    recommender: bytes, bundle: Bundle, checkpoint: Arrays, vocabulary: Items, work: LocalWork, *, seed: int = 0
) -> float:
    """Returns the largest difference of a score between a recommender and its plan, run step by step.

    Args:
        recommender: the exported file.
        bundle: its plan.
        checkpoint: its global parameters.
        vocabulary: what it recommends.
        work: the task's choice of schedule and hyperparameters.
        seed: of the random users.

    Raises:
        WrongRecommenderError: a score differs by more than the tolerance, or a ranking is wrong.
    """
    reference = Stepwise.open(bundle, checkpoint, work)
    sessions = {level: open_session(recommender, basic=level == "basic") for level in ("default", "basic")}
    check_recorded_answers(bundle)
    random = np.random.default_rng(seed)
    largest = 0.0
    for examples in _NUMBERS_OF_EXAMPLES:
        user = _random_user(bundle, len(vocabulary.keys), examples, random)
        scores = reference.scores(user, len(vocabulary.keys))
        excluded = np.flatnonzero(random.random(scores.size) < _SHARE_EXCLUDED).astype(np.int64)
        for level, session in sessions.items():
            taken = {value.name for value in session.get_inputs()}
            inputs = {name: column for name, column in user.items() if name in taken}
            inputs |= {EXCLUDED: excluded, COUNT: np.array([scores.size + 1], dtype=np.int64)}
            rows, found = session.run([ROWS, SCORES], inputs)
            what = f"{examples} examples, {level} optimisation"
            largest = max(
                largest, _compare_ranking(rows, found, scores, {*excluded.tolist(), *vocabulary.retired}, what)
            )
    return largest


def _compare_ranking(
    rows: NDArray[np.int64], found: NDArray[np.float32], scores: NDArray[np.float32], left_out: set[int], what: str
) -> float:
    """Returns the largest difference of a score; refuses wrong scores, missing rows and a wrong order."""
    if set(rows.tolist()) != set(range(scores.size)) - left_out or len(set(rows.tolist())) != rows.size:
        raise WrongRecommenderError(f"{what}: the ranking does not hold exactly the rows that may be recommended")
    if rows.size == 0:
        return 0.0
    difference = float(np.abs(found - scores[rows]).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(scores).max())):
        raise WrongRecommenderError(
            f"{what}: the recommender's scores differ from the plan's own by up to {difference:.3g}, more than "
            f"{TOLERANCE:g}; it is not published"
        )
    in_order = (np.diff(found) < 0) | ((np.diff(found) == 0) & (np.diff(rows) > 0))
    if not in_order.all():
        raise WrongRecommenderError(f"{what}: the ranking is not in the order of its scores")
    return difference


def _random_user(bundle: Bundle, rows: int, examples: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Returns random examples; with more examples than rows, rows repeat."""
    return {field.name: _random_column(field, rows, examples, random) for field in bundle.manifest.fields}


def _random_column(field: Field, rows: int, examples: int, random: np.random.Generator) -> NDArray[Any]:
    """Returns random values of a field, in the type that the recommender takes."""
    if field.vocabulary:
        return random.permutation(np.resize(random.permutation(rows), max(examples, rows)))[:examples]
    if field.dtype == common_pb2.DTYPE_BOOL:
        return random.integers(0, 2, examples).astype(np.float32)
    values = random.uniform(field.minimum, field.maximum, examples) if field.limited else random.normal(size=examples)
    whole = field.dtype in {common_pb2.DTYPE_INT32, common_pb2.DTYPE_INT64}
    return (np.rint(values) if whole else values).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stepwise:
    """A plan's own graphs, run one after the other as a device does: the reference.

    Attributes:
        bundle: the plan.
        checkpoint: global parameters.
        work: the task's choice of schedule and hyperparameters.
        sessions: the graphs, opened.
    """

    bundle: Bundle
    checkpoint: Arrays
    work: LocalWork
    sessions: Mapping[GraphRole.ValueType, onnxruntime.InferenceSession]

    @classmethod
    def open(cls, bundle: Bundle, checkpoint: Arrays, work: LocalWork) -> Stepwise:
        """Opens the graphs of a plan, at the basic optimisation level."""
        sessions = {role: open_session(content, basic=True) for role, content in bundle.graphs.items()}
        return cls(bundle, checkpoint, work, sessions)

    def scores(self, user: Arrays, rows: int) -> NDArray[np.float32]:
        """Returns the scores of all rows for a user with these examples, `[rows] float32`."""
        local = self.reconstruct(user)
        item = self.bundle.item_field().name
        fields = {item: np.arange(rows, dtype=np.int64)}
        answers = self._run(plan_pb2.GRAPH_ROLE_PREDICT, fields, {**self.checkpoint, **local}, {})
        return next(
            answers[value.name].astype(np.float32, copy=False)
            for value in graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_PREDICT).outputs
            if value.source == plan_pb2.VALUE_SOURCE_SCORES
        )

    def reconstruct(self, user: Arrays) -> dict[str, NDArray[Any]]:
        """Returns the local parameters of a user with these examples: reconstructed over all of them."""
        local = initial_locals(self.bundle.manifest, self.checkpoint, bytes(SEED_BYTES))
        graph = graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_RECONSTRUCT)
        examples = len(next(iter(user.values())))
        fields = {
            name: column.astype(numpy_types[self.bundle.field(name).dtype], copy=False) for name, column in user.items()
        }
        parameters = {**self.checkpoint, **local}
        if plan_pb2.GRAPH_ROLE_TOUCH in self.sessions:
            fields, parameters = self._touch(fields, parameters)
        answers = self._run(graph.role, fields, parameters, self._steps(graph, examples))
        for value in graph.outputs:
            if value.source == plan_pb2.VALUE_SOURCE_PARAMETER:
                local[value.reference] = answers[value.name]
        return local

    def _touch(
        self, fields: dict[str, NDArray[Any]], parameters: dict[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Returns fields renumbered into the rows that the examples name, and parameters cut down to those rows."""
        answers = self._run(plan_pb2.GRAPH_ROLE_TOUCH, fields, {}, {})
        renumbered, rows = dict(fields), {}
        for value in graph_of(self.bundle.manifest, plan_pb2.GRAPH_ROLE_TOUCH).outputs:
            if value.source == plan_pb2.VALUE_SOURCE_ROWS:
                rows[value.reference] = answers[value.name]
            else:
                renumbered[value.reference] = answers[value.name]
        cut = {
            name: values[rows[vocabulary]] if (vocabulary := self.bundle.parameter(name).vocabulary) else values
            for name, values in parameters.items()
        }
        return renumbered, cut

    def _steps(self, graph: Graph, examples: int) -> dict[int, NDArray[Any]]:
        """Returns order and mask of a reconstruction over all examples, by source."""
        if not any(value.source == plan_pb2.VALUE_SOURCE_ORDER for value in graph.inputs):
            return {plan_pb2.VALUE_SOURCE_MASK: np.ones(examples, dtype=np.float32)}
        order, mask = schedules.order(np.arange(examples, dtype=np.int64), schedule_of(self.bundle, self.work))
        return {plan_pb2.VALUE_SOURCE_ORDER: order, plan_pb2.VALUE_SOURCE_MASK: mask}

    def _run(
        self, role: GraphRole.ValueType, fields: Arrays, parameters: Arrays, steps: Mapping[int, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Runs a graph, and returns its outputs by name."""
        graph = graph_of(self.bundle.manifest, role)
        inputs: dict[str, NDArray[Any]] = {}
        for value in graph.inputs:
            match value.source:
                case plan_pb2.VALUE_SOURCE_PARAMETER:
                    inputs[value.name] = parameters[value.reference]
                case plan_pb2.VALUE_SOURCE_FIELD:
                    inputs[value.name] = fields[value.reference]
                case plan_pb2.VALUE_SOURCE_HYPERPARAMETER:
                    chosen = np.float32(hyperparameter_of(self.bundle, self.work, value.reference))
                    per_step = self.bundle.manifest.hyperparameters[value.reference].per_step
                    shape = steps[plan_pb2.VALUE_SOURCE_ORDER].shape[:1] if per_step else ()
                    inputs[value.name] = np.full(shape, chosen, dtype=np.float32)
                case _:
                    inputs[value.name] = steps[value.source]
        session = self.sessions[role]
        names = [value.name for value in graph.outputs]
        return dict(zip(names, session.run(names, inputs), strict=True))


def check_recorded_answers(bundle: Bundle) -> None:
    """Raises unless the plan's graphs give torch's recorded answers in this runtime, at both levels.

    Raises:
        WrongRecommenderError: an answer differs; the message names the case and the largest difference.
    """
    for role, content in bundle.graphs.items():
        graph_name = GraphRole.Name(role).removeprefix("GRAPH_ROLE_").lower()
        cases = list(_recorded_cases(bundle.recorded_answers, graph_name))
        if not cases:
            continue
        for session in (open_session(content), open_session(content, basic=True)):
            for case, inputs, expected in cases:
                answers = dict(zip(expected, session.run(list(expected), inputs), strict=True))
                for name, array in expected.items():
                    _compare_recorded(answers[name], array, f"case {case!r}, {graph_name}, {name!r}")


def _recorded_cases(
    recorded: Arrays, graph_name: str
) -> Iterator[tuple[str, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
    """Yields the cases of a graph: name, inputs, and torch's outputs."""
    cases: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    for key, array in recorded.items():
        case, graph, direction, name = key.split("/", 3)
        if graph == graph_name:
            cases.setdefault(case, {"input": {}, "output": {}})[direction][name] = array
    for case, values in sorted(cases.items()):
        yield case, values["input"], values["output"]


def _compare_recorded(found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    """Refuses an answer that is not torch's."""
    scale = float(np.abs(expected).max(initial=1.0))
    # A float32 graph of tens of steps agrees with torch to about 1e-6 of its largest value.
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE * scale):
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        raise WrongRecommenderError(
            f"{what}: this runtime (onnxruntime {onnxruntime.__version__}) differs from torch by {difference:.3g}; "
            "compile the plan anew, or use the runtime it was compiled with"
        )
