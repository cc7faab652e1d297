"""The rows of the next-word tables: what the paper says, and the configuration behind ours.

Sizes: `SMALL` is what two cores finish in well under an hour a table, on the text of a few small sites; `FULL` is the
paper's own (appendix C.2). The smaller vocabularies of `SMALL` leave about as many words out as the paper's smallest.

Rates are of the paper's grids, and were chosen on validation users alone (`next_word_rates`).

Source: Singhal et al. 2021, Federated Reconstruction, tables 2 and 4 (arXiv 2102.03448). The paper's rows are told
apart by what its text and figures say: FedYogi is on a par with FedRecon of one bucket and is taken to have one, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fedrecon.learning.client_optimizers import Adagrad, ClientOptimizer, Sgd
from fedrecon.learning.models.next_word import BATCH_SIZE, MAXIMUM_STEPS, OovEmbeddings
from fedrecon.learning.reconstruction import Schedule

PAPER_VOCABULARIES = (1_000, 5_000, 10_000)


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is.

    Attributes:
        vocabularies: words of the three vocabularies, the smallest first.
        embedding: length of an embedding.
        hidden: width of the LSTM.
        projection: width between LSTM and output.
        length: positions of an example.
        sentences: examples of a user, the newest, at most.
        cohort: devices in a round.
        rounds: at most.
        evaluate_every: rounds between looks at validation.
        compiled: whether steps are compiled; at small sizes compiling takes longer than it saves.
    """

    vocabularies: tuple[int, int, int]
    embedding: int
    hidden: int
    projection: int
    length: int
    sentences: int
    cohort: int
    rounds: int
    evaluate_every: int
    compiled: bool = False


FULL = Size(PAPER_VOCABULARIES, 96, 670, 96, 20, 1000, cohort=200, rounds=2500, evaluate_every=50, compiled=True)
SMALL = Size((250, 500, 1000), 32, 64, 32, 20, 64, cohort=12, rounds=400, evaluate_every=40)
QUICK = Size((40, 50, 60), 8, 16, 8, 12, 32, cohort=8, rounds=6, evaluate_every=3)


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates, all three of the paper's grids.

    Attributes:
        server: of Yogi.
        update: of the device's SGD on the global parameters.
        reconstruct: of the reconstruction's steps; without meaning where nothing is local.
    """

    server: float = 0.1
    update: float = 0.3
    reconstruct: float = 0.1


SERVER_GRID, UPDATE_GRID, RECONSTRUCT_GRID = (0.01, 0.1, 0.3), (0.1, 0.3), (0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained; rows with one learner share its run.

    Attributes:
        oov_buckets: buckets of words out of vocabulary.
        oov: whose their embeddings are.
        optimizer: of the reconstruction.
        reconstruct_steps: of 16 sentences, in training and evaluation, at most; 0: embeddings stay as drawn.
        update_steps: of 16 sentences, in training, at most.
        again: whether who has fewer sentences than the steps take goes over them again.
    """

    oov_buckets: int
    oov: OovEmbeddings = OovEmbeddings.LOCAL
    optimizer: ClientOptimizer = field(default_factory=Sgd)
    reconstruct_steps: int = MAXIMUM_STEPS
    update_steps: int = MAXIMUM_STEPS
    again: bool = False

    @property
    def reconstruct_schedule(self) -> Schedule:
        """One pass over the support set, or as many as the steps take."""
        return self._schedule(self.reconstruct_steps)

    @property
    def update_schedule(self) -> Schedule:
        """One pass over the query set, or as many as the steps take."""
        return self._schedule(self.update_steps)

    def _schedule(self, steps: int) -> Schedule:
        return Schedule(BATCH_SIZE, epochs=steps if self.again else min(steps, 1), maximum_steps=steps)


class Tuning(Enum):
    """What a device still fits on its support set when it is judged, after any reconstruction."""

    NONE = "nothing"
    OOV = "the embeddings of OOV buckets"
    ALL = "all parameters"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        name: as it is printed.
        learner: what is trained.
        tuning: what is still fitted on the device when it is judged.
        paper: the paper's accuracy in percent at 1k, 5k and 10k words; None where it has no such row.
    """

    name: str
    learner: Learner
    tuning: Tuning = Tuning.NONE
    paper: tuple[float, float, float] | None = None


FEDYOGI = Row("FedYogi", Learner(1, OovEmbeddings.GLOBAL), paper=(24.3, 26.3, 26.7))
ONE_BUCKET = Row("FedRecon, 1 OOV", Learner(1), paper=(24.1, 26.2, 26.4))
FEDRECON = Row("FedRecon, 500 OOV", Learner(500), paper=(29.6, 28.1, 27.7))
GLOBAL_BUCKETS = Learner(500, OovEmbeddings.GLOBAL)

TABLE_2 = (
    FEDYOGI,
    Row("FedYogi, 500 OOV", GLOBAL_BUCKETS),
    ONE_BUCKET,
    FEDRECON,
    Row("FedRecon, 500 OOV, Adagrad", Learner(500, optimizer=Adagrad())),
    Row("OOV fine-tuning", GLOBAL_BUCKETS, Tuning.OOV, (30.0, 28.1, 27.9)),
    Row("full fine-tuning", GLOBAL_BUCKETS, Tuning.ALL, (30.8, 29.2, 28.8)),
    Row("FedRecon + fine-tuning", FEDRECON.learner, Tuning.ALL, (30.7, 28.9, 28.6)),
)

BUCKETS = (1, 20, 100, 500)
RECONSTRUCT_STEPS = (0, 1, 2, 5, 10)
UPDATE_STEPS = (1, 2, 5, 10)


def with_buckets(buckets: int) -> Row:
    """Give the row of FedRecon with so many OOV buckets."""
    known = {row.learner.oov_buckets: row for row in (ONE_BUCKET, FEDRECON)}
    return known.get(buckets, Row(f"FedRecon, {buckets} OOV", Learner(buckets)))


def with_steps(steps: int) -> Row:
    """Give the row of FedRecon with exactly so many reconstruction steps, in training and evaluation."""
    return Row(f"FedRecon, 500 OOV, k_r = {steps}", Learner(500, reconstruct_steps=steps, again=True))


def few_steps(reconstruct: int, update: int) -> Row:
    """Give the row of FedRecon with exactly so many steps of each kind."""
    learner = Learner(500, reconstruct_steps=reconstruct, update_steps=update, again=True)
    return Row(f"FedRecon, 500 OOV, k_r = {reconstruct}, k_u = {update}", learner)
