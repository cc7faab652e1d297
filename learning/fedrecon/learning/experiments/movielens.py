"""`fedrecon experiment movielens`: the paper's tables 1 and 3 and figures 3 and 4, ours beside its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedrecon.learning.experiments.charts import Compared, Comparison, Line, Panel, draw_comparison, draw_lines
from fedrecon.learning.experiments.movielens_results import Result, Setting, run_rows, train_rows
from fedrecon.learning.experiments.movielens_rows import (
    BEST,
    FIGURE_4,
    RECONSTRUCT_STEPS,
    TABLE_1,
    TABLE_3,
    UPDATE_STEPS,
    Federated,
    Judged,
    few_steps,
)
from fedrecon.learning.experiments.movielens_runs import Figures, Run
from fedrecon.learning.experiments.reporting import Cell, Column, Report, hand_over, mean_and_spread, write_csv

COLUMNS = (
    Column("row", "row"),
    Column("rmse", "RMSE", ".4f"),
    Column("rmse_spread", "±", ".4f"),
    Column("paper_rmse", "paper", ".3f"),
    Column("accuracy", "accuracy", ".1f"),
    Column("accuracy_spread", in_json=False),
    Column("paper_accuracy", "paper", ".1f"),
    Column("seeds"),
    Column("validation_rmse", in_json=False),
    Column("validation_accuracy", in_json=False),
    Column("best_round", "round", ".0f", in_json=False),
    Column("client_bytes_down_a_round", in_json=False),
    Column("client_bytes_up_a_round", in_json=False),
    Column("seconds", in_json=False),
)

WHAT_FIGURES_ARE = (
    "Every figure is on all test users (the paper evaluated 100 of its 604 once), pooled over their ratings; accuracy "
    "is the share within half a star, in %; ± is the standard deviation over seeds."
)
WHO_IS_JUDGED = (
    "At most 300 ratings a user in training and evaluation, support and query in alternate batches of 5. STANDARD rows "
    "are on the training users' own newest tenth (the paper: on all 6,040 users)."
)
WHEN_ROWS_STOP = (
    "Every row is stopped on validation by what it is judged by. The paper's centralised RECON was not, it seems: "
    "trained on, its item vectors suit only the user vectors beside them."
)
WHAT_CURVES_SAY = (
    "The best round of every variant, on validation users; the test users stay closed. The curves are in "
    "figure-4-curves.csv: after its best round a variant overfits, which is why tables stop early."
)
MADE_UP_NOTE = "Made-up ratings and a few rounds of small models: this shows that everything works, nothing else."


def run_table(number: int, setting: Setting) -> None:
    """Run table 1 or 3.

    Args:
        number: of the table.
        setting: what was asked for.
    """
    results = run_rows(TABLE_3 if number == 3 else TABLE_1, setting)  # noqa: PLR2004 the number of a table
    name = f"table-{number}"
    write_curves(results, setting.folder)
    # A model that knows nothing of its users is an order of magnitude off: its row would flatten all others.
    drawn = [result for result in results if result.row.judged is not Judged.UNTRAINED]
    draw_comparison(
        [
            Comparison("RMSE in stars (less is better)", tuple(_compared(each, "rmse") for each in drawn)),
            Comparison("accuracy in % (more is better)", tuple(_compared(each, "accuracy") for each in drawn), ".1f"),
        ],
        "Ratings of users who were never trained on",
        f"{_data(setting)}, {_seeds(setting)}; STANDARD rows: seen users. Bars: standard deviation.",
        setting.folder / f"{name}.png",
    )
    title = f"Table {number} of Singhal et al. 2021, {_data(setting)}"
    notes = _notes(setting, WHAT_FIGURES_ARE, WHO_IS_JUDGED, WHEN_ROWS_STOP)
    report = Report(title, COLUMNS, tuple(cells_of(each) for each in results), notes)
    hand_over(report, setting.folder, name, as_json=setting.as_json)


def run_figure_3(setting: Setting) -> None:
    """Run figure 3: how many steps of reconstruction and update it takes."""
    results = run_rows([few_steps(*steps) for steps in _grid()], setting)
    measured = dict(zip(_grid(), results, strict=True))

    def lines(figure: str) -> tuple[Line, ...]:
        return tuple(
            Line(
                f"{update} update step{'s' if update > 1 else ''}",
                RECONSTRUCT_STEPS,
                [
                    statistics.fmean(getattr(each, figure) for each in measured[steps, update].test)
                    for steps in RECONSTRUCT_STEPS
                ],
            )
            for update in UPDATE_STEPS
        )

    label = "reconstruction steps of 5 ratings, in training and evaluation"
    draw_lines(
        [
            Panel("RMSE in stars", label, lines("rmse"), x_ticks=RECONSTRUCT_STEPS),
            Panel("accuracy", label, lines("accuracy"), x_ticks=RECONSTRUCT_STEPS, percent=True),
        ],
        "One step of reconstruction recovers most",
        f"{_data(setting)}, users who were never trained on, {_seeds(setting)}",
        setting.folder / "figure-3.png",
    )
    columns = (Column("row"), Column("k_r", "k_r"), Column("k_u", "k_u"), *COLUMNS[1:])
    rows = [
        {**cells_of(measured[steps, update]), "k_r": steps, "k_u": update, "row": measured[steps, update].row.name}
        for steps, update in _grid()
    ]
    title = f"Figure 3 of Singhal et al. 2021, {_data(setting)}"
    report = Report(title, columns, tuple(rows), _notes(setting, WHAT_FIGURES_ARE))
    hand_over(report, setting.folder, "figure-3", as_json=setting.as_json)


def run_figure_4(setting: Setting) -> None:
    """Run figure 4: the variants along the rounds, on validation; the test users stay closed."""
    whole = tuple(
        replace(row, training=replace(row.training, patience=0, evaluate_every=50))
        for row in FIGURE_4
        if isinstance(row.training, Federated)
    )
    _, runs = train_rows(whole, setting)
    columns = (
        Column("row", "row"),
        Column("round", "round"),
        Column("rmse", "RMSE", ".4f"),
        Column("accuracy", "accuracy %", ".1f"),
    )
    curves = {row.name: mean_curve([runs[row.name, seed] for seed in range(setting.seeds)]) for row in whole}
    every: tuple[Mapping[str, Cell], ...] = tuple(
        {"row": name, "round": number, "rmse": figures.rmse, "accuracy": figures.accuracy}
        for name, curve in curves.items()
        for number, figures in curve
    )
    write_csv(Report("", columns, every), setting.folder / "figure-4-curves.csv")

    def lines(figure: str) -> tuple[Line, ...]:
        return tuple(
            Line(name, [number for number, _ in curve], [getattr(each, figure) for _, each in curve], marked=False)
            for name, curve in curves.items()
        )

    draw_lines(
        [
            Panel("RMSE in stars", "rounds", lines("rmse"), limits=(0.85, 1.0)),
            Panel("accuracy", "rounds", lines("accuracy"), limits=(38.0, 46.0), percent=True),
        ],
        "Variants of Federated Reconstruction, round by round",
        f"{_data(setting)}, validation users, {_seeds(setting)}; 100 devices a round ('best': {BEST.cohort}, and after "
        "its last round members trained apart are joined)",
        setting.folder / "figure-4.png",
    )
    best: tuple[Mapping[str, Cell], ...] = tuple(
        {"row": name, "round": number, "rmse": figures.rmse, "accuracy": figures.accuracy}
        for name, curve in curves.items()
        for number, figures in [min(curve, key=lambda point: point[1].rmse)]
    )
    title = f"Variants of Federated Reconstruction, round by round, {_data(setting)}"
    report = Report(title, columns, best, _notes(setting, WHAT_CURVES_SAY))
    hand_over(report, setting.folder, "figure-4", as_json=setting.as_json)


def cells_of(result: Result) -> Mapping[str, Cell]:
    """Give the cells of a row, by the keys of `COLUMNS`."""
    rmse, rmse_spread = mean_and_spread([each.rmse for each in result.test])
    accuracy, accuracy_spread = mean_and_spread([each.accuracy for each in result.test])
    one_way = result.runs[0].bytes_each_way
    return {
        "row": result.row.name,
        "rmse": rmse,
        "rmse_spread": rmse_spread,
        "paper_rmse": result.row.paper_rmse,
        "accuracy": accuracy,
        "accuracy_spread": accuracy_spread,
        "paper_accuracy": result.row.paper_accuracy,
        "seeds": len(result.test),
        "validation_rmse": statistics.fmean(each.rmse for each in result.validation),
        "validation_accuracy": statistics.fmean(each.accuracy for each in result.validation),
        "best_round": statistics.fmean(run.best for run in result.runs),
        "client_bytes_down_a_round": one_way,
        "client_bytes_up_a_round": one_way,
        "seconds": statistics.fmean(run.seconds for run in result.runs),
    }


def mean_curve(runs: Sequence[Run]) -> list[tuple[int, Figures]]:
    """Give (round, mean figures over runs) for the rounds that every run was looked at."""
    curve = []
    for points in zip(*(run.curve for run in runs), strict=False):
        rmse = statistics.fmean(point.figures.rmse for point in points)
        curve.append((points[0].round, Figures(rmse, statistics.fmean(point.figures.accuracy for point in points))))
    return curve


def write_curves(results: Sequence[Result], folder: Path) -> None:
    """Write the curve on validation of every row and seed as `curves.csv`."""
    keys = ("row", "seed", "round", "rmse", "accuracy")
    rows: tuple[Mapping[str, Cell], ...] = tuple(
        dict(zip(keys, (result.row.name, seed, point.round, point.figures.rmse, point.figures.accuracy), strict=True))
        for result in results
        for seed, run in enumerate(result.runs)
        for point in run.curve
    )
    write_csv(Report("", tuple(Column(key) for key in keys), rows), folder / "curves.csv")


def _grid() -> list[tuple[int, int]]:
    return [(steps, update) for update in UPDATE_STEPS for steps in RECONSTRUCT_STEPS]


def _compared(result: Result, figure: str) -> Compared:
    mean, spread = mean_and_spread([getattr(each, figure) for each in result.test])
    paper = result.row.paper_rmse if figure == "rmse" else result.row.paper_accuracy
    return Compared(result.row.name, mean, spread, paper)


def _seeds(setting: Setting) -> str:
    return f"mean of {setting.seeds} seeds" if setting.seeds > 1 else "one seed"


def _data(setting: Setting) -> str:
    return "made-up ratings" if setting.quick else "MovieLens 1M"


def _notes(setting: Setting, *notes: str) -> tuple[str, ...]:
    return (MADE_UP_NOTE, *notes) if setting.quick else notes
