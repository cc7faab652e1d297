"""`fedrecon experiment ranking`: ten recommendations for users never trained on, ours beside the baselines to beat.

The protocol is that of the ratings (`protocol`): 80/10/10 users, at most 300 ratings each, alternate batches of 5. One
half of a user's items is known, the other is to be found among all items that are not known; every rating counts as a
choice, whatever its stars. All recipes were chosen on validation users; the test users are read once, after every
trained model is frozen.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fedrecon.datasets import Ratings
from fedrecon.learning.baselines.central_als import CentralAls
from fedrecon.learning.baselines.implicit_als import ImplicitAls
from fedrecon.learning.experiments.charts import Compared, Comparison, draw_comparison
from fedrecon.learning.experiments.protocol import Choice, Protocol, digest_of, open_protocol
from fedrecon.learning.experiments.ranking_models import (
    FederatedChoices,
    Neighbours,
    Popularity,
    Ranker,
    Recipe,
    Users,
    train_ranker,
    users_of,
)
from fedrecon.learning.experiments.reporting import Cell, Column, Report, hand_over, mean_and_spread, progress_bar
from fedrecon.learning.ranking import judge_ranking


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        name: of the row.
        recipe: what is trained; rows with one recipe share their runs.
        forgets: whether it is judged as if nothing were known of the users.
    """

    name: str
    recipe: Recipe
    forgets: bool = False


NEIGHBOURS = "item neighbours"
ROWS = (
    Row("rating ALS, folded in", CentralAls()),
    Row("popularity", Popularity()),
    Row(NEIGHBOURS, Neighbours()),
    Row("implicit ALS, folded in", ImplicitAls()),
    Row("FedRecon implicit", FederatedChoices()),
    Row("FedRecon, no examples", FederatedChoices(), forgets=True),
)
SMALL: Mapping[Recipe, Recipe] = {
    CentralAls(): CentralAls(factors=4, sweeps=3),
    Neighbours(): Neighbours(count=20),
    ImplicitAls(): ImplicitAls(factors=8, sweeps=2),
    FederatedChoices(): FederatedChoices(factors=8, cohort=20, rounds=20),
}
QUICK_ROWS = tuple(replace(row, recipe=SMALL.get(row.recipe, row.recipe)) for row in ROWS)

COLUMNS = (
    Column("row", "row"),
    Column("recall_at_10", "recall@10", ".3f"),
    Column("recall_spread", "±", ".3f"),
    Column("ndcg_at_10", "NDCG@10", ".3f"),
    Column("ndcg_spread", "±", ".3f"),
    Column("recall_of_neighbours", "/ neighbours", ".2f"),
    Column("seeds", "seeds"),
    Column("validation_recall", in_json=False),
    Column("validation_ndcg", in_json=False),
    Column("client_bytes_down_a_round", in_json=False),
    Column("client_bytes_up_a_round", in_json=False),
)
WHAT_FIGURES_ARE = (
    "Means over all test users, of whom half of at most 300 rated films is known; the others are to be found among "
    "all films that are not known. recall@10: those found among the ten best / min(10, those to be found). ± is the "
    "standard deviation over seeds; two rows draw nothing."
)
WHAT_ROWS_ARE = (
    "rating ALS ranks by predicted stars: a model that is good at those is no recommender. FedRecon, no examples: the "
    "same model for the same users, as if nothing were known of them."
)
WHAT_TRAVELS = (
    "FedRecon: the whole item table goes to each client of a round and an update of it comes back, since every item "
    "has a gradient; the other rows have all choices in one place."
)
MADE_UP_NOTE = "Made-up ratings and a few rounds of small models: this shows that everything works, nothing else."


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over users."""

    recall: float
    ndcg: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A row with its runs and figures, one for each seed; a single one where nothing is drawn."""

    row: Row
    rankers: tuple[Ranker, ...]
    validation: tuple[Figures, ...]
    test: tuple[Figures, ...]


def run_ranking(ratings: Ratings, folder: Path, seeds: int, *, quick: bool, as_json: bool) -> None:
    """Run the experiment and hand over table, CSV and chart.

    Args:
        ratings: the whole dataset.
        folder: of the output.
        seeds: runs of every row that draws something.
        quick: small models and few rounds: shows that everything works, and nothing else.
        as_json: whether to end with JSON.
    """
    results = judge_rows(QUICK_ROWS if quick else ROWS, ratings, folder, seeds)
    of_data = "made-up ratings" if quick else "MovieLens 1M"
    of_seeds = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    draw_comparison(
        [
            Comparison("recall@10 (more is better)", tuple(_compared(each, "recall") for each in results)),
            Comparison("NDCG@10 (more is better)", tuple(_compared(each, "ndcg") for each in results)),
        ],
        "Ten recommendations for users who were never trained on",
        f"{of_data}, {of_seeds}. Bars: standard deviation.",
        folder / "ranking.png",
    )
    notes = (*([MADE_UP_NOTE] if quick else []), WHAT_FIGURES_ARE, WHAT_ROWS_ARE, WHAT_TRAVELS)
    title = f"Ten recommendations for users who were never trained on, {of_data}"
    hand_over(Report(title, COLUMNS, rows_of(results), notes), folder, "ranking", as_json=as_json)


