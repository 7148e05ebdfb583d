"""The figure of a table by kind of memorized caption."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import colours, finished, panels, shown


def by_kind(table: pd.DataFrame, measure: str = "replication") -> Figure:
    """A rate of each model with its 95 % interval, in percent: one panel per kind, one row per model.

    Args:
        table: of `Run.by_kind`: columns that label a model, then kind, n, references, listed, and `<measure>_rate`,
            `<measure>_low`, `<measure>_high` (NaN where no caption of the kind was judged).
        measure: such as "replication", "exact", "extracted".
    """
    names = list(table.columns[: list(table.columns).index("kind")])
    labels = table[names].astype(str).agg(", ".join, axis=1).str.strip(", ")
    models, parts = list(labels.unique()), list(table.groupby("kind", sort=False))
    figure, axes = panels(len(parts), 2.7, 0.9 + 0.3 * len(models))
    tones = colours(models)
    for axis, (kind, part) in zip(axes[0], parts, strict=True):
        at = np.array([len(models) - models.index(label) for label in labels[part.index]])
        rate, low, high = (100 * part[f"{measure}_{end}"].to_numpy(float) for end in ("rate", "low", "high"))
        tone = [tones[label] for label in labels[part.index]]
        axis.hlines(at, low, high, colors=tone, linewidth=1.2)
        axis.scatter(rate, at, s=18, c=tone, zorder=3)
        counts = f"{part['references'].max()} of {part['listed'].max()} with a training image"
        axis.set_title(f"{kind} (n = {part['n'].max()};\n{counts})", fontsize=8)
        axis.set(xlim=(-3, 103), ylim=(0.4, len(models) + 0.6), xlabel=f"{measure} (%), 95 %")
    axes[0, 0].set_yticks(range(len(models), 0, -1))
    axes[0, 0].set_yticklabels([shown(model, 60) for model in models], fontsize=8, parse_math=False)
    return finished(figure)
