"""Figures of row width against sparsity, for notebook 04.

width_tradeoff(table)                       # replication against alignment and sparsity, a line a model
width_law(table, line)                      # the sparsity that leaves half of the images, against row width
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..notebooks.plots.style import BESIDE, METHOD_COLOURS, finished
from ..notebooks.plots.tradeoffs import MEASURES
from .widths import half_sparsity


def width_tradeoff(table: pd.DataFrame) -> Figure:
    """Replication against alignment, and against sparsity: a line a model, a colour a row width.

    Args:
        table: as `widths.measured`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    colours = dict(zip(sorted(set(table["row"])), sns.color_palette("viridis", table["row"].nunique()), strict=True))
    for (row, training), model in table.groupby(["row", "training"]):
        line = model.groupby("sparsity")[["replicated", "alignment"]].mean().reset_index()
        label = f"rows of {row:.0f} weights" + (", trained again" if training else "")
        style = {"color": colours[row], "linestyle": "--" if training else "-", "marker": "o", "label": label}
        left.plot(100 * line["replicated"], 100 * line["alignment"], **style)
        edited = line[line["sparsity"] > 0]
        right.plot(100 * edited["sparsity"], 100 * edited["replicated"], **style)
    replicated = MEASURES["exact_rate"].replace(", ", ",\n")
    left.set(xlabel=replicated, ylabel="alignment of unseen captions,\nrelative to the twin (%)")
    right.set(xlabel="sparsity: share of a row at each of ten steps (%)", ylabel=replicated, xscale="log")
    right.axhline(50, color="gray", linestyle=":", linewidth=1)
    right.legend(**BESIDE)
    return finished(figure)


def width_law(table: pd.DataFrame, line: pd.DataFrame) -> Figure:
    """The sparsity that leaves half of the images against row width: measured, and what the line says elsewhere.

    Args:
        table: as `widths.measured`.
        line: as `widths.law` of it.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4), layout="constrained")
    half, elsewhere = half_sparsity(table).reset_index(name="half"), line.drop("slope")
    dots, law = METHOD_COLOURS["pruned"], METHOD_COLOURS["density-matched random"]
    axis.plot(half["row"], 100 * half["half"], "o", color=dots, label="measured: a point a training")
    at = elsewhere.index.to_numpy(float)
    ends = np.array([half["row"].min(), at.max()])
    on_line = 100 * elsewhere["value"].iloc[0] * (ends / at[0]) ** line.loc["slope", "value"]
    axis.plot(ends, on_line, color=law, linewidth=1)
    errors = 100 * np.abs(elsewhere[["low", "high"]].T.to_numpy() - elsewhere["value"].to_numpy())
    label = "the line, with the bootstrap's\n95 % interval"
    axis.errorbar(at, 100 * elsewhere["value"], errors, fmt="s", color=law, capsize=3, label=label)
    axis.axhline(1, color="gray", linestyle=":", linewidth=1, label="the paper's 1 %")
    axis.set(xscale="log", yscale="log", xlabel="weights in a row", ylabel="sparsity that leaves 50 % (% of a row)")
    axis.legend(**BESIDE)
    return finished(figure)
