"""`fedrecon experiment next-word`: tables 2 and 4 and figures 2, 3, 5 and 6 of the paper on Stack Exchange text.

What ours show:
- Table 2: accuracy of every method at three vocabularies, on users never trained on.
- Table 4: bytes that a client sends and receives in a round: 2|g| for FedRecon, 2|g| + 2|l| where all is shared.
- Figure 2: accuracy against the size of the vocabulary, and, at the smallest one, against what all devices have
  communicated.
- Figure 3: accuracy of FedRecon against the steps of reconstruction and of update.
- Figure 5: accuracy of FedRecon against the number of OOV buckets.
- Figure 6: accuracy of FedRecon against the steps of reconstruction, in training and evaluation.

Source: Singhal et al. 2021, Federated Reconstruction, sections 5.1.2, 5.2 and appendix C.2 (arXiv 2102.03448).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrecon.learning.experiments.charts import Line, Panel, draw_lines
from fedrecon.learning.experiments.next_word_comparisons import Difference, accuracy_of, difference
from fedrecon.learning.experiments.next_word_results import Job, Result, Setting, run_jobs
from fedrecon.learning.experiments.next_word_rows import (
    BUCKETS,
    FEDRECON,
    FEDYOGI,
    FULL,
    GLOBAL_BUCKETS,
    ONE_BUCKET,
    PAPER_VOCABULARIES,
    RECONSTRUCT_STEPS,
    TABLE_2,
    UPDATE_STEPS,
    Size,
    Tuning,
    few_steps,
    with_buckets,
    with_steps,
)
from fedrecon.learning.experiments.next_word_runs import Figures, bytes_of, model_of
from fedrecon.learning.experiments.reporting import (
    Cell,
    Column,
    Report,
    as_object,
    hand_over,
    mean_and_spread,
    write_csv,
)
from fedrecon.learning.models.next_word import OOV_EMBEDDING
from fedrecon.ops.printing import print_json

Rows = tuple[Mapping[str, Cell], ...]

ALL_PLACES = range(len(PAPER_VOCABULARIES))
SMALLEST = 0
MEGABYTE = 1e6
MEASURES = {"": "right", "_among_words": "right_among_words"}
AGAINST = {"over_fedyogi": FEDYOGI, "over_one_bucket": ONE_BUCKET}

TABLE_2_COLUMNS = (
    Column("row", "row"),
    Column("words", "words", "d"),
    Column("accuracy", "accuracy", ".2f"),
    Column("accuracy_spread"),
    Column("accuracy_among_words", "among words", ".2f"),
    Column("paper_words"),
    Column("paper_accuracy", "paper", ".1f"),
    *(Column(f"{name}{measure}{end}") for name in AGAINST for measure in MEASURES for end in ("", "_low", "_high")),
    Column("seeds"),
    Column("test_users"),
    Column("validation_accuracy", in_json=False),
    Column("best_round", in_json=False),
    Column("tuning_rate", in_json=False),
    Column("client_bytes_down_a_round"),
    Column("client_bytes_up_a_round"),
    Column("seconds", in_json=False),
)

TABLE_4_COLUMNS = (
    Column("row", "row"),
    Column("size"),
    Column("words", "words", "d"),
    Column("global_parameters", "|g|", ",d"),
    Column("local_parameters", "|l|", ",d"),
    Column("formula", "a round"),
    Column("client_bytes_down_a_round"),
    Column("client_bytes_up_a_round"),
    Column("megabytes", "MB", ".3f"),
    Column("share_of_all_shared", "share", ".3f"),
)

CURVE_COLUMNS = (
    Column("row", "row"),
    Column("words", "words", "d"),
    Column("round", "round", ".0f"),
    Column("megabytes", "MB of all devices", ",.1f"),
    Column("accuracy", "accuracy", ".2f"),
    Column("accuracy_among_words", "among words", ".2f"),
)

WHAT_ACCURACY_IS = (
    "Accuracy in % of the words of the vocabulary that come next (OOV, padding and sentence marks are not counted), "
    "pooled over all test users, as in the paper: the first choice is made among words and OOV buckets. With one "
    "bucket that is often the bucket, which is more frequent than any word; 500 small ones hardly ever come first. "
    "Most of the gain of 500 buckets is that. `among words` chooses among words alone, as a keyboard would."
)
WHAT_DIFFERS = (
    "Other data: posts and comments of small Stack Exchange sites instead of Stack Overflow, {users} training users "
    "instead of 342,477, words without punctuation, and smaller models; so columns stand beside each other to compare "
    "their order, not their values; the paper's are at 1,000, 5,000 and 10,000 words."
)
WHAT_ROWS_ARE = (
    "FedYogi shares everything. OOV and full fine-tuning fit the 500 shared embeddings, or everything, on the older "
    "half of a test user's sentences; FedRecon fits local embeddings there, which no server ever sees. "
    "The Adagrad row reconstructs by Adagrad instead of SGD: at the grid's rates SGD hardly moves an embedding."
)
WHAT_BYTES_ARE = (
    "Float32 parameters that one client downloads and uploads in a round, together. |g|: all that FedRecon shares; "
    "|l|: input embeddings of OOV buckets. share: of the bytes where these are shared, too. The last twelve "
    "rows are of the paper's model."
)


@dataclass(frozen=True, slots=True)
class Sent:
    """What had been communicated after a round, and how good the model was.

    Attributes:
        round: number.
        megabytes: that all devices had sent and received.
        figures: on validation.
    """

    round: int
    megabytes: float
    figures: Figures


def run_next_word(tables: Sequence[int], figures: Sequence[int], setting: Setting) -> None:
    """Run tables and figures; rows that several of them need are trained once.

    Args:
        tables: 2 and 4, as asked for.
        figures: 2, 3, 5 and 6, as asked for.
        setting: what was asked for.
    """
    reports: dict[str, Report] = {}
    jobs = _jobs(tables, figures)
    results = run_jobs(jobs, setting) if jobs else {}
    setting.folder.mkdir(parents=True, exist_ok=True)
    if 2 in tables:  # noqa: PLR2004 the number of a table
        reports["table-2"] = table_2(results, setting)
    if 4 in tables:  # noqa: PLR2004 the number of a table
        reports["table-4"] = table_4(setting)
    if 2 in figures:  # noqa: PLR2004 the number of a figure
        reports["figure-2"] = figure_2(results, setting)
    if 3 in figures:  # noqa: PLR2004 the number of a figure
        reports["figure-3"] = figure_3(results, setting)
    if 5 in figures:  # noqa: PLR2004 the number of a figure
        reports["figure-5"] = figure_5(results, setting)
    if 6 in figures:  # noqa: PLR2004 the number of a figure
        reports["figure-6"] = figure_6(results, setting)
    if setting.as_json:
        for name, report in reports.items():
            write_csv(report, setting.folder / f"{name}.csv")
        objects = {name: as_object(report) for name, report in reports.items()}
        print_json(objects if len(objects) > 1 else next(iter(objects.values())))
        return
    for name, report in reports.items():
        hand_over(report, setting.folder, name, as_json=False)


def table_2(results: Mapping[Job, Result], setting: Setting) -> Report:
    """Give accuracies of all methods at all vocabularies, beside the paper's."""
    rows = tuple(_cells(results, Job(row, place)) for place in ALL_PLACES for row in TABLE_2)
    title = f"Table 2 of Singhal et al. 2021: next-word prediction, {setting.source}"
    differs = WHAT_DIFFERS.format(users=next(iter(results.values())).training_users)
    notes = (_what_was_gained(results), WHAT_ACCURACY_IS, WHAT_ROWS_ARE, differs)
    return Report(title, TABLE_2_COLUMNS, rows, notes)


