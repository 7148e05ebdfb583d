"""Figures of the trade-off: replication against quality on unseen prompts."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .labels import Label, label_points
from .style import colours, finished

MEASURES = {
    "exact_rate": "held-out memorized captions replicated, exact test (%)",
    "replication_rate": "held-out memorized captions replicated, copy metric (%)",
    "copy_similarity": "copy similarity to the training image, held-out memorized captions",
    "relative_alignment": "relative alignment of unseen captions (%)",
}
"""Axis labels of measures."""
_STARS = {"none": "*", "unedited": "*", "twin": "X", "other": "P"}
"""Markers of the models that have no edit."""


def trade_off(frame: pd.DataFrame, x: str, y: str = "relative_alignment", name: str = "method") -> Figure:
    """One point per model or strength, with its 95 % intervals, and a line through the strengths of a method.

    The horizontal axis is memorization, the vertical axis quality: the best corner is the upper left. Names and
    strengths are beside their points.

    Args:
        frame: columns `name`, `x`, `y` (keys of `MEASURES`), optionally strength (a text) and intervals (for
            "exact_rate": exact_low and exact_high).
    """
    figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
    texts: list[Label] = []
    names = frame[name].unique()
    for (method, colour), marker in zip(colours(names).items(), cycle("osDv^Pd"), strict=False):
        part = frame[frame[name] == method]
        strengths = list(part["strength"]) if "strength" in part else [""] * len(part)
        at = list(zip(_scaled(part, x), _scaled(part, y), strict=True))
        _intervals(axis, part, x, y, colour)
        style: dict[str, Any] = {"color": colour, "markeredgecolor": "white", "markeredgewidth": 0.5}
        style |= {"markersize": 13, "zorder": 4} if method in _STARS else {"markersize": 7, "zorder": 3}
        joined = "-" if any(strengths) and len(part) > 1 else "None"
        axis.plot(*zip(*at, strict=True), _STARS.get(method, marker), linestyle=joined, linewidth=1.2, **style)
        last = len(at) - 1
        for i, ((a, b), strength) in enumerate(zip(at, strengths, strict=True)):
            if strength or i == last:
                text = f"{method} {strength}".strip() if i == last else strength
                texts.append((a, b, text, colour))
    axis.set(xlabel=_label(x, frame), ylabel=_label(y, frame))
    axis.margins(0.08)
    label_points(axis, sorted(texts, key=lambda label: -len(label[2])))  # long labels first
    return finished(figure)


def _scaled(frame: pd.DataFrame, column: str) -> pd.Series:
    """Shares in percent, similarities as they are."""
    return frame[column] if column.startswith("copy") else 100 * frame[column]


def _intervals(axis: Axes, frame: pd.DataFrame, x: str, y: str, colour: Any) -> None:
    """The 95 % intervals that a frame has, as thin lines."""
    style: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.35}
    for column, other, draw in ((x, y, axis.hlines), (y, x, axis.vlines)):
        low, high = (f"{column.split('_')[0]}_{end}" for end in ("low", "high"))
        if low in frame:
            scale = 1 if column.startswith("copy") else 100
            draw(_scaled(frame, other), scale * frame[low], scale * frame[high], **style)


def _label(column: str, frame: pd.DataFrame) -> str:
    shown = MEASURES.get(column, column)
    if f"{column.split('_')[0]}_low" not in frame or "n" not in frame or column == "relative_alignment":
        return shown
    known = ""
    if "references" in frame:  # if images are missing
        most = frame.loc[frame["references"].idxmax()]
        known = f", {most['references']:.0f} of {most['listed']:.0f} with a training image"
    return f"{shown}; thin: 95 % intervals, {frame['n'].max():.0f} captions{known}"
