"""A recommender is proved before anybody is served: against its plan's own graphs, run step by step.

Rules: ONNX Runtime at its default and at its basic optimisation level, because it has been seen to compute wrong
numbers, silently, at one and not at the other. Users are random and seeded: none, one and many examples. First the
plan's graphs must give torch's recorded answers here; then the recommender must give the graphs' scores, and a ranking
that is those scores in order. What differs is refused, with the largest difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedrecon.inference.batch_drawing import draw_batch
from fedrecon.inference.batching import run_together
from fedrecon.inference.bundles import (
    Arrays,
    Bundle,
    NotExportableError,
    read_checkpoint,
    read_items,
)
from fedrecon.inference.exporting import Origin, export
from fedrecon.inference.linear_forms import find_linear_form
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.recommending import DivergedError, OpenRecommender, Prepared
from fedrecon.inference.stepwise import Stepwise, open_session
from fedrecon.v1 import common_pb2
from fedrecon.v1.plan_pb2 import Field, GraphRole
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.digests import digest_of
from fedrecon.wire.vocabularies import Items

TOLERANCE = 1e-5
"""Largest difference of a score, relative to the largest score where that is above 1: what float32 leaves."""

_NUMBERS_OF_EXAMPLES = (0, 1, 2, 7, 61)
_SHARE_EXCLUDED = 0.1


class WrongRecommenderError(NotExportableError):
    """A recommender differs from the plan that it was made of."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A recommender, proved.

    Attributes:
        recommender: the ONNX file.
        items: the stored bytes of its vocabulary.
        round: the round of its checkpoint.
        largest_difference: of a score from the plan's own graphs.
        together: the graph for many users at once, proved equal to the recommender; None where there is none.
    """

    recommender: bytes
    items: bytes
    round: int
    largest_difference: float
    together: bytes | None = None


def export_proved(
    bundle: Bundle, checkpoint: bytes, items: bytes, task: str, round_number: int, work: LocalWork
) -> Exported:
    """Returns the recommender of a checkpoint, after it was proved.

    Args:
        bundle: the plan.
        checkpoint: the safetensors file of the global parameters.
        items: the stored bytes of the vocabulary.
        task: name of the task; empty for none.
        round_number: the round that made the checkpoint.
        work: the task's choice of schedule and hyperparameters.

    Raises:
        MalformedTensorsError: the checkpoint is no safetensors file.
        MalformedVocabularyError: the vocabulary is damaged.
        NotExportableError: the parts do not fit together, or what was made of them differs from the plan.
    """
    tensors, vocabulary = read_checkpoint(bundle, checkpoint), read_items(bundle, items)
    origin = Origin(task, round_number, digest_of(checkpoint), digest_of(items))
    form = find_linear_form(bundle, tensors, len(vocabulary.keys), work)
    content = export(bundle, tensors, vocabulary, origin, work, form)
    try:
        difference = verify_export(content, bundle, tensors, vocabulary, work)
    except WrongRecommenderError:
        if form is None:
            raise
        # The plan is not what it was taken for.
        form = None
        content = export(bundle, tensors, vocabulary, origin, work)
        difference = verify_export(content, bundle, tensors, vocabulary, work)
    together = None
    if form is not None and form.ridge is not None:
        together = draw_batch(form, vocabulary)
        verify_together(together, content, bundle, vocabulary)
    return Exported(content, items, round_number, difference, together)


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
        NotExportableError: the plan itself gives no finite scores.
    """
    reference = Stepwise.open(bundle, checkpoint, work)
    sessions = {level: open_session(recommender, basic=level == "basic") for level in ("default", "basic")}
    check_recorded_answers(bundle)
    random = np.random.default_rng(seed)
    largest = 0.0
    for examples in _NUMBERS_OF_EXAMPLES:
        user = _random_user(bundle, len(vocabulary.keys), examples, random)
        scores = reference.scores(user, len(vocabulary.keys))
        if not np.isfinite(scores).all():
            raise NotExportableError(
                f"the reconstruction diverges for a user with {examples} random examples: lower `reconstruct.rate`, "
                "or the rates of the training that made item vectors so long"
            )
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


def verify_together(together: bytes, recommender: bytes, bundle: Bundle, vocabulary: Items, *, seed: int = 0) -> None:
    """Raises unless the graph for many users gives each of them what the recommender gives them alone.

    Args:
        together: the graph for many.
        recommender: the exported file.
        bundle: its plan.
        vocabulary: what it recommends.
        seed: of the random users.

    Raises:
        WrongRecommenderError: a score differs by more than the tolerance, or a ranking is another.
    """
    opened = OpenRecommender.open(recommender, vocabulary, together)
    random = np.random.default_rng(seed)
    users = []
    for examples in _NUMBERS_OF_EXAMPLES:
        examples_of_user = _random_user(bundle, len(vocabulary.keys), examples, random)
        given = {each.name: examples_of_user[each.name] for each in opened.fields}
        excluded = np.flatnonzero(random.random(len(vocabulary.keys)) < _SHARE_EXCLUDED).astype(np.int64)
        users.append(Prepared(given, excluded, len(vocabulary.keys), np.arange(examples), (), 0))
    for user, found in zip(users, run_together(opened, users), strict=True):
        if isinstance(found, DivergedError):
            raise WrongRecommenderError("the graph for many users diverges")
        alone = opened.answer(user)
        scores = np.zeros(len(vocabulary.keys), dtype=np.float32)
        scores[alone.rows] = alone.scores
        left_out = {*user.excluded.tolist(), *vocabulary.retired}
        _compare_ranking(found.rows, found.scores, scores, left_out, f"{len(user.known)} examples, with others")


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
