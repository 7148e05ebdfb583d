"""Figures of the lab, one function a figure. pyplot does not know of them, so that a thread can draw them.

layer_bars(values, label)                                   # a bar a layer
score_lines({"before": (captions, calls)}, label)           # a detection score along the steps
attack_lines({"unedited": [step, ...]}, threshold, title)   # one attack's similarity to its target, as it runs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..notebooks.plots.layers import label_layers
from ..notebooks.plots.style import METHOD_COLOURS, colours, finished, shown


def layer_place(name: str) -> tuple[str, int]:
    """Side ("down", "mid", "up") and row, from the top, of a layer in the U of a UNet of four levels."""
    side = name.partition("_")[0]
    if side == "mid":
        return side, 0
    block = int(name.split(".")[1])
    return side, block if side == "down" else 3 - block


def layer_bars(values: pd.Series, label: str) -> Figure:
    """A bar a layer.

    Args:
        values: shares by module name, in execution order; shown times 100.
    """
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(values)), 100 * values.to_numpy(), color=METHOD_COLOURS["pruned"])
    label_layers(axis, list(values.index))
    axis.set(ylabel=label, ylim=(0, max(1.0, 110 * values.max())))
    return finished(figure)


def score_lines(lines: Mapping[str, np.ndarray], label: str) -> Figure:
    """A score along the steps of sampling: the mean over captions, thin a line a caption.

    Args:
        lines: legend entry to values (captions, calls).
    """
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(lines.items(), colours(lines).values(), strict=True):
        axis.plot(values.T, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(values.mean(0), color=colour, linewidth=2, label=f"{name} ({len(values)} captions)")
    axis.set(xlabel="denoising step", ylabel=label, ylim=(0, None))
    axis.legend(fontsize=7, frameon=False)
    return finished(figure)


def attack_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float, title: str = "") -> Figure:
    """Similarity to the target along the iterations of an attack; filled marks: the image replicates it.

    Args:
        runs: legend entry to what `Lab.attack` yields.
        threshold: of the copy metric.
    """
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axis = figure.subplots()
    for (name, steps), colour in zip(runs.items(), colours(runs).values(), strict=True):
        table = pd.DataFrame(list(steps))
        axis.plot(table["iteration"], table["similarity"], color=colour, label=name)
        hit = table["replicates"].astype(bool)
        for part, face in ((table[hit], colour), (table[~hit], "white")):
            axis.scatter(part["iteration"], part["similarity"], color=colour, facecolor=face, zorder=3)
    axis.axhline(
        threshold, color="black", linestyle="--", linewidth=1, label=f"copy metric's threshold ({threshold:.2f})"
    )
    axis.set(xlabel="iterations of the attack (filled: the image replicates its target)", ylabel="copy similarity")
    axis.set_ylim(min(0.0, *axis.get_ylim()), 1.04)
    axis.set_title(shown(title, 110), fontsize=9, loc="left")
    axis.legend(fontsize=7, loc="best", frameon=False)
    return finished(figure)
