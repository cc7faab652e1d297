"""What the sums of matrix factorisation give away: users exposed by cohort size, without and with public row sets.

The paper's MovieLens setting (Singhal et al. 2021, appendix C), after some rounds of training: cohorts of 100 to 1,000
are summed exactly, as a masked sum does, and `collinearity` attacks the sums. Then the same with the rows restricted
to those that at least R members are expected to update; restricted before the sum or after it, the rows that remain are
the same. Every figure is the mean of several cohorts.

`exposed` are users whose vectors the attack finds (|cosine| above 0.999) without knowing anything else. `alone` are
users who are the only contributor of a row: their vector is in the sum, though nothing in the sum says where, and an
attacker who knows more could find it. The price is told beside: the rows and the ratings that still train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrecon.benchmarks.collinearity import exposed_users, find_users
from fedrecon.benchmarks.measures import Measure
from fedrecon.datasets import cap_ratings, generate, load
from fedrecon.datasets.popularity import rows_with_contributors
from fedrecon.datasets.ratings import Ratings
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.simulation import ClientExamples, Rounds, Simulator, Training
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork, ServerOptimizer

COHORTS = (100, 200, 500, 1000)
CONTRIBUTORS = (1, 2, 3, 5, 10)
"""R: least contributors expected of a row that is summed."""
MOVIELENS_USERS, MOVIELENS_ITEMS = 6040, 3706
FACTORS = 50
ROUNDS_BEFORE = 20
_SUMS = 5
_TABLE = "item_vectors.weight"
_USER_VECTOR = "user_vector"


@dataclass(frozen=True, slots=True)
class Leakage:
    """What the sums of one cohort size give away, under one rule.

    Attributes:
        cohort: devices in a sum.
        contributors: R; 0 for all rows.
        exposed: users that the attack finds, mean over sums.
        alone: users who are the only contributor of some row, mean over sums.
        rows_kept: share of the table's rows.
        ratings_kept: share of all ratings that are of those rows.
    """

    cohort: int
    contributors: int
    exposed: float
    alone: float
    rows_kept: float
    ratings_kept: float


def measure_leakage(data: Path | None, plot: Path | None) -> list[Measure]:
    """Attack sums of all cohort sizes.

    Args:
        data: A folder of MovieLens ratings; ratings of the same shape are made up where it is None.
        plot: Where a chart is written; None for none.
    """
    if data is None:
        ratings, source = generate(users=MOVIELENS_USERS, items=MOVIELENS_ITEMS, seed=0), "made-up ratings"
    else:
        folder = data / "ml-1m" if (data / "ml-1m").is_dir() else data
        ratings = load(folder)
        source = f"{len(ratings.user_keys):,} users of {folder.name}"
    leakages = attack(ratings, [size for size in COHORTS if size <= len(ratings.user_keys)])
    if plot is not None:
        _draw(leakages, source, plot)
    return [measure for leakage in leakages for measure in _measures(leakage)]


def attack(ratings: Ratings, cohorts: Sequence[int], *, compiled: bool = True) -> list[Leakage]:
    """Returns what sums give away, by cohort size and rule, all rows first.

    Args:
        ratings: of the users whose updates are summed, and the public popularity as well.
        cohorts: sizes.
        compiled: whether the simulation is compiled, which takes longer than a few small cohorts.
    """
    own = [own[cap_ratings(len(own), user)] for user, own in enumerate(ratings.by_user())]
    ratings = ratings.select(np.concatenate(own))
    clients = ClientExamples.from_clients(
        [{"item": ratings.items[one], "rating": ratings.ratings[one]} for one in ratings.by_user()]
    )
    simulator = Simulator(matrix_factorization(len(ratings.item_keys), FACTORS, seed=0), _work(), compiled=compiled)
    optimizer = ServerOptimizer(rule=task_pb2.OPTIMIZER_RULE_SGD, rate=1.0)
    rounds = Rounds.begin(simulator, clients, Training(optimizer, min(cohorts), ROUNDS_BEFORE))
    for _ in range(ROUNDS_BEFORE):
        rounds.advance()
    per_item = ratings.ratings_per_item()
    leakages = []
    for cohort in cohorts:
        generator = np.random.default_rng(cohort)
        sums = [_sum(rounds, cohort, generator) for _ in range(_SUMS)]
        for contributors in (0, *CONTRIBUTORS):
            rows = rows_with_contributors(ratings, cohort, contributors)
            found = [exposed_users(find_users(each.total[rows], cohort), each.vectors) for each in sums]
            leakages.append(
                Leakage(
                    cohort=cohort,
                    contributors=contributors,
                    exposed=float(np.mean([len(users) for users in found])),
                    alone=float(np.mean([each.alone(rows) for each in sums])),
                    rows_kept=len(rows) / len(per_item),
                    ratings_kept=float(per_item[rows].sum() / per_item.sum()),
                )
            )
    return leakages


@dataclass(frozen=True, slots=True, eq=False)
class _Sum:
    """The sum of a cohort's updates of the item table, and what is true of it.

    Attributes:
        total: `[items, factors]`.
        vectors: of the cohort's users, `[users, factors]`.
        users: of every example that was updated, as a position in the cohort, `[examples]`.
        items: of every example that was updated, `[examples]`.
    """

    total: NDArray[np.float32]
    vectors: NDArray[np.float32]
    users: NDArray[np.int64]
    items: NDArray[np.int64]

    def alone(self, rows: NDArray[np.int64]) -> int:
        """Returns how many users are the only contributor of one of some rows."""
        contributors = np.bincount(self.items, minlength=len(self.total))
        single = np.zeros(len(self.total), dtype=bool)
        single[rows] = contributors[rows] == 1
        return len(np.unique(self.users[single[self.items]]))


def _work() -> LocalWork:
    return LocalWork(
        split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES,
        reconstruct_schedule=Schedule(batch_size=5, epochs=5, maximum_steps=50),
        update_schedule=Schedule(batch_size=5, epochs=1, maximum_steps=50),
    )


def _sum(rounds: Rounds, cohort: int, generator: np.random.Generator) -> _Sum:
    members = generator.choice(len(rounds.clients), cohort, replace=False)
    total = rounds.simulator.run(rounds.tensors(), rounds.clients, members, ROUNDS_BEFORE + 1, generator)
    _, query = rounds.simulator.halves(rounds.clients, members, generator)
    return _Sum(
        total=total.updates[_TABLE].cpu().numpy(),
        vectors=total.local_parameters[_USER_VECTOR].cpu().numpy(),
        users=np.repeat(np.arange(cohort), query.counts),
        items=rounds.clients.fields["item"].cpu().numpy()[query.positions],
    )


def _measures(leakage: Leakage) -> list[Measure]:
    rule = f"rows_{leakage.contributors}" if leakage.contributors else "all_rows"
    measures = [
        Measure(f"exposed_of_{leakage.cohort}_{rule}", leakage.exposed, "users"),
        Measure(f"alone_of_{leakage.cohort}_{rule}", leakage.alone, "users"),
    ]
    if leakage.contributors:
        measures += [
            Measure(f"rows_kept_of_{leakage.cohort}_{rule}", leakage.rows_kept, "ratio"),
            Measure(f"ratings_kept_of_{leakage.cohort}_{rule}", leakage.ratings_kept, "ratio"),
        ]
    return measures


def _draw(leakages: Sequence[Leakage], source: str, plot: Path) -> None:
    """Draws users exposed, and ratings that still train, by cohort size."""
    from fedrecon.learning.experiments.charts import Line, Panel, draw_lines

    sizes = sorted({each.cohort for each in leakages})

    def line(contributors: int, figure: str) -> Line:
        values = {each.cohort: getattr(each, figure) for each in leakages if each.contributors == contributors}
        label = f"R = {contributors}" if contributors else "all rows"
        return Line(label, sizes, [values[size] * (100 if figure == "ratings_kept" else 1) for size in sizes])

    ticks = tuple(float(size) for size in sizes)
    panels = [
        Panel(
            "users whose vectors the sum gives away",
            "devices in the sum",
            tuple(line(each, "exposed") for each in (0, *CONTRIBUTORS)),
            x_ticks=ticks,
        ),
        Panel(
            "ratings that still train",
            "devices in the sum",
            tuple(line(each, "ratings_kept") for each in (0, *CONTRIBUTORS)),
            (0, 118),
            ticks,
            percent=True,
        ),
    ]
    subtitle = f"{source}; R: least contributors expected of a row; mean of {_SUMS} sums; |cosine| above 0.999"
    draw_lines(panels, "What a sum gives away, and what public row sets cost", subtitle, plot)