def table_4(setting: Setting) -> Report:
    """Give what one client communicates in a round, counted from the models; nothing is trained."""
    sizes = {"as asked for": setting.size, "the paper's": FULL} if setting.size != FULL else {"the paper's": FULL}
    rows = tuple(
        cells for name, size in sizes.items() for place in ALL_PLACES for cells in _communication(name, size, place)
    )
    title = "Table 4 of Singhal et al. 2021: communication of one client in one round"
    return Report(title, TABLE_4_COLUMNS, rows, (WHAT_BYTES_ARE,))


def figure_2(results: Mapping[Job, Result], setting: Setting) -> Report:
    """Draw accuracy against vocabulary and communication; give the curves behind the second panel."""
    every = [[results[Job(row, place)] for place in ALL_PLACES] for row in TABLE_2]
    by_words = tuple(
        Line(mine[0].job.row.name, [each.words for each in mine], [_accuracy(each, "right") for each in mine])
        for mine in every
    )
    trained = [mine[SMALLEST] for mine in every if mine[0].job.row.tuning is Tuning.NONE]
    curves = {each.job.row: _curve(each, setting) for each in trained}
    by_bytes = tuple(
        Line(row.name, [each.megabytes for each in curve], [each.figures.accuracy for each in curve], marked=False)
        for row, curve in curves.items()
    )
    words = tuple(float(each.words) for each in every[0])
    draw_lines(
        [
            Panel("accuracy on test users", "words of the vocabulary", by_words, x_ticks=words, percent=True),
            Panel(
                f"accuracy on validation users, {trained[0].words} words",
                "MB sent and received by all devices so far",
                by_bytes,
                percent=True,
            ),
        ],
        "What is local need not travel",
        f"{setting.source}, {_seeds(setting)}; accuracy as in the paper: OOV buckets may be chosen, too",
        setting.folder / "figure-2.png",
    )
    rows: Rows = tuple(
        {
            "row": row.name,
            "words": trained[0].words,
            "round": each.round,
            "megabytes": each.megabytes,
            "accuracy": each.figures.accuracy,
            "accuracy_among_words": each.figures.among_words,
        }
        for row, curve in curves.items()
        for each in curve
    )
    title = f"Figure 2: accuracy on validation along what all devices have communicated, {setting.source}"
    return Report(title, CURVE_COLUMNS, rows, (WHAT_ACCURACY_IS,))


