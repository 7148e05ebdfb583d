"""What differs between layers and steps: activations, densities, overlaps, masks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BESIDE, colours, finished


def layer_label(name: str) -> str:
    """Short form of a feed-forward layer's module name: "down 0.1", "mid", "up 3.2" (block, position in the block)."""
    parts = name.split(".")
    where = parts[0].removesuffix("_blocks").removesuffix("_block")
    return where if where == "mid" else f"{where} {parts[1]}.{parts[3]}"


def label_layers(axis: Axes, layers: Sequence[str]) -> None:
    """Names of layers below a horizontal axis that counts them."""
    labels = [layer_label(name) for name in layers]
    axis.set_xticks(np.arange(len(layers)), labels, rotation=90, fontsize=8, parse_math=False)
    axis.set_xlabel("feed-forward layer, in execution order")


def heatmaps(panels: Mapping[str, np.ndarray], layers: Sequence[str], label: str) -> Figure:
    """Layers by steps, one panel an entry, all on one colour scale.

    Args:
        panels: title to values of shape (steps, layers).
        label: what the values are, with their unit.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.1 * len(panels) + 1, 4.2), squeeze=False, layout="constrained", sharey=True
    )
    low, high = min(float(np.min(v)) for v in panels.values()), max(float(np.max(v)) for v in panels.values())
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(textwrap.fill(title, 28), fontsize=10)
        label_layers(axis, layers)
    axes[0, 0].set_ylabel("denoising step")
    figure.colorbar(image, ax=axes, label=label)
    return finished(figure)


def sorted_norms(sets: Mapping[str, np.ndarray], title: str) -> Figure:
    """Norms of one layer's neurons at one step, largest first, a line a set of prompts.

    Args:
        sets: legend entry to norms of shape (neurons,).
    """
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for (name, norms), colour in zip(sets.items(), colours(sets).values(), strict=True):
        axis.plot(np.arange(1, len(norms) + 1), np.sort(norms)[::-1], color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel="rank of the neuron", ylabel="norm aⱼ / √m", title=title)
    axis.legend(**BESIDE)
    return finished(figure)


def _two_panels(rows: int, layers: Sequence[str], label: str, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """A row of panels an entry: per layer on the left, per step on the right; axes of shape (rows, 2)."""
    figure, axes = plt.subplots(rows, 2, figsize=(10, height * rows), squeeze=False, sharey="all", layout="constrained")
    for left, right in axes:
        label_layers(left, layers)
        right.set_xlabel("denoising step")
        left.set_ylabel(label)
    return figure, axes


def curves(rows: Mapping[str, Sequence[np.ndarray]], layers: Sequence[str], label: str) -> Figure:
    """A line a subset, per layer (mean over steps) and per step (mean over layers); a row of panels an entry.

    Args:
        rows: title to arrays of shape (steps, layers), one a subset.
    """
    figure, axes = _two_panels(len(rows), layers, label)
    for (left, right), (title, subsets), colour in zip(axes, rows.items(), colours(rows).values(), strict=True):
        for values in subsets:
            left.plot(values.mean(0), color=colour, alpha=0.6, linewidth=1)
            right.plot(values.mean(1), color=colour, alpha=0.6, linewidth=1)
        left.set_title(f"{title}: per layer, a line a subset ({len(subsets)})", fontsize=10, loc="left")
        right.set_title("per step", fontsize=10, loc="left")
    return finished(figure)


def spread(lines: Mapping[str, np.ndarray], layers: Sequence[str], label: str, title: str = "") -> Figure:
    """Mean over pairs per layer and per step, with a band of one standard deviation over the pairs; a line an entry.

    Args:
        lines: legend entry to values of shape (pairs, steps, layers).
    """
    figure, axes = _two_panels(1, layers, label, height=3.8)
    ordered = all("=" in name for name in lines)  # "m = 10", "m = 20": a scale
    tones = sns.color_palette("viridis", len(lines)) if ordered else colours(lines).values()
    for (name, values), colour in zip(lines.items(), tones, strict=True):
        for axis, per_pair in zip(axes[0], (values.mean(1), values.mean(2)), strict=True):
            x, mean, deviation = np.arange(per_pair.shape[1]), per_pair.mean(0), per_pair.std(0)
            axis.plot(x, mean, color=colour, label=f"{name} ({len(values)} pairs)")
            axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axes[0, 1].legend(**BESIDE)
    axes[0, 0].set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=11)
    return finished(figure)


def mask(values: np.ndarray, title: str) -> Figure:
    """Which weights of a layer are marked: rows are outputs, columns neurons."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    axis.imshow(values, aspect="auto", cmap="Greys", interpolation="nearest")
    axis.set(xlabel="neuron j", ylabel="output i", title=f"{title} (black: marked)")
    return finished(figure)
