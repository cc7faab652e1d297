"""How one row of the next-word experiments is trained, stopped and judged.

Rules: a run sees training users to learn from and validation users to stop by, nothing else. FedRecon makes support and
query disjoint in training, too; where nothing is local there is nothing to reconstruct, and all examples update. Every
row is judged on the newer half of each user's examples; what it still fits, it fits on the older half.

Source: Singhal et al. 2021, Federated Reconstruction, appendix C.2 (arXiv 2102.03448): Yogi on the server with
accumulator 0, beta2 0.99 and epsilon 1e-3, as Reddi et al. 2020 (arXiv 2003.00295) have it with beta1 0.9.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from fedrecon.learning.experiments.next_word_comparisons import accuracy_of
from fedrecon.learning.experiments.next_word_rows import Learner, Rates, Size, Tuning
from fedrecon.learning.experiments.next_word_text import Writers, examples_of
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.next_word import (
    BATCH_SIZE,
    MAXIMUM_STEPS,
    OOV_DEFAULT,
    OOV_EMBEDDING,
    OovEmbeddings,
    next_word,
)
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, UPDATE_RATE, GradientSteps, Hyperparameter, Schedule
from fedrecon.learning.simulation import (
    ClientExamples,
    Evaluation,
    FineTuning,
    Simulator,
    Training,
    Validation,
    evaluate,
    train,
)
from fedrecon.v1 import plan_pb2, task_pb2

Progress = Callable[[int, int, str], None]
"""(done, most, what is said): rounds of a run."""

FIRST_MOMENT, SECOND_MOMENT, ADAPTIVITY = 0.9, 0.99, 1e-3
LARGEST_RATE = 10.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured, in percent of the positions that count.

    Attributes:
        accuracy: the first choice among all ids is right: the paper's accuracy.
        among_words: the first choice among words is right.
    """

    accuracy: float
    among_words: float


@dataclass(frozen=True, slots=True)
class Point:
    """Figures on validation after a round."""

    round: int
    figures: Figures


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What one training came to.

    Attributes:
        judging: the model, and how it is evaluated.
        learner: what was trained.
        rates: that it was trained with.
        global_parameters: of the best round, by name.
        best: that round.
        curve: figures on validation along the way.
        seconds: that it took.
    """

    judging: Simulator
    learner: Learner
    rates: Rates
    global_parameters: Mapping[str, Tensor]
    best: int
    curve: tuple[Point, ...]
    seconds: float

    @property
    def bytes_each_way(self) -> int:
        """That one client downloads in a round, and as many that it uploads: all global parameters in float32."""
        return bytes_of(self.global_parameters)


@dataclass(slots=True, eq=False)
class Text:
    """The writers' examples for one number of words, and the simulators that run on them.

    Attributes:
        writers: train and validation users.
        words: of the vocabulary; no more than the training users know.
        size: of models and data.
    """

    writers: Writers
    words: int
    size: Size
    _examples: dict[tuple[int, str], ClientExamples] = field(default_factory=dict)
    _simulators: dict[Learner, Simulator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = len(self.writers.vocabulary(self.words, 1).words)

    def train(self, oov_buckets: int) -> ClientExamples:
        """Give the training users' examples, with words out of vocabulary in so many buckets."""
        return self._made(oov_buckets, "train")

    def validation(self, oov_buckets: int) -> ClientExamples:
        """Give the validation users' examples, likewise."""
        return self._made(oov_buckets, "validation")

    def _made(self, oov_buckets: int, part: str) -> ClientExamples:
        key = (oov_buckets, part)
        if key not in self._examples:
            vocabulary = self.writers.vocabulary(self.words, oov_buckets)
            users = self.writers.train if part == "train" else self.writers.validation
            self._examples[key] = examples_of(users, vocabulary, self.size.length, self.size.sentences)
        return self._examples[key]

    def simulator(self, learner: Learner, rates: Rates, seed: int, *, evaluates: bool) -> Simulator:
        """Give the simulator of a learner, at its beginning.

        Args:
            learner: what is trained or judged.
            rates: that it is told.
            seed: of the parameters before the first round.
            evaluates: whether support and query are those of the protocol.
        """
        model = model_of(learner, self.words, self.size, seed)
        made = self._simulators.setdefault(learner, Simulator(model, task_pb2.LocalWork(), self.size.compiled))
        made.model.module.load_state_dict(model.module.state_dict())
        # The copy shares with its original what was traced and compiled.
        return replace(made, work=work_of(learner, rates, evaluates=evaluates))


def model_of(learner: Learner, words: int, size: Size, seed: int) -> FederatedModel:
    """Give the model of a learner.

    Args:
        learner: what is trained.
        words: of the vocabulary.
        size: of the model.
        seed: of the parameters before the first round.
    """
    model = next_word(
        words,
        learner.oov_buckets,
        size.embedding,
        size.hidden,
        size.projection,
        length=size.length,
        oov=learner.oov,
        seed=seed,
    )
    rate = Hyperparameter(Rates().reconstruct, 0.0, LARGEST_RATE)
    return replace(model, reconstruction=GradientSteps(rate, learner.reconstruct_schedule, learner.optimizer))


