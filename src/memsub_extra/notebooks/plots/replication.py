"""Which images replicate a training image: the exact test, the copy metric, and exposures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from memsub.measure.intervals import interval
from memsub.measure.metric import CopyMetric

from .style import BESIDE, colours, finished


def similarity_histograms(frame: pd.DataFrame, threshold: float) -> Figure:
    """Distribution of copy similarity for each kind of caption, with the metric's threshold.

    Args:
        frame: columns similarity and kind.
    """
    kinds = frame["kind"].unique()
    figure, axes = plt.subplots(
        len(kinds),
        1,
        figsize=(7, 1.25 * len(kinds) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (kind, colour) in zip(axes[:, 0], colours(kinds).items(), strict=True):
        values = frame.loc[frame["kind"] == kind, "similarity"]
        percent = np.full(len(values), 100 / len(values))
        axis.hist(
            values, bins=np.linspace(-0.4, 1, 57), weights=percent, color=colour, edgecolor="white", linewidth=0.3
        )
        axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axis.set(ylabel="images (%)", yscale="symlog", yticks=[0, 1, 10, 100], yticklabels=["0", "1", "10", "100"])
        label = f"{kind}: {len(values)} images, {(values > threshold).mean():.0%} above the threshold ({threshold:.2f})"
        axis.set_title(label, loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("copy similarity to the training image (cosine of descriptors)")
    return finished(figure)


def exposure_curve(ladder: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Share of images that replicate against exposures, with Wilson's 95 % intervals over captions.

    Args:
        ladder: columns prompt, exposures, replicated; one row an image.
        others: the same for kinds to show as single points (column kind).
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    captions = int(ladder.groupby("exposures")["prompt"].nunique().median())
    parts = {f"ladder ({captions} captions a rung)": ladder}
    if others is not None:
        parts |= {str(kind): part for kind, part in others.groupby("kind", sort=False)}
    for (name, colour), part in zip(colours(parts).items(), parts.values(), strict=True):
        points = pd.DataFrame([_rung(rung) for _, rung in part.groupby("exposures")])
        errors = 100 * np.abs(points[["low", "high"]].T.to_numpy() - points["share"].to_numpy())
        line = "o-" if part is ladder else "D"
        style: dict[str, Any] = {"color": colour, "capsize": 3, "markersize": 5, "zorder": 2 if part is ladder else 3}
        axis.errorbar(points["exposures"], 100 * points["share"], errors, fmt=line, label=name, **style)
    axis.set(xscale="log", ylim=(-3, 103))
    axis.set(xlabel="exposures of the pair in training", ylabel="images that replicate (%),\n95 % intervals")
    axis.legend(**BESIDE)
    return finished(figure)


def _rung(images: pd.DataFrame) -> dict[str, float]:
    """The share of images that replicate at one number of exposures. Captions are independent, their seeds are not."""
    per_caption = images.groupby("prompt")["replicated"].mean()
    low, high = interval(round(per_caption.sum()), len(per_caption))
    share = float(per_caption.mean())
    return {"exposures": images["exposures"].iloc[0], "share": share, "low": min(low, share), "high": max(high, share)}


def copy_roc(metric: CopyMetric) -> Figure:
    """ROC of the copy metric against the exact test's verdicts on images of edited models, and its threshold.

    The horizontal axis ends where the curve has reached the top.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    chosen, roc = metric.roc, metric.roc["roc"]
    x, y = (100 * np.asarray(roc[rate]) for rate in ("false_positives", "true_positives"))
    blue = colours(["pruned"])["pruned"]
    axis.plot(x, y, drawstyle="steps-post", color=blue, label="every threshold")
    point = (100 * chosen["false_positives"], 100 * chosen["true_positives"])
    axis.plot(*point, "ko", label=f"the metric's, {metric.threshold:.2f}: {point[1]:.0f} % against {point[0]:.1f} %")
    right = min(100.0, max(10.0, 2 * point[0]))
    axis.set(
        xlim=(-0.02 * right, right),
        ylim=(-2, 102),
        xlabel=f"false positives: images that the exact test\ncalls no copy (%, n = {chosen['distinct']})",
        ylabel=f"true positives: images that it\ncalls copies (%, n = {chosen['copies']})",
    )
    axis.legend(loc="lower right", fontsize=8, title="copy metric", title_fontsize=8)
    return finished(figure)


def exact_test(fresh: Sequence[float], own: float, p: float) -> Figure:
    """Similarity of an image to fresh layouts of its content, and to its training image."""
    figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
    tones = colours(["ordinary", "pruned"])
    style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3, "label": f"{len(fresh)} fresh layouts"}
    axis.hist(np.asarray(fresh), bins=40, color=tones["ordinary"], **style)
    axis.axvline(own, color=tones["pruned"], linewidth=2, label=f"training image\n(p = {p:.3g})")
    axis.set(xlabel="similarity to the sampled image (cosine of blurred pixels)", ylabel="layouts")
    axis.legend(**BESIDE)
    return finished(figure)


def p_values(kinds: Mapping[str, np.ndarray]) -> Figure:
    """Distribution of the exact test's p-values: the share of images at or below each, a line a kind of caption."""
    figure, axis = plt.subplots(figsize=(8.5, 3.8), layout="constrained")
    for (name, p), colour in zip(kinds.items(), colours(kinds).values(), strict=True):
        axis.ecdf(np.asarray(p), color=colour, label=f"{name} ({len(p)} images)")
    level = 1 / 256
    at = np.geomspace(level, 1, 200)
    axis.plot(at, at, "k:", linewidth=1, label="uniform: nothing remembered")
    axis.axvline(level, color="gray", linewidth=0.8)
    axis.set(xscale="log", xlim=(0.8 * level, 1.1), ylim=(-0.03, 1.03))
    axis.set(xlabel="p-value of the exact test", ylabel="share of images at or below it")
    axis.legend(**BESIDE)
    return finished(figure)
