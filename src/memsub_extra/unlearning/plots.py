"""The figures of notebook 06, one function a figure; each returns the matplotlib figure.

attack_curves(work, iterations)             # iterations of the attack -> share of images generated
relearning(learned)                         # steps of fine-tuning -> share that comes back
recognition(errors)                         # how well images are denoised, by what the model is given
intervals(table, columns)                   # values of models with their intervals
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..notebooks.plots.style import (
    BASELINE_COLOURS,
    BESIDE,
    METHOD_COLOURS,
    colours,
    finished,
    model_styles,
    panels,
)
from .attack_work import attack_curve
from .relearning import shares
from .removals import REMOVALS, displayed
from .shipped import whole


def removal_colours() -> dict[str, tuple[float, float, float]]:
    """The colour of each removal in all figures, in the order of the registry; pruning has that of `METHOD_COLOURS`."""
    orange, green = METHOD_COLOURS["density-matched random"], METHOD_COLOURS["ordinary"]
    free = orange, *BASELINE_COLOURS[:4], green, *BASELINE_COLOURS[4:]
    return dict(zip([name for name in whole(REMOVALS) if name != "pruning"], cycle(free), strict=False))


def _styles(models: pd.Series) -> dict[str, dict[str, Any]]:
    return model_styles(models.unique(), removal_colours())


def _share_line(axis: Axes, line: pd.DataFrame, x: str, style: Mapping[str, Any], alpha: float) -> None:
    """Shares (columns share, low, high) in percent over a column, their intervals as a band."""
    axis.plot(line[x], 100 * line["share"], **style)
    axis.fill_between(line[x], 100 * line["low"], 100 * line["high"], color=style["color"], alpha=alpha, linewidth=0)


def attack_curves(work: pd.DataFrame, iterations: Sequence[int]) -> Figure:
    """Images that the embedding attack has brought back by so many iterations, with 95 % intervals: a line a model.

    Args:
        work: columns model, pairs (`pairs.FORGET_SET`, `UNSEEN`), target, iterations, last, and perhaps start; one row
            a target, a panel a kind of pairs and a start.
    """
    several = "start" in work and work["start"].nunique() > 1
    begun = work["start"] if several else pd.Series("", work.index)
    parts = list(work.groupby([work["pairs"], begun], sort=False))
    figure, axes = panels(len(parts), 4.8 if len(parts) < 3 else 3.4, 4)
    styles = _styles(work["model"])
    for axis, ((kind, start), part) in zip(axes[0], parts, strict=True):
        for model, line in part.groupby("model", sort=False):
            style = styles[str(model)] | {"markersize": 4, "label": displayed(str(model))}
            _share_line(axis, attack_curve(line, iterations), "iterations", style, alpha=0.12)
        title = f"{kind}, n = {part['target'].nunique()} a model"
        axis.set_title(title + (f",\nfrom {start}" if start else ""), fontsize=10)
        axis.set_xscale("symlog", linthresh=5)
        axis.set(xlabel="iterations of the embedding attack", ylim=(-3, 103))
        shown = [i for i in iterations if i <= part["last"].min()]
        axis.set_xticks(shown, [f"{i:g}" for i in shown], fontsize=8)
    axes[0, 0].set_ylabel("images generated (%)")
    axes[0, -1].legend(**BESIDE)
    return finished(figure)


def relearning(learned: pd.DataFrame) -> Figure:
    """Removed images that come back, though not taught, while the model is fine-tuned on others; with 95 % intervals.

    Args:
        learned: of `relearning`, columns model (a line each), taught and lr (a panel each) more.
    """
    learned = shares(learned)
    parts = list(learned.groupby(["taught", "lr"], sort=False))
    figure, axes = panels(len(parts), 2.9, 3.6)
    styles = _styles(learned["model"])
    for axis, ((taught, lr), part) in zip(axes[0], parts, strict=True):
        for model, line in part.groupby("model", sort=False):
            style = styles[str(model)] | {"markersize": 3, "label": displayed(str(model))}
            _share_line(axis, line, "steps", style, alpha=0.08)
        axis.set_title(f"taught {taught},\nlearning rate {lr:g}, n = {part['n'].iloc[0]}", fontsize=9)
        axis.set(xlabel="steps", ylim=(-3, 103))
    axes[0, 0].set_ylabel("other removed images replicated (%)")
    axes[0, -1].legend(**BESIDE)
    return finished(figure)


def recognition(errors: pd.DataFrame) -> Figure:
    """How well images are denoised, over the steps of the schedule: a panel a model, a line what it is given.

    Args:
        errors: columns model, given, t, error.
    """
    models = list(errors["model"].unique())
    figure, axes = panels(len(models), 2.6, 3.4)
    tones = colours(errors["given"].unique())
    for axis, model in zip(axes[0], models, strict=True):
        for given, line in errors[errors["model"] == model].groupby("given", sort=False):
            axis.plot(line["t"], line["error"], "o-", color=tones[str(given)], markersize=3, label=str(given))
        axis.set_title(displayed(str(model)), fontsize=9)
        axis.set(xlabel="t", yscale="log")
    axes[0, 0].set_ylabel("error of the predicted noise")
    axes[0, -1].legend(title="given", title_fontsize=8, **BESIDE)
    return finished(figure)


def intervals(table: pd.DataFrame, columns: Mapping[str, str], reference: str = "twin") -> Figure:
    """Values of models with their intervals, a panel a column; the reference's value is a line.

    Args:
        table: one row a model; of each column also `<column>_low` and `<column>_high`. Shown times 100.
        columns: column to what its axis says.
    """
    size = (2 + 2.7 * len(columns), 0.8 + 0.32 * len(table))
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained")
    at = np.arange(len(table))[::-1]
    tones = [colours([name], removal_colours())[str(name)] for name in table.index]
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        value, low, high = (100 * table[c].to_numpy(float) for c in (column, f"{column}_low", f"{column}_high"))
        axis.hlines(at, low, high, colors=tones)
        axis.scatter(value, at, s=18, color=tones, zorder=3)
        if reference in table.index:
            axis.axvline(100 * float(table.loc[reference, column]), color="gray", linestyle=":", linewidth=1)
        axis.set(xlabel=label, yticks=at)
        axis.set_yticklabels([displayed(str(name)) for name in table.index], fontsize=8, parse_math=False)
    axes[0, 0].set_ylabel("model")
    return finished(figure)
