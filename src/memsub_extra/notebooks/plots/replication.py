"""Figures of replication: the exact test, the copy metric, and exposures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BESIDE, colours, finished, label_ends, shown


def similarity_strips(frame: pd.DataFrame, threshold: float) -> Figure:
    """Copy similarity of every image, one row per kind of caption, coloured by the exact test's verdict.

    Metric and test disagree on dark points left of the threshold, and on light points right of it.

    Args:
        frame: columns similarity, kind and exact (the verdict).
    """
    kinds = list(frame["kind"].unique())
    figure, axis = plt.subplots(figsize=(9, 0.55 * len(kinds) + 1.1), layout="constrained")
    rng = np.random.default_rng(0)  # for the heights, which have no meaning
    place = frame["kind"].map({kind: i for i, kind in enumerate(kinds)}) + rng.uniform(-0.28, 0.28, len(frame))
    exact = frame["exact"].astype(bool)
    style: dict[str, Any] = {"linestyle": "None", "markersize": 4}
    for verdict, tone, name in ((False, "#b0b0b0", "does not replicate"), (True, "black", "replicates")):
        these = exact == verdict
        axis.plot(frame["similarity"][these], place[these], "o", color=tone, label=name, **style)
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axis.annotate(
        f"threshold {threshold:.2f}", (threshold, -0.55), ha="right", va="bottom", fontsize=8, annotation_clip=False
    )
    axis.set(ylim=(len(kinds) - 0.5, -0.6), yticks=range(len(kinds)))
    axis.set_yticklabels([shown(kind) for kind in kinds], parse_math=False)
    axis.set(xlabel="copy similarity to the training image (cosine of descriptors)", ylabel="captions")
    axis.legend(title="exact test", title_fontsize=8, **BESIDE)
    return finished(figure)


def exposure_curve(points: pd.DataFrame) -> Figure:
    """Share of images that replicate against exposures, with 95 % intervals: first kind as a line, others as points.

    Args:
        points: columns kind, exposures, exact, exact_low, exact_high (rates), captions.
    """
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    kinds = list(points["kind"].unique())
    ends, tones = {}, {}
    for k, (kind, colour) in enumerate(colours(kinds).items()):
        part = points[points["kind"] == kind]
        x, y = part["exposures"] * 1.13**k, 100 * part["exact"]  # kinds with equal exposures are shifted
        errors = np.abs(100 * part[["exact_low", "exact_high"]].T.to_numpy() - y.to_numpy())
        style: dict[str, Any] = {"color": colour, "capsize": 3, "markersize": 6}
        axis.errorbar(x, y, errors, fmt="D" if k else "o-", **style)
        name = f"{kind}, {_counted(part)}"
        ends[name], tones[name] = y.iloc[-1], colour
    axis.set(xscale="log", xlim=(0.8 * points["exposures"].min(), 1.5 * points["exposures"].max()), ylim=(-4, 107))
    ticks = sorted(points["exposures"].unique())
    near = [False, *(later < 1.4 * tick for tick, later in pairwise(ticks))]  # the lower label goes one line down
    axis.set_xticks(ticks, [f"\n{n:,.0f}" if low else f"{n:,.0f}" for n, low in zip(ticks, near, strict=True)])
    axis.minorticks_off()
    axis.set(xlabel="exposures of the layout in training", ylabel="images that replicate (%),\nwith 95 % intervals")
    label_ends(axis, ends, tones)
    return finished(figure)


def _counted(points: pd.DataFrame) -> str:
    counts = points["captions"].astype(int)
    return f"n = {counts.min()}" if counts.nunique() == 1 else f"n = {counts.min()} to {counts.max()}"


def exact_test(fresh: Sequence[float], trained: float, p: float) -> Figure:
    """Similarity of an image to fresh layouts of its content, and to its training image."""
    figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
    tones = colours(["ordinary", "pruned"])
    style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3, "label": f"{len(fresh)} fresh layouts"}
    axis.hist(np.asarray(fresh), bins=40, color=tones["ordinary"], **style)
    axis.axvline(trained, color=tones["pruned"], linewidth=2, label=f"training image\n(p = {p:.3g})")
    axis.set(xlabel="similarity to the sampled image (cosine of blurred pixels)", ylabel="layouts")
    axis.legend(**BESIDE)
    return finished(figure)


def p_values(kinds: Mapping[str, np.ndarray], step: float, columns: int = 4) -> Figure:
    """Distribution of an exact test's p-values, one panel per kind: the share of images at or below each p.

    Without memorization, p is uniform, and the curve lies within the grey band in 95 % of samples (Kolmogorov's
    distance). If all pairs are memorized, it rises to 100 % at the smallest p.

    Args:
        kinds: title of a panel to its p-values.
        step: the smallest possible p.
    """
    rows = -(-len(kinds) // columns)
    shape: dict[str, Any] = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, min(columns, len(kinds)), figsize=(9, 2.35 * rows + 0.4), **shape)
    for axis, (name, p), colour in zip(axes.flat, kinds.items(), colours(kinds).values(), strict=False):
        uniform_band(axis, len(p), step)
        axis.plot([0, *np.sort(p), 1], [*np.linspace(0, 1, len(p) + 1), 1], drawstyle="steps-post", color=colour)
        axis.set_title(f"{shown(name)}\nn = {len(p)}", fontsize=9)
        axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.06), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axis in axes.flat[len(kinds) :]:
        axis.axis("off")
    for axis in axes.flat[max(0, len(kinds) - axes.shape[1]) : len(kinds)]:  # the lowest of each column
        axis.set_xlabel("p-value")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("share at or below it")
    return finished(figure)


def uniform_band(axis: Axes, n: int, step: float = 0.0, label: str | None = None) -> None:
    """The diagonal, and a grey band that contains the whole curve of n uniform p-values in 95 % of samples.

    Args:
        step: the p-values are multiples of it.
        label: label of the diagonal in a legend.
    """
    from scipy.stats import kstwo  # takes a second to import

    half, at = kstwo.ppf(0.95, n) + step / 2, np.linspace(0, 1, 201)  # Kolmogorov's distance
    axis.fill_between(at, np.clip(at - half, 0, 1), np.clip(at + half, 0, 1), color="0.9", linewidth=0)
    axis.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label=label)