def figure_3(results: Mapping[Job, Result], setting: Setting) -> Report:
    """Draw accuracy against the steps of reconstruction and of update, at the smallest vocabulary."""
    found = {steps: results[Job(few_steps(*steps), SMALLEST)] for steps in _grid()}
    places = [float(steps) for steps in RECONSTRUCT_STEPS]

    def lines(metric: str) -> tuple[Line, ...]:
        return tuple(
            Line(
                f"{update} update step{'s' if update > 1 else ''}",
                places,
                [_accuracy(found[steps, update], metric) for steps in RECONSTRUCT_STEPS],
            )
            for update in UPDATE_STEPS
        )

    label = "reconstruction steps of 16 sentences, in training and evaluation"
    titles = {"right": "accuracy: OOV buckets may be chosen, too", "right_among_words": "accuracy among words"}
    draw_lines(
        [Panel(over, label, lines(metric), x_ticks=tuple(places), percent=True) for metric, over in titles.items()],
        "What one step of reconstruction recovers",
        f"{setting.source}, test users, {next(iter(found.values())).words} words, {_seeds(setting)}",
        setting.folder / "figure-3.png",
    )
    rows: Rows = tuple(
        {**_cells(results, result.job), "k_r": reconstruct, "k_u": update}
        for (reconstruct, update), result in found.items()
    )
    counted = (Column("k_r", "k_r", "d"), Column("k_u", "k_u", "d"))
    columns = (Column("row", "row"), *counted, *TABLE_2_COLUMNS[1:5], Column("seeds"))
    return Report(f"Figure 3: steps of both kinds, {setting.source}", columns, rows, (WHAT_ACCURACY_IS,))


