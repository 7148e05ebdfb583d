"""Figures of the lab, one function a figure. They do not use pyplot, so a thread can draw them.

layer_bars(values, label)                                   # one bar per layer
score_lines({"unedited": (captions, calls)}, label)         # a detection score along the steps
attack_lines({"unedited": [step, ...]}, threshold, title)   # one attack's similarity to its target, as it runs

Lines are labelled at their ends. `draw_bars` and `draw_scores` do the same on a given axis.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ..notebooks.plots.layers import label_layers
from ..notebooks.plots.style import METHOD_COLOURS, colours, finished, label_ends, shown


def layer_place(name: str) -> tuple[str, int]:
    """Side ("down", "mid", "up") and row (0: top) of a layer in the drawing of a UNet with four levels as a U."""
    side = name.partition("_")[0]
    if side == "mid":
        return side, 0
    block = int(name.split(".")[1])
    return side, block if side == "down" else 3 - block


def layer_colours(shared: Mapping[str, float], edited: Collection[str]) -> dict[str, tuple[str, str]]:
    """Colours of each layer's box and name: darker if sets share more of the layer, grey if it is not edited."""
    top = max(shared.values()) or 1.0
    tones = {}
    for name, share in shared.items():
        box = to_hex(colormaps["Blues"](0.1 + 0.7 * share / top))
        tones[name] = (box, "white" if share > 0.65 * top else "black") if name in edited else ("#eee", "#aaa")
    return tones


def layer_bars(values: pd.Series, label: str) -> Figure:
    """A figure with one bar per layer.

    Args:
        values: shares by module name, in execution order; shown times 100.
    """
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    draw_bars(figure.subplots(), values, label)
    return finished(figure)


def draw_bars(axis: Axes, values: pd.Series, label: str) -> None:
    """`layer_bars` on an axis."""
    axis.bar(range(len(values)), 100 * values.to_numpy(), color=METHOD_COLOURS["pruned"])
    label_layers(axis, list(values.index))
    axis.set(ylabel=label, ylim=(0, max(1.0, 110 * values.max())))


def score_lines(lines: Mapping[str, np.ndarray], label: str) -> Figure:
    """A score along the steps of sampling: a thick line for the mean over captions, a thin line for each caption.

    Args:
        lines: name to values (captions, calls).
    """
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    draw_scores(figure.subplots(), lines, label)
    return finished(figure)


def draw_scores(axis: Axes, lines: Mapping[str, np.ndarray], label: str) -> None:
    """`score_lines` on an axis."""
    tones = colours(lines)
    for name, values in lines.items():
        axis.plot(values.T, color=tones[name], alpha=0.3, linewidth=0.8)
        axis.plot(values.mean(0), color=tones[name], linewidth=2)
    axis.set(xlabel="denoising step (thin: a caption)", ylabel=label, ylim=(0, None))
    label_ends(axis, {name: float(values.mean(0)[-1]) for name, values in lines.items()}, tones)


def attack_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float, title: str = "") -> Figure:
    """Similarity to the target along the iterations of an attack. Filled markers: the image replicates the target.

    Args:
        runs: name to the items that `Lab.attack` yields.
        threshold: threshold of the copy metric.
    """
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axis = figure.subplots()
    tones, ends = colours(runs), {}
    for name, steps in runs.items():
        table = pd.DataFrame(list(steps))
        ends[name] = float(table["similarity"].iloc[-1])
        axis.plot(table["iteration"], table["similarity"], color=tones[name])
        hit = table["replicates"].astype(bool)
        for part, face in ((table[hit], tones[name]), (table[~hit], "white")):
            axis.scatter(part["iteration"], part["similarity"], color=tones[name], facecolor=face, zorder=3)
    axis.axhline(threshold, color="black", linestyle="--", linewidth=1)
    mark = f"copy threshold, {threshold:.2f}"
    axis.set(xlabel="iterations of the attack (filled: the image replicates its target)", ylabel="copy similarity")
    axis.set_ylim(min(0.0, *axis.get_ylim()), 1.04)
    axis.set_title(shown(title, 110), fontsize=9, loc="left")
    label_ends(axis, ends | {mark: threshold}, tones | {mark: (0.0, 0.0, 0.0)})
    return finished(figure)
