"""Figures by layer and step: activations, densities, overlaps, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..subsets import Measured, Profile
from .style import colours, finished, label_ends


def layer_label(name: str) -> str:
    """Short form of a feed-forward layer's module name: "down 0.1", "mid", "up 3.2" (block, position in the block)."""
    parts = name.split(".")
    where = parts[0].removesuffix("_blocks").removesuffix("_block")
    return where if where == "mid" else f"{where} {parts[1]}.{parts[3]}"


def label_layers(axis: Axes, layers: Sequence[str]) -> None:
    """Writes names of layers below a horizontal axis on which layer i is at i."""
    labels = [layer_label(name) for name in layers]
    axis.set_xticks(np.arange(len(layers)), labels, rotation=90, fontsize=8, parse_math=False)
    axis.set_xlabel("feed-forward layer, in execution order")


def sorted_norms(sets: Mapping[str, np.ndarray], title: str) -> Figure:
    """Norms of one layer's neurons at one step, largest first: one labelled line per set of prompts.

    Args:
        sets: name to norms of shape (neurons,).
    """
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    tones = colours(sets)
    for name, norms in sets.items():
        axis.plot(np.linspace(0, 100, len(norms)), np.sort(norms)[::-1], color=tones[name], label=name)
    axis.set(ylim=(0, None), xlabel="share of the layer's neurons, largest norm first (%)", ylabel="norm aⱼ / √m")
    axis.set_title(title, fontsize=10, loc="left")
    label_ends(axis, {name: float(norms.min()) for name, norms in sets.items()}, tones)
    return finished(figure)


def profiles(
    rows: Mapping[str, Mapping[str, Profile]],
    layers: Sequence[str],
    label: str,
    reference: float | None = None,
    ordered: bool = False,
) -> Figure | None:
    """Quantities per layer and per step, with 95 % intervals: two panels per entry of `rows`, one line per quantity.

    All panels share the vertical axis. Lines are labelled at their ends. Without rows (no control model) there is no
    figure.

    Args:
        rows: title to quantities by name.
        label: label of the vertical axis.
        reference: a value to mark: zero for differences, one for ratios.
        ordered: the lines have an order, such as sizes of sets; their colours go from dark to light.
    """
    if not rows:
        return None
    height = 2.5 * len(rows) + 0.7
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(10, height), squeeze=False, sharex="col", sharey=True, layout="constrained"
    )
    for (left, right), (title, lines) in zip(axes, rows.items(), strict=True):
        tones = dict(zip(lines, sns.color_palette("viridis", len(lines)), strict=True)) if ordered else colours(lines)
        for name, line in lines.items():
            for axis, (value, low, high) in ((left, line.layers), (right, line.steps)):
                x = np.arange(len(value))
                axis.plot(x, value, color=tones[name], label=name, marker="o", markersize=2.5, linewidth=1.2)
                axis.fill_between(x, low, high, color=tones[name], alpha=0.2, linewidth=0)
        for axis in (left, right) if reference is not None else ():
            axis.axhline(reference, color="black", linestyle=":", linewidth=1)
        left.set_title(title, fontsize=10, loc="left")
        left.set_ylabel(label)
    for _, right in axes:
        right.set_xlabel("denoising step")
    label_layers(axes[-1, 0], layers)
    for (_, right), lines in zip(axes, rows.values(), strict=True):
        tones = {line.get_label(): line.get_color() for line in right.lines}
        label_ends(right, {name: float(line.steps[0, -1]) for name, line in lines.items()}, tones)
    for axis in axes[:-1].flat:
        axis.set_xlabel("")
    return finished(figure)


def subset_lines(kinds: Mapping[str, Measured], layers: Sequence[str], label: str) -> Figure:
    """Per layer (mean over steps) and per step (mean over layers): one line per subset, one colour per kind."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    tones = colours(kinds)
    for kind, measured in kinds.items():
        for values in measured.values:
            left.plot(values.mean(0), color=tones[kind], alpha=0.6, linewidth=0.9)
            right.plot(values.mean(1), color=tones[kind], alpha=0.6, linewidth=0.9)
    left.set_ylabel(label)
    left.set_title("per layer, a line a subset", fontsize=10, loc="left")
    right.set_title("per step", fontsize=10, loc="left")
    right.set_xlabel("denoising step")
    label_layers(left, layers)
    label_ends(right, {kind: float(m.values[:, -1].mean()) for kind, m in kinds.items()}, tones)
    return finished(figure)


def mask(values: np.ndarray, title: str) -> Figure:
    """The marked weights of a layer: rows are outputs, columns neurons."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    axis.imshow(values, aspect="auto", cmap="Greys", interpolation="nearest")
    axis.set(xlabel="neuron j", ylabel="output i", title=f"{title} (black: marked)")
    return finished(figure)
