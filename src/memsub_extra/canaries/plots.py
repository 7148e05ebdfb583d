"""Figures of canaries, one function a figure; each returns the matplotlib figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from memsub_extra.notebooks.plots import uniform_band
from memsub_extra.notebooks.plots.style import BESIDE, colours, finished, panels

from .testing import MEASURES


def calibration(tested: pd.DataFrame) -> Figure:
    """The share of canaries at or below each p-value, one panel a measure. Without memorization it is the diagonal.

    The band contains the whole curve of uniform p-values, for the size of the smallest group, in 95 % of cases.

    Args:
        tested: the table of `testing.tested`.
    """
    figure, axes = panels(len(MEASURES), 3.4, 3.6)
    groups = dict(iter(tested.groupby(["model", "canaries"], sort=False)))
    tones = colours(tested["model"].unique(), {"model": colours(["unedited"])["unedited"]})
    smallest = min(map(len, groups.values()))
    for axis, measure in zip(axes[0], MEASURES, strict=True):
        uniform_band(axis, smallest, label="uniform: nothing known")
        for (model, kind), part in groups.items():
            style = {"color": tones[model], "linestyle": "-" if kind == "planted" else "--"}
            axis.ecdf(part[f"{measure}_p"], label=f"{model}, {kind} (n = {len(part)})", **style)
        axis.set(title=measure, xlabel="p-value", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0, 0].set(ylabel="share of canaries at or below it")
    axes[0, -1].legend(**BESIDE)
    return finished(figure)
