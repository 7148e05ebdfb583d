"""The figures of notebook 06, one function a figure; each returns the matplotlib figure.

block_errors(errors)                        # regrowth of one block by hand: its error over the steps
intervals(table, columns)                   # values of models with their intervals
membership_means(table, margin)             # mean p of the membership test beside the twin's
membership_curves(p)                        # ... and the distribution of p
attack_curves(work, iterations)             # iterations of the attack -> share of images generated
beside_references(lines, "steps", ...)      # one panel per removal, beside the unedited model and the controls
price(table, columns)                       # quality against compute
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

from ..notebooks.plots.labels import label_points
from ..notebooks.plots.style import (
    BASELINE_COLOURS,
    BESIDE,
    METHOD_COLOURS,
    Colour,
    colours,
    finished,
    label_ends,
    model_styles,
    panels,
)
from .attack_work import attack_curve
from .audit import SMALLEST
from .removals import REMOVALS, displayed
from .shipped import GIVEN, whole

REFERENCES = ("unedited", "twin", "other")
"""Models that each panel shows for comparison with a removal."""
_COLUMNS = 5
_OLIVE: Colour = (0.42, 0.42, 0.05)


def removal_colours() -> dict[str, Colour]:
    """The colour of each removal in all figures, in the order of the registry; pruning has that of `METHOD_COLOURS`."""
    orange, green = METHOD_COLOURS["density-matched random"], METHOD_COLOURS["ordinary"]
    free = orange, *BASELINE_COLOURS[:4], green, _OLIVE, *BASELINE_COLOURS[4:]  # the last are faint on white
    return dict(zip([name for name in whole(REMOVALS) if name != "pruning"], cycle(free), strict=False))


def _tones(models: Sequence[Any]) -> list[Colour]:
    """The colour of each model; it does not depend on which other models are shown."""
    return [colours([name], removal_colours())[str(name)] for name in models]


def _styles(models: pd.Series) -> dict[str, dict[str, Any]]:
    return model_styles(models.unique(), removal_colours())


def _share_line(axis: Axes, line: pd.DataFrame, x: str, style: Mapping[str, Any], alpha: float) -> None:
    """Draws shares (columns share, low, high) in percent against column `x`, with their intervals as a band."""
    axis.plot(line[x], 100 * line["share"], **style)
    axis.fill_between(line[x], 100 * line["low"], 100 * line["high"], color=style["color"], alpha=alpha, linewidth=0)


def block_errors(errors: pd.DataFrame) -> Figure:
    """The error of a block that learns alone, relative to what its teacher adds: one line per kind of pairs.

    Args:
        errors: columns step, pairs, error.
    """
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    tones = colours(errors["pairs"].unique())
    ends = {}
    for kind, line in errors.groupby("pairs", sort=False):
        axis.plot(line["step"], line["error"], color=tones[str(kind)], linewidth=1.5)
        ends[str(kind)] = float(line["error"].iloc[-1])
    axis.set(xlabel="steps", ylabel="error of the block / what it adds", ylim=(0, None))
    label_ends(axis, ends, tones)
    return finished(figure)


def attack_curves(work: pd.DataFrame, iterations: Sequence[int]) -> Figure:
    """Images that the embedding attack brings back against its iterations, with 95 % intervals: one line per model.

    Args:
        work: one row per attacked target: columns model, pairs (`pairs.FORGET_SET`, `UNSEEN`), target, iterations,
            last, and optionally start. Each kind of pairs and start has a panel.
    """
    several = "start" in work and work["start"].nunique() > 1
    begun = work["start"] if several else pd.Series("", work.index)
    parts = list(work.groupby([work["pairs"], begun], sort=False))
    figure, axes = panels(len(parts), 4.2 if len(parts) < 3 else 3.4, 3.8)
    styles, ends = _styles(work["model"]), {}
    for axis, ((kind, start), part) in zip(axes[0], parts, strict=True):
        for model, line in part.groupby("model", sort=False):
            style = styles[str(model)] | {"markersize": 4, "label": displayed(str(model))}
            curve = attack_curve(line, iterations)
            _share_line(axis, curve, "iterations", style, alpha=0.1)
            ends[displayed(str(model))] = 100 * float(curve["share"].iloc[-1])
        title = f"{kind}, n = {part['target'].nunique()} a model"
        axis.set_title(title + (f",\nfrom {start}" if start else ""), fontsize=10)
        axis.set_xscale("symlog", linthresh=5)
        axis.set(xlabel="iterations of the embedding attack", ylim=(-3, 103))
        shown = [i for i in iterations if i <= part["last"].min()]
        axis.set_xticks(shown, [f"{i:g}" for i in shown], fontsize=8)
    axes[0, 0].set_ylabel("images generated (%)")
    label_ends(axes[0, -1], ends, {displayed(name): style["color"] for name, style in styles.items()})
    return finished(figure)


def beside_references(
    lines: pd.DataFrame, x: str, xlabel: str, ylabel: str, references: Sequence[str] = REFERENCES
) -> Figure:
    """One panel per model: its shares with their 95 % intervals, and the references, as thin lines in all panels.

    Args:
        lines: columns model, x, share, low, high, n.
    """
    models, parts = list(lines["model"].unique()), dict(iter(lines.groupby("model", sort=False)))
    beside = [name for name in references if name in models]
    shown = [name for name in models if name not in beside] or models
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (1.4 + 1.8 * columns, 0.7 + 1.9 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    styles = _styles(lines["model"])
    for place, axis in enumerate(axes.flat):
        if place >= len(shown):
            axis.set_visible(False)
            continue
        for name in beside:
            style = {key: styles[name][key] for key in ("color", "linestyle")}
            axis.plot(parts[name][x], 100 * parts[name]["share"], linewidth=1, **style)
        name = shown[place]
        _share_line(axis, parts[name], x, styles[name] | {"markersize": 3, "label": displayed(name)}, alpha=0.15)
        axis.set_title(displayed(name), fontsize=9)
        axis.set_ylim(-3, 103)
        if place + columns >= len(shown):
            axis.set_xlabel(xlabel, fontsize=9)
            axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{ylabel}, n = {lines['n'].iloc[0]}", fontsize=9)
    ends = {name: 100 * float(parts[name]["share"].iloc[-1]) for name in beside}
    if ends:
        label_ends(axes[0, columns - 1], ends, {name: styles[name]["color"] for name in beside}, gap=0.12)
    return finished(figure)


def intervals(table: pd.DataFrame, columns: Mapping[str, str], reference: str = "twin") -> Figure:
    """Values of models with their intervals, one panel per column. A dotted line marks the reference's value.

    Args:
        table: one row per model; each column has its interval in `<column>_low` and `<column>_high`. Shown times 100.
        columns: columns to labels of their axes.
    """
    size = (2.2 + 2.1 * len(columns), 0.8 + 0.3 * len(table))
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained")
    at, tones = np.arange(len(table))[::-1], _tones(table.index)
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        value, low, high = (100 * table[c].to_numpy(float) for c in (column, f"{column}_low", f"{column}_high"))
        axis.hlines(at, low, high, colors=tones)
        axis.scatter(value, at, s=18, color=tones, zorder=3)
        if reference in table.index:
            axis.axvline(100 * float(table.loc[reference, column]), color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(label, fontsize=9)
        axis.set_yticks(at)
        axis.set_yticklabels([displayed(str(name)) for name in table.index], fontsize=8, parse_math=False)
    axes[0, 0].set_ylabel("model")
    return finished(figure)


def membership_means(table: pd.DataFrame, margin: float, reference: str = "twin") -> Figure:
    """Mean p of the membership test with its 95 % interval: one panel per caption that the models got.

    Args:
        table: the result of `shipped.membership`.
        margin: largest distance from the reference's mean at which a model is equivalent to it.
    """
    parts = list(table.groupby("caption", sort=False))
    size = (1.6 + 3.0 * len(parts), 1.1 + 0.35 * table["model"].nunique())
    figure, axes = plt.subplots(1, len(parts), figsize=size, sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for axis, (caption, part) in zip(axes[0], parts, strict=True):
        at, tones = np.arange(len(part))[::-1], _tones(part["model"])
        axis.hlines(at, part["low"], part["high"], colors=tones, linewidth=2)
        axis.scatter(part["mean"], at, s=24, color=tones, zorder=3)
        for centre in part.loc[part["model"] == reference, "mean"]:
            axis.axvspan(centre - margin, centre + margin, color="gray", alpha=0.15, linewidth=0)
        axis.axvline((1 + SMALLEST) / 2, color="gray", linestyle=":", linewidth=1)
        axis.set(yticks=at, xlim=(0, 0.75), ylim=(-0.5, len(part) - 0.5))
        axis.set_yticklabels([displayed(name) for name in part["model"]], parse_math=False)
        axis.set_title(f"given {GIVEN[str(caption)]}, n = {part['n'].iloc[0]}", fontsize=10)
        axis.set_xlabel(f"mean p (dotted: of uniform p;\ngrey: within {margin:g} of the {reference})", fontsize=8)
    axes[0, 0].set_ylabel("model")
    return finished(figure)


def membership_curves(p: pd.DataFrame) -> Figure:
    """Distribution of the membership test's p-values: the share of pairs at or below each, one line per model.

    Args:
        p: the result of `shipped.membership_p`; one panel per caption.
    """
    parts = list(p.groupby("caption", sort=False))
    figure, axes = panels(len(parts), 3.8, 3.4)
    styles = _styles(p["model"])
    for axis, (caption, part) in zip(axes[0], parts, strict=True):
        for model, values in part.groupby("model", sort=False)["p"]:
            style = {key: styles[str(model)][key] for key in ("color", "linestyle")}
            axis.ecdf(values, label=f"{displayed(str(model))}, n = {len(values)}", linewidth=2, **style)
        axis.plot([0, 1], [0, 1], "k:", linewidth=1, label="uniform: no trace")
        axis.set(xlabel="p of the exact membership test", xlim=(0, 1.01), ylim=(-0.02, 1.02))
        axis.set_title(f"given {GIVEN[str(caption)]}", fontsize=10)
    axes[0, 0].set_ylabel("share of pairs at or below it")
    axes[0, -1].legend(**BESIDE)
    return finished(figure)


def price(table: pd.DataFrame, columns: Mapping[str, str], compute: str = "compute") -> Figure:
    """Outcomes of removals against their compute: one panel per column, one point per model.

    Args:
        table: one row per model; `compute` (percent of training the UNet), and the columns with their intervals.
        columns: columns to labels of their axes. Values are shown times 100.
    """
    figure, axes = plt.subplots(1, len(columns), figsize=(5.6 * len(columns), 4), squeeze=False, layout="constrained")
    tones = _tones(table.index)
    x = table[compute].to_numpy(float)
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        value, low, high = (100 * table[c].to_numpy(float) for c in (column, f"{column}_low", f"{column}_high"))
        axis.vlines(x, low, high, colors=tones, linewidth=1, alpha=0.6)
        for place, tone in enumerate(tones):
            axis.plot(x[place], value[place], "o", color=tone, markersize=5)
        axis.set(xscale="log", xlim=(0.7 * x.min(), 1.6 * x.max()), ylabel=label)
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if 0.7 * x.min() <= tick <= 1.6 * x.max()]
        axis.set_xticks(ticks, [f"{tick}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("compute (% of training the UNet)")
        names = [displayed(str(name)) for name in table.index]
        label_points(axis, [(*point, name, "0.2") for *point, name in zip(x, value, names, strict=True)])
    return finished(figure)
