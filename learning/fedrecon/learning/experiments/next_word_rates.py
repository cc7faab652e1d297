"""Which rates a learner is trained with: chosen on validation users, from the paper's grids.

`CHOSEN` was chosen by `choose_rates` at the smallest vocabulary of `SMALL`, seed 0, as `--choose-rates` does again:
every combination is trained for a quarter of the rounds, and the one with the best accuracy is kept.

Source of the grids: Singhal et al. 2021, appendix C.2 (arXiv 2102.03448).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fedrecon.learning.client_optimizers import Adagrad
from fedrecon.learning.experiments.next_word_rows import (
    FEDRECON,
    FEDYOGI,
    GLOBAL_BUCKETS,
    ONE_BUCKET,
    RECONSTRUCT_GRID,
    SERVER_GRID,
    UPDATE_GRID,
    Learner,
    Rates,
)
from fedrecon.learning.experiments.next_word_runs import Progress, Text, run_training
from fedrecon.learning.models.next_word import OovEmbeddings

CHOSEN: Mapping[Learner, Rates] = {
    FEDYOGI.learner: Rates(),
    GLOBAL_BUCKETS: Rates(),
    ONE_BUCKET.learner: Rates(),
    FEDRECON.learner: Rates(),
    Learner(500, optimizer=Adagrad()): Rates(),
}

SHARE_OF_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Tried:
    """A combination that was tried.

    Attributes:
        learner: what was trained.
        rates: with which rates.
        accuracy: best on validation, in percent.
    """

    learner: Learner
    rates: Rates
    accuracy: float


def grid_of(learner: Learner) -> list[Rates]:
    """Give all combinations of the paper's grids; where nothing is local, reconstruction has no rate."""
    reconstruct = RECONSTRUCT_GRID if learner.oov is OovEmbeddings.LOCAL else RECONSTRUCT_GRID[:1]
    return [Rates(*each) for each in product(SERVER_GRID, UPDATE_GRID, reconstruct)]


def choose_rates(learners: Sequence[Learner], text: Text, progress: Progress) -> list[Tried]:
    """Train every learner with every combination, for a part of the rounds.

    Args:
        learners: what is trained.
        text: whom it is trained and judged on.
        progress: told after every round.
    """
    rounds = max(1, text.size.rounds // SHARE_OF_ROUNDS)
    return [
        Tried(
            learner,
            rates,
            max(point.figures.accuracy for point in run_training(learner, rates, text, rounds, 0, progress).curve),
        )
        for learner in learners
        for rates in grid_of(learner)
    ]


def best_of(tried: Sequence[Tried]) -> dict[Learner, Rates]:
    """Give the rates of each learner's best combination; of equal ones the first."""
    best: dict[Learner, Tried] = {}
    for each in tried:
        if each.learner not in best or each.accuracy > best[each.learner].accuracy:
            best[each.learner] = each
    return {learner: each.rates for learner, each in best.items()}


def rates_of(learner: Learner, chosen: Mapping[Learner, Rates]) -> Rates:
    """Give a learner's rates; a variant that was not tried has those of FedRecon with 500 buckets."""
    return chosen.get(learner, chosen[FEDRECON.learner])