def work_of(learner: Learner, rates: Rates, *, evaluates: bool) -> task_pb2.LocalWork:
    """Give what a device is told: in training, or in evaluation.

    Args:
        learner: what is trained or judged.
        rates: that it is told.
        evaluates: whether support and query are those of the protocol.
    """
    undivided = learner.oov is OovEmbeddings.GLOBAL and not evaluates
    return task_pb2.LocalWork(
        split=task_pb2.SPLIT_RULE_NONE if undivided else task_pb2.SPLIT_RULE_BY_TIME,
        support_fraction=0.5,
        minimum_examples=2,
        reconstruct_schedule=_message(learner.reconstruct_schedule),
        update_schedule=_message(learner.update_schedule),
        hyperparameters={UPDATE_RATE: rates.update, RECONSTRUCT_RATE: rates.reconstruct},
    )


def run_training(
    learner: Learner, rates: Rates, text: Text, rounds: int, seed: int, progress: Progress, folder: Path | None = None
) -> Run:
    """Train one learner.

    Args:
        learner: what is trained.
        rates: that it is trained with.
        text: whom it is trained on and stopped by.
        rounds: at most.
        seed: of everything that is drawn.
        progress: told after every round.
        folder: of the output; a training that was stopped there goes on where it was.
    """
    begin = time.monotonic()
    told = repr((learner, rates, text.words, text.size, rounds, seed))
    checkpoints = None if folder is None else folder / "trainings" / hashlib.sha256(told.encode()).hexdigest()[:16]
    judging = text.simulator(learner, rates, seed, evaluates=True)
    server = task_pb2.ServerOptimizer(
        rule=task_pb2.OPTIMIZER_RULE_YOGI,
        rate=rates.server,
        momentum=FIRST_MOMENT,
        second_momentum=SECOND_MOMENT,
        adaptivity=ADAPTIVITY,
    )
    trained = train(
        text.simulator(learner, rates, seed, evaluates=False),
        text.train(learner.oov_buckets),
        Training(server, text.size.cohort, rounds, seed, evaluate_every=text.size.evaluate_every),
        Validation(judging, text.validation(learner.oov_buckets), lambda found: -accuracy_of(found, "right")),
        progress=lambda done, history: progress(done, rounds, f"{-history[-1].loss:.2f}%" if history else ""),
        checkpoints=checkpoints,
    )
    curve = tuple(
        Point(each.round, Figures(-each.loss, 100.0 * each.metrics["right_among_words"] / each.metrics["counted"]))
        for each in trained.history
    )
    seconds = time.monotonic() - begin
    return Run(judging, learner, rates, trained.global_parameters, trained.best_round, curve, seconds)


def judge(run: Run, tuning: Tuning, tuning_rate: float, text: Text, clients: ClientExamples, seed: int) -> Evaluation:
    """Evaluate a run: reconstruct and fit on the older half of each user's examples, score the newer half.

    Args:
        run: what is judged.
        tuning: what is still fitted.
        tuning_rate: of SGD for that.
        text: whose simulators are used.
        clients: examples of the users to judge on, with the learner's buckets.
        seed: of initial local parameters.
    """
    match tuning:
        case Tuning.NONE:
            return evaluate(run.judging, run.global_parameters, clients, seed)
        case Tuning.OOV:
            # A table that all share, as the start of one's own: fitting it is a reconstruction.
            own = replace(run.learner, oov=OovEmbeddings.LOCAL_FROM_DEFAULT)
            tuned = text.simulator(own, replace(run.rates, reconstruct=tuning_rate), seed, evaluates=True)
            shared = {
                OOV_DEFAULT if name == OOV_EMBEDDING else name: value for name, value in run.global_parameters.items()
            }
            return evaluate(tuned, shared, clients, seed)
        case Tuning.ALL:
            schedule = _message(Schedule(BATCH_SIZE, epochs=1, maximum_steps=MAXIMUM_STEPS))
            fitting = FineTuning(schedule, tuning_rate)
            return evaluate(run.judging, run.global_parameters, clients, seed, fine_tuning=fitting)


def bytes_of(parameters: Mapping[str, Tensor]) -> int:
    """Give how many bytes parameters take as they are."""
    return sum(value.numel() * value.element_size() for value in parameters.values())


def figures_of(evaluation: Evaluation) -> Figures:
    """Give the pooled figures of an evaluation."""
    return Figures(accuracy_of(evaluation, "right"), accuracy_of(evaluation, "right_among_words"))


def _message(schedule: Schedule) -> plan_pb2.Schedule:
    return plan_pb2.Schedule(
        batch_size=schedule.batch_size, epochs=schedule.epochs, maximum_steps=schedule.maximum_steps
    )
