"""Charts of experiments as PNG files: lines over rounds or steps, and our figures beside the paper's.

Rules: series are labelled where they are, without a legend; the value axis has a light grid and nothing else is drawn
that does not carry a figure; colours can be told apart by colour-blind readers (Okabe and Ito 2008). Figures are drawn
by Agg without a display, and without matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
INK, PALE = "#333333", "#8A8A8A"
GRID = "#E4E4E4"
DOTS_PER_INCH = 160
LABEL_GAP = 0.055
"""Least distance of two labels beside lines, as a share of the panel's height."""


@dataclass(frozen=True, slots=True)
class Line:
    """A series of a panel.

    Attributes:
        label: written at its right end.
        x: of its points, ascending.
        y: of its points.
        marked: whether its points are marked.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the charts of a figure, which stand side by side.

    Attributes:
        title: what is measured, in a few words.
        x_label: under the horizontal axis.
        lines: series.
        limits: of the value axis; None: around what is drawn. Points beyond them are named at the edge.
        x_ticks: where the horizontal axis is labelled; None: where it suits.
        percent: whether values are percentages.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    limits: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] | None = None
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """Our figure and the paper's.

    Attributes:
        label: of the row.
        ours: None where there is none.
        spread: half the length of its bar; None for no bar.
        paper: None where the paper has none.
    """

    label: str
    ours: float | None
    spread: float | None = None
    paper: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of the charts of a figure that compares.

    Attributes:
        title: what is measured, in a few words.
        rows: from top to bottom; the same labels in every chart of a figure.
        form: how figures are written, such as `.3f`.
    """

    title: str
    rows: tuple[Compared, ...]
    form: str = ".3f"


_LEAST_POINTS = 2.0
"""Percentage points that an axis covers at least: differences of a few users' words must not look like findings."""


def draw_lines(panels: Sequence[Panel], title: str, subtitle: str, path: Path) -> None:
    """Draw panels of lines side by side.

    Args:
        panels: from left to right.
        title: what the figure shows, as a sentence.
        subtitle: data, seeds, what differs.
        path: of the PNG file.
    """
    figure = _figure(len(panels), 4.2)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _plain(axes, panel.title, "y")
        for colour, line in zip(_colours(len(panel.lines)), panel.lines, strict=True):
            axes.plot(
                line.x, line.y, color=colour, linewidth=1.8, marker="o" if line.marked else None, markersize=4, zorder=3
            )
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        elif panel.percent:
            _keep_small_differences_small(axes)
        if panel.x_ticks is not None:
            axes.set_xticks(panel.x_ticks, [f"{tick:g}" for tick in panel.x_ticks])
        axes.set_xlabel(panel.x_label, color=INK, fontsize=9)
        axes.yaxis.set_major_formatter("{x:g}%" if panel.percent else "{x:g}")
        _name_outside(axes, panel)
        _label_ends(axes, panel)
    _finish(figure, title, subtitle, path)


def draw_comparison(panels: Sequence[Comparison], title: str, subtitle: str, path: Path) -> None:
    """Draw our figures as dots and the paper's, if any, as hollow ones, a row each, panels side by side.

    Args:
        panels: from left to right.
        title: what the figure shows, as a sentence.
        subtitle: data, seeds, what differs.
        path: of the PNG file.
    """
    figure = _figure(len(panels), 1.6 + 0.36 * len(panels[0].rows))
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _plain(axes, panel.title, "x")
        places = np.arange(len(panel.rows))[::-1]
        for place, row in zip(places, panel.rows, strict=True):
            if row.paper is not None:
                axes.plot(row.paper, place, "o", markersize=8, markerfacecolor="white", color=PALE, zorder=3)
            if row.ours is not None:
                axes.errorbar(row.ours, place, xerr=row.spread, fmt="o", markersize=7, color=COLOURS[0], zorder=4)
            if row.ours is not None and row.paper is not None:
                axes.plot([row.paper, row.ours], [place, place], color=GRID, linewidth=2, zorder=2)
        labels = [row.label if number == 0 else "" for row in panel.rows]
        axes.set_yticks(places, labels, color=INK, fontsize=9)
        axes.set_ylim(-0.7, len(panel.rows) - 0.3)
        _name_dots(axes, places, panel)
    _finish(figure, title, subtitle, path)


