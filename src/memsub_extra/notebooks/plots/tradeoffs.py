"""What is still replicated, against what the rest of the model can still do."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BESIDE, colours, finished, interval_note, panels, with_intervals

MEASURES = {
    "exact_rate": "held-out memorized captions replicated, exact test (%)",
    "replication_rate": "held-out memorized captions replicated, copy metric (%)",
}
"""Axis labels of the two replication rates."""
_PANELS = {"empty": "against the empty prompt", "random": "density-matched random weights"}
_STARS = {"none": "*", "unedited": "*", "twin": "X"}
"""Markers of the models that have no edit."""


def tradeoff(frame: pd.DataFrame, x: str, y: str, labels: Mapping[str, str], hue: str = "model") -> Figure:
    """One point a model: memorization to the right, quality up; the best corner is the upper left.

    Args:
        frame: columns `x`, `y`, `hue`.
        labels: axis label of `x` and of `y`.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    names = frame[hue].unique()
    for (name, colour), marker in zip(colours(names).items(), cycle("osD^vPX"), strict=False):
        part = frame[frame[hue] == name]
        star = _STARS.get(name)
        style: dict[str, Any] = {
            "color": colour,
            "markersize": 11 if star else 7,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }
        axis.plot(part[x], part[y], star or marker, linestyle="none", label=f"{name} ({len(part)})", **style)
    axis.set(xlabel=labels[x], ylabel=labels[y])
    axis.legend(**BESIDE, title="models", title_fontsize=8, alignment="left")
    return finished(figure)


def sweep(frame: pd.DataFrame, references: Mapping[str, Mapping[str, float]], measure: str) -> Figure:
    """Replication rate against relative alignment: a panel a contrast, a line a number of steps.

    Args:
        frame: columns contrast, steps, sparsity, `measure`, relative_alignment; intervals are shown where it has them.
        references: models without an edit by name, with the same columns: the unedited one, the twin.
        measure: a key of `MEASURES`.
    """
    contrasts, steps = list(frame["contrast"].unique()), sorted(frame["steps"].unique())
    figure, axes = panels(len(contrasts), 3.4, 4)
    tones = dict(zip(steps, sns.color_palette("viridis", len(steps)), strict=True))
    for axis, contrast in zip(axes[0], contrasts, strict=True):
        for (name, row), colour in zip(references.items(), colours(references).values(), strict=True):
            at = 100 * row[measure], 100 * row["relative_alignment"]
            axis.plot(*at, _STARS.get(name, "P"), color=colour, markersize=11, label=name, zorder=3)
        lines = frame[frame["contrast"] == contrast].groupby("steps")
        for tau, line in lines:
            line = line.sort_values("sparsity")
            x, y = 100 * line[measure], 100 * line["relative_alignment"]
            axis.plot(x, y, "o-", color=tones[tau], markersize=5, label=f"first {tau} steps")
            with_intervals(axis, line, measure, "relative_alignment", tones[tau])
        _label_sparsity(axis, line, measure)  # of the last line: those of the others lie beside it
        axis.set_title(_PANELS.get(contrast, f"against {contrast} prompts"), fontsize=10)
        axis.set_xlabel(MEASURES[measure].replace(", ", ",\n") + interval_note(frame, measure))
        axis.set(xlim=(-4, 104), ylim=(None, 105))
    axes[0, 0].set_ylabel("relative alignment of unseen captions (%)")
    # All lines are in one legend, though a panel may lack some.
    entries = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    axes[0, -1].legend(entries.values(), entries.keys(), **BESIDE)
    return finished(figure)


def _label_sparsity(axis: Axes, line: pd.DataFrame, measure: str) -> None:
    for row in line.to_dict("records"):
        at = (100 * row[measure], 100 * row["relative_alignment"])
        text = f"{100 * row['sparsity']:g} %"
        axis.annotate(text, at, fontsize=7, xytext=(5, -9), textcoords="offset points")


def methods(frame: pd.DataFrame, x: str, y: str, labels: Mapping[str, str], unit: str = " (%)") -> Figure:
    """A line a method through its strengths; the best corner is the upper left.

    Args:
        frame: columns method, strength (a label), `x` and `y` (shares, or similarities; shown times 100); intervals
            are shown where it has them.
        labels: axis label of `x` and of `y`.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    left: dict[str, Any] = {"xytext": (-4, 4), "ha": "right"}
    below, above = {"xytext": (4, -10)}, {"xytext": (5, 4)}
    names = frame["method"].unique()
    for (name, colour), side in zip(colours(names).items(), cycle([left, below, above, below]), strict=False):
        part = frame[frame["method"] == name]
        if name in _STARS:  # on top of the methods that change nothing
            axis.plot(100 * part[x], 100 * part[y], _STARS[name], color=colour, ms=11, label=name, zorder=3)
            continue
        axis.plot(100 * part[x], 100 * part[y], "o-", color=colour, label=name)
        with_intervals(axis, part, x, y, colour)
        for point in part.to_dict("records"):
            at = (100 * point[x], 100 * point[y])
            axis.annotate(point["strength"], at, fontsize=7, textcoords="offset points", color=colour, **side)
    axis.set(xlabel=f"{labels[x]}{unit}{interval_note(frame, x)}", ylabel=f"{labels[y]}{unit}", xlim=(-3, 118))
    axis.set_xticks(range(0, 101, 20))
    axis.legend(**BESIDE)
    return finished(figure)


def bars(values: pd.Series, label: str) -> Figure:
    """A bar a method, its value beside it.

    Args:
        values: by method, or by method and strength.
    """
    figure, axis = plt.subplots(figsize=(6.5, 0.4 * len(values) + 0.8), layout="constrained")
    shown = values[::-1]
    names = [(name,) if isinstance(name, str) else name for name in shown.index]
    tones = colours(name[0] for name in names)
    rows = axis.barh(range(len(shown)), shown, color=[tones[name[0]] for name in names])
    axis.bar_label(rows, fmt="%.2f", padding=3, fontsize=8)
    axis.set_yticks(range(len(shown)), [" ".join(name).strip() for name in names], parse_math=False)
    axis.set(xlabel=label, xlim=(0, 1.1 * values.max()))
    return finished(figure)