def figure_5(results: Mapping[Job, Result], setting: Setting) -> Report:
    """Draw accuracy against the number of OOV buckets, at the smallest vocabulary."""
    found = {buckets: results[Job(with_buckets(buckets), SMALLEST)] for buckets in BUCKETS}
    label, headline = "OOV buckets, each with a local embedding", "More buckets: fewer first places lost to them"
    _draw_measures(found, label, headline, setting, "figure-5")
    title = f"Figure 5: OOV buckets, {setting.source}"
    return _report_along(found, Column("oov_buckets", "buckets", "d"), title, results)


def figure_6(results: Mapping[Job, Result], setting: Setting) -> Report:
    """Draw accuracy against reconstruction steps, at the smallest vocabulary."""
    found = {steps: results[Job(with_steps(steps), SMALLEST)] for steps in RECONSTRUCT_STEPS}
    label = "reconstruction steps of 16 sentences, in training and evaluation"
    _draw_measures(found, label, "How many steps of reconstruction it takes", setting, "figure-6")
    title = f"Figure 6: reconstruction steps, {setting.source}"
    return _report_along(found, Column("k_r", "k_r", "d"), title, results)


def _report_along(found: Mapping[int, Result], column: Column, title: str, results: Mapping[Job, Result]) -> Report:
    """Returns the table of a figure: a row for each number that was varied, in a column of its own."""
    rows: Rows = tuple({**_cells(results, result.job), column.key: number} for number, result in found.items())
    columns = (Column("row", "row"), column, *TABLE_2_COLUMNS[1:5], Column("seeds"))
    return Report(title, columns, rows, (WHAT_ACCURACY_IS,))


def _grid() -> list[tuple[int, int]]:
    """Returns the steps of reconstruction and of update that figure 3 has."""
    return [(reconstruct, update) for update in UPDATE_STEPS for reconstruct in RECONSTRUCT_STEPS]


def _jobs(tables: Sequence[int], figures: Sequence[int]) -> list[Job]:
    """Returns the jobs that the experiments need, each once."""
    jobs: list[Job] = []
    if 2 in tables or 2 in figures:  # noqa: PLR2004 the number of a table and of a figure
        jobs += [Job(row, place) for place in ALL_PLACES for row in TABLE_2]
    if 3 in figures:  # noqa: PLR2004 the number of a figure
        jobs += [Job(few_steps(*steps), SMALLEST) for steps in _grid()]
    if 5 in figures:  # noqa: PLR2004 the number of a figure
        jobs += [Job(with_buckets(buckets), SMALLEST) for buckets in BUCKETS]
    if 6 in figures:  # noqa: PLR2004 the number of a figure
        jobs += [Job(with_steps(steps), SMALLEST) for steps in RECONSTRUCT_STEPS]
    return list(dict.fromkeys(jobs))


def _cells(results: Mapping[Job, Result], job: Job) -> Mapping[str, Cell]:
    """Returns the cells of a result, by the keys of `TABLE_2_COLUMNS`."""
    result = results[job]
    accuracy, spread = mean_and_spread([accuracy_of(each, "right") for each in result.test])
    one_way = result.runs[0].bytes_each_way
    cells: dict[str, Cell] = {
        "row": job.row.name,
        "words": result.words,
        "accuracy": accuracy,
        "accuracy_spread": spread,
        "accuracy_among_words": _accuracy(result, "right_among_words"),
        "paper_words": PAPER_VOCABULARIES[job.place],
        "paper_accuracy": None if job.row.paper is None else job.row.paper[job.place],
        "seeds": len(result.test),
        "test_users": len(result.test[0].examples),
        "validation_accuracy": statistics.fmean(each.accuracy for each in result.validation),
        "best_round": statistics.fmean(run.best for run in result.runs),
        "tuning_rate": result.tuning_rate,
        "client_bytes_down_a_round": one_way,
        "client_bytes_up_a_round": one_way,
        "seconds": statistics.fmean(run.seconds for run in result.runs),
    }
    for name, other in AGAINST.items():
        against = results.get(Job(other, job.place))
        if against is None or other == job.row:
            continue
        for measure, metric in MEASURES.items():
            gained = difference(result.pooled, against.pooled, metric)
            key = f"{name}{measure}"
            cells |= {
                key: gained.points,
                f"{key}_low": gained.low,
                f"{key}_high": gained.high,
            }
    return cells