def judge_rows(rows: Sequence[Row], ratings: Ratings, folder: Path, seeds: int) -> list[Result]:
    """Train all recipes, freeze them, read the test users once, judge all rows.

    Args:
        rows: of the table.
        ratings: the whole dataset.
        folder: of the output.
        seeds: runs of every recipe that draws something.
    """
    # Small tensors: a second thread costs more than it brings, and sums in another order.
    torch.set_num_threads(1)
    protocol = open_protocol(ratings, folder)
    rankers = train_recipes([row.recipe for row in rows], protocol, seeds)
    validation = users_of(protocol.validation, protocol.items)
    opened = {row.name: [judge(row, ranker, validation) for ranker in rankers[row.recipe]] for row in rows}
    choices = {
        row.name: [
            Choice(
                row.name,
                seed,
                {"recipe": type(row.recipe).__name__, **asdict(row.recipe), "forgets": row.forgets},
                asdict(figures),
                digest_of(ranker.parameters),
            )
            for seed, (figures, ranker) in enumerate(zip(opened[row.name], rankers[row.recipe], strict=True))
        ]
        for row in rows
    }
    frozen = [choice for row in rows for choice in choices[row.name]]
    test = users_of(protocol.test(frozen).unseen, protocol.items)
    results = []
    for row in rows:
        for choice, ranker in zip(choices[row.name], rankers[row.recipe], strict=True):
            choice.require(ranker.parameters)
        closed = tuple(judge(row, ranker, test) for ranker in rankers[row.recipe])
        results.append(Result(row, tuple(rankers[row.recipe]), tuple(opened[row.name]), closed))
    return results


def train_recipes(recipes: Sequence[Recipe], protocol: Protocol, seeds: int) -> dict[Recipe, list[Ranker]]:
    """Train recipes, each once for every seed, or once where nothing is drawn.

    Args:
        recipes: what to train.
        protocol: whose open users they see.
        seeds: how many.
    """
    runs = [
        (recipe, seed)
        for recipe in dict.fromkeys(recipes)
        for seed in range(1 if isinstance(recipe, Popularity | Neighbours) else seeds)
    ]
    rankers: dict[Recipe, list[Ranker]] = {}
    with progress_bar() as bar:
        task = bar.add_task("training", total=len(runs), said="")
        for recipe, seed in runs:
            bar.update(task, said=f"{type(recipe).__name__}, seed {seed}")
            rankers.setdefault(recipe, []).append(train_ranker(recipe, protocol, seed))
            bar.advance(task)
    return rankers


def judge(row: Row, ranker: Ranker, users: Users) -> Figures:
    """Judge a ranker of a row on users; the candidates are the same whether it forgets or not."""
    scores = ranker.score(users.forgotten() if row.forgets else users)
    ranked = judge_ranking(scores, users.known, users.wanted)
    return Figures(float(ranked.recall.mean()), float(ranked.ndcg.mean()))


def rows_of(results: Sequence[Result]) -> tuple[Mapping[str, Cell], ...]:
    """Give the rows of the table, by the keys of `COLUMNS`."""
    neighbours = next(
        statistics.fmean(each.recall for each in result.test) for result in results if result.row.name == NEIGHBOURS
    )
    rows: list[Mapping[str, Cell]] = []
    for result in results:
        recall, recall_spread = mean_and_spread([each.recall for each in result.test])
        ndcg, ndcg_spread = mean_and_spread([each.ndcg for each in result.test])
        one_way = result.rankers[0].bytes_each_way
        rows.append(
            {
                "row": result.row.name,
                "recall_at_10": recall,
                "recall_spread": recall_spread,
                "ndcg_at_10": ndcg,
                "ndcg_spread": ndcg_spread,
                "recall_of_neighbours": recall / neighbours if neighbours else None,
                "seeds": len(result.test),
                "validation_recall": statistics.fmean(each.recall for each in result.validation),
                "validation_ndcg": statistics.fmean(each.ndcg for each in result.validation),
                "client_bytes_down_a_round": one_way,
                "client_bytes_up_a_round": one_way,
            }
        )
    return tuple(rows)


def _compared(result: Result, figure: str) -> Compared:
    return Compared(result.row.name, *mean_and_spread([getattr(each, figure) for each in result.test]))