def _figure(panels: int, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * panels, height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    figure.set_layout_engine("constrained", wspace=0.06, h_pad=0.08)
    return figure


def _colours(lines: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(lines)]


def _plain(axes: Axes, title: str, value_axis: str) -> None:
    """Leave the axes nothing but a light grid along the values."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.grid(visible=True, axis="y" if value_axis == "y" else "x", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    axes.set_axisbelow(True)


def _keep_small_differences_small(axes: Axes) -> None:
    low, high = axes.get_ylim()
    missing = _LEAST_POINTS - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)


def _name_outside(axes: Axes, panel: Panel) -> None:
    """Write the largest value beyond the limits at the edge where it would have left the panel."""
    lowest, highest = axes.get_ylim()
    left, right = axes.get_xlim()
    beyond: dict[tuple[float, bool], list[float]] = {}
    for line in panel.lines:
        for x, y in zip(line.x, line.y, strict=True):
            if not lowest <= y <= highest:
                beyond.setdefault((x, y > highest), []).append(y)
    for (x, above), values in beyond.items():
        extent = f"{min(values):.3g}" if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"
        axes.annotate(
            f"{'↑' if above else '↓'} {extent}",
            ((x - left) / (right - left), 0.99 if above else 0.01),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="top" if above else "bottom",
            fontsize=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )


def _label_ends(axes: Axes, panel: Panel) -> None:
    """Write each line's label at its right end, apart from its neighbours'."""
    lowest, highest = axes.get_ylim()
    ends = np.array([(np.clip(line.y[-1], lowest, highest) - lowest) / (highest - lowest) for line in panel.lines])
    for colour, line, place in zip(_colours(len(panel.lines)), panel.lines, apart(ends, LABEL_GAP), strict=True):
        axes.annotate(
            line.label, (1.01, place), xycoords="axes fraction", va="center", ha="left", fontsize=8.5, color=colour
        )


def apart(places: Sequence[float] | np.ndarray, gap: float) -> list[float]:
    """Move labels so that none is nearer to the next than the gap, and all are as near their places as that allows.

    Args:
        places: where the labels would stand, between 0 and 1.
        gap: least distance.

    Returns:
        Where they stand, in the order of the places.

    Example:
        >>> [round(place, 2) for place in apart([0.5, 0.5, 0.9], 0.1)]
        [0.45, 0.55, 0.9]
    """
    order = np.argsort(places, kind="stable")
    # Groups of touching labels, each centred on the mean of its places: merged until no two touch.
    groups: list[list[float]] = []
    for place in np.asarray(places, dtype=float)[order].tolist():
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [_bottom(group, gap) + gap * number for group in groups for number in range(len(group))]
    result = np.empty(len(order))
    result[order] = moved
    return [float(place) for place in result]


def _bottom(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) + gap * (len(group) - 1) / 2


def _name_dots(axes: Axes, places: np.ndarray, panel: Comparison) -> None:
    """Write our figures beside the dots, away from the paper's, and once which dots are whose if some are."""
    for place, row in zip(places, panel.rows, strict=True):
        if row.ours is None:
            continue
        left = row.paper is not None and row.ours < row.paper
        reach = row.spread or 0.0
        axes.annotate(
            format(row.ours, panel.form),
            (row.ours - reach if left else row.ours + reach, place),
            xytext=(-8 if left else 8, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=COLOURS[0],
        )
    axes.margins(x=0.18)
    if all(row.paper is None for row in panel.rows):
        return
    for x, colour, whose in ((0.86, COLOURS[0], "● ours"), (1.0, PALE, "○ paper")):
        axes.annotate(whose, (x, 1.02), xycoords="axes fraction", ha="right", va="bottom", fontsize=8.5, color=colour)


def _finish(figure: Figure, title: str, subtitle: str, path: Path) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    figure.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color=PALE)
    figure.savefig(path)