def _what_was_gained(results: Mapping[Job, Result]) -> str:
    """Returns in words by how much FedRecon with 500 buckets is ahead at the smallest vocabulary."""
    ours = results[Job(FEDRECON, SMALLEST)]
    parts = []
    for other in AGAINST.values():
        against = results[Job(other, SMALLEST)].pooled
        gained = {metric: _written(difference(ours.pooled, against, metric)) for metric in MEASURES.values()}
        parts.append(f"{other.name} by {gained['right']} points ({gained['right_among_words']} among words)")
    return (
        f"At {ours.words} words {FEDRECON.name} is ahead of {' and of '.join(parts)}; "
        "95% intervals of a paired bootstrap over test users."
    )


def _communication(name: str, size: Size, place: int) -> list[Mapping[str, Cell]]:
    """Returns what a client communicates under each way of sharing, at one vocabulary."""
    shared = {
        "fine-tuning, 500 OOV": (GLOBAL_BUCKETS, "2|g|+2|l|"),
        "FedRecon, 500 OOV": (FEDRECON.learner, "2|g|"),
        "FedYogi, 1 OOV": (FEDYOGI.learner, "2|g|+2|l|"),
        "FedRecon, 1 OOV": (ONE_BUCKET.learner, "2|g|"),
    }
    rows: list[Mapping[str, Cell]] = []
    for row, (learner, formula) in shared.items():
        model = model_of(learner, size.vocabularies[place], size, 0)
        local = model.parameters[OOV_EMBEDDING].numel()
        every = sum(value.numel() for value in model.parameters.values())
        one_way = bytes_of(model.global_parameters)
        rows.append(
            {
                "row": row,
                "size": name,
                "words": size.vocabularies[place],
                "global_parameters": every - local,
                "local_parameters": local,
                "formula": formula,
                "client_bytes_down_a_round": one_way,
                "client_bytes_up_a_round": one_way,
                "megabytes": 2 * one_way / MEGABYTE,
                "share_of_all_shared": bytes_of(model.global_parameters) / bytes_of(model.parameters),
            }
        )
    return rows


def _curve(result: Result, setting: Setting) -> list[Sent]:
    """Returns a result's mean figures on validation along the rounds, and what had been communicated by then."""
    a_round = 2 * result.runs[0].bytes_each_way * setting.size.cohort / MEGABYTE
    return [
        Sent(
            points[0].round,
            points[0].round * a_round,
            Figures(
                statistics.fmean(point.figures.accuracy for point in points),
                statistics.fmean(point.figures.among_words for point in points),
            ),
        )
        for points in zip(*(run.curve for run in result.runs), strict=True)
    ]


def _draw_measures(found: Mapping[int, Result], label: str, title: str, setting: Setting, name: str) -> None:
    """Draws both accuracies of results on test users, side by side, against the number that was varied."""
    places = [float(number) for number in found]
    titles = {"right": "accuracy: OOV buckets may be chosen, too", "right_among_words": "accuracy among words"}
    draw_lines(
        [
            Panel(
                over,
                label,
                (Line("FedRecon", places, [_accuracy(each, metric) for each in found.values()]),),
                x_ticks=tuple(places),
                percent=True,
            )
            for metric, over in titles.items()
        ],
        title,
        f"{setting.source}, test users, {next(iter(found.values())).words} words, {_seeds(setting)}",
        setting.folder / f"{name}.png",
    )


def _accuracy(result: Result, metric: str) -> float:
    """Returns the mean accuracy over seeds, in percent."""
    return statistics.fmean(accuracy_of(each, metric) for each in result.test)


def _written(gained: Difference) -> str:
    return f"{gained.points:+.2f} [{gained.low:+.2f}, {gained.high:+.2f}]"


def _seeds(setting: Setting) -> str:
    return f"mean of {setting.seeds} seeds" if setting.seeds > 1 else "one seed"
