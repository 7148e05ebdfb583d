"""One function a figure; each returns the matplotlib figure.

image_grid({"training image": a, "seed 0": b}, captions)    # a labelled row for each entry, a column a caption
similarity_histograms(frame, threshold)                     # one panel a kind of caption
exposure_curve(ladder, others)                              # exposures -> probability of replication
copy_roc(metric)                                            # how the copy metric's threshold was chosen
heatmaps({"memorized": (steps, layers), ...}, layers, "")   # a panel an entry, one colour scale
sorted_norms({"memorized": (neurons,), ...}, "")            # how unequal the neurons of a layer are
curves({"memorized": [(steps, layers), ...]}, layers, "")   # per layer and per step, a line a subset, a row an entry
spread({"m = 10": (pairs, steps, layers)}, layers, "")      # per layer and per step, mean and spread over pairs
sweep(frame, unedited, measure)                             # the same over sparsity, steps and contrast
exact_test(fresh, own, p)                                   # one image: like its training image, or any layout?
p_values({"verbatim": p, ...})                              # distribution of the test's p-values
mask(values, title)                                         # which weights of a layer are marked
tradeoff(frame, x, y, labels)                               # what is still replicated, what is drawn as asked
methods(frame, x, y, labels)                                # the same for other cures, a line a method
extraction_curve(frame)                                     # exposures -> share of captions extracted
roc({"unedited": curve, ...}, xlabel, ylabel)               # how well a score tells two kinds of captions apart
width_tradeoff(table), width_law(table, found)              # models with rows of several widths
attack_curves(work, iterations)                             # iterations of the attack -> share of pictures drawn
relearning(learned)                                         # steps of fine-tuning -> share that comes back
intervals(found, columns)                                   # values of models with their intervals
layer_bars(values, label)                                   # a bar a layer
score_lines({"before": (captions, calls)}, label)           # a detection score along the steps
attack_lines({"unedited": [step, ...]}, threshold, title)   # one attack's similarity to its target, as it runs
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .audit import attack_curve
from .evaluation import interval
from .metrics import CopyMetric
from .testbed.widths import half_sparsity

if plt.get_backend().lower().endswith("inline"):
    # A notebook draws the figures of a cell when it shows them; without this pyplot would draw each before that, too.
    plt.switch_backend(plt.get_backend())  # which pyplot puts off until the first figure, and then hooks itself in
    plt.uninstall_repl_displayhook()


def image_grid(rows: Mapping[str, np.ndarray], captions: Sequence[str] = (), title: str = "") -> Figure:
    """Pictures in rows labelled by the keys; `captions` stand above the columns.

    Args:
        rows: label to uint8 images (columns, height, width, 3), all of one length.

    Raises:
        ValueError: the rows differ in length, or there is not one caption a column.
    """
    lengths = {label: len(images) for label, images in rows.items()}
    columns = max(lengths.values())
    if set(lengths.values()) != {columns} or (captions and len(captions) != columns):
        raise ValueError(
            f"rows of one length and a caption a column expected; got {lengths} and {len(captions)} captions."
        )
    size = (1.35 * columns + 0.9, 1.35 * len(rows) + (0.9 if captions else 0.1))
    figure, axis = plt.subplots(figsize=size, layout="constrained")  # one axis: laying out fifty takes seconds
    side = 0.95
    for i, (label, images) in enumerate(rows.items()):
        axis.text(-0.05, i + side / 2, textwrap.fill(label, 12), ha="right", va="center", fontsize=9)
        for j, image in enumerate(images):
            axis.imshow(image, extent=(j, j + side, i + side, i))
    for j, text in enumerate(captions):
        axis.text(j + side / 2, -0.05, textwrap.fill(text, 19), ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(0, columns), ylim=(len(rows), 0))
    axis.axis("off")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def similarity_histograms(frame: pd.DataFrame, threshold: float) -> Figure:
    """Distribution of copy similarity for each kind of caption, with the metric's threshold.

    Args:
        frame: columns similarity and kind.
    """
    kinds = frame["kind"].unique()
    figure, axes = plt.subplots(len(kinds), 1, figsize=(7, 1.25 * len(kinds) + 0.6), sharex=True, layout="constrained")
    for axis, (kind, colour) in zip(
        np.atleast_1d(axes), zip(kinds, sns.color_palette("deep"), strict=False), strict=True
    ):
        values = frame.loc[frame["kind"] == kind, "similarity"]
        sns.histplot(values, bins=np.linspace(-0.4, 1, 57), stat="percent", color=colour, ax=axis)
        axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axis.set_ylabel("images (%)")
        label = f"{kind}: {len(values)} images, {(values > threshold).mean():.0%} above the threshold ({threshold:.2f})"
        axis.set_title(label, loc="left", fontsize=9)
    np.atleast_1d(axes)[-1].set_xlabel("copy similarity to the training image (cosine of descriptors)")
    sns.despine(figure)
    return figure


def exposure_curve(ladder: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Share of images that replicate against exposures; 95 % intervals over captions (bootstrap).

    Args:
        ladder: columns prompt, exposures, replicated; one row an image.
        others: the same for kinds to show as single points (column kind).
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    per_prompt = ladder.groupby(["exposures", "prompt"], as_index=False)["replicated"].mean()
    sns.lineplot(
        per_prompt, x="exposures", y="replicated", marker="o", seed=0, label="ladder (10 pairs a rung)", ax=axis
    )
    if others is not None:
        points = others.groupby("kind", sort=False)[["exposures", "replicated"]].mean().reset_index()
        sns.scatterplot(
            points,
            x="exposures",
            y="replicated",
            hue="kind",
            style="kind",
            markers=["s", "D", "^"][: len(points)],
            palette="dark",
            s=70,
            zorder=3,
            ax=axis,
        )
    axis.set(
        xscale="log",
        xlabel="exposures of the pair in training",
        ylabel="probability of replication",
        ylim=(-0.03, 1.03),
    )
    axis.legend(title=None, loc="upper left")
    sns.despine(figure)
    return figure


def layer_label(name: str) -> str:
    """Short form of a feed-forward layer's module name: "down 0.1", "mid", "up 3.2" (block, position in the block)."""
    parts = name.split(".")
    where = parts[0].removesuffix("_blocks").removesuffix("_block")
    return where if where == "mid" else f"{where} {parts[1]}.{parts[3]}"


def layer_place(name: str) -> tuple[str, int]:
    """Side ("down", "mid", "up") and row, from the top, of a layer in the U of a UNet of four levels."""
    side = name.partition("_")[0]
    if side == "mid":
        return side, 0
    block = int(name.split(".")[1])
    return side, block if side == "down" else 3 - block


def _label_layers(axis: Axes, layers: Sequence[str]) -> None:
    axis.set_xticks(np.arange(len(layers)), [layer_label(name) for name in layers], rotation=90, fontsize=8)
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
        _label_layers(axis, layers)
    axes[0, 0].set_ylabel("denoising step")
    figure.colorbar(image, ax=axes, label=label)
    return figure


def sorted_norms(sets: Mapping[str, np.ndarray], title: str) -> Figure:
    """Norms of one layer's neurons at one step, largest first, a line a set of prompts.

    Args:
        sets: legend entry to norms of shape (neurons,).
    """
    figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for name, norms in sets.items():
        axis.plot(np.arange(1, len(norms) + 1), np.sort(norms)[::-1], label=name)
    axis.set(xscale="log", yscale="log", xlabel="rank of the neuron", ylabel="norm $a_j / \\sqrt{m}$", title=title)
    axis.legend(fontsize=8)
    sns.despine(figure)
    return figure


def _two_panels(rows: int, layers: Sequence[str], label: str, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, 2, figsize=(10, height * rows), squeeze=False, sharey="all", layout="constrained")
    for left, right in axes:
        _label_layers(left, layers)
        right.set_xlabel("denoising step")
        left.set_ylabel(label)
    sns.despine(figure)
    return figure, axes


def curves(rows: Mapping[str, Sequence[np.ndarray]], layers: Sequence[str], label: str) -> Figure:
    """A line a subset, per layer (mean over steps) and per step (mean over layers); a row of panels an entry.

    Args:
        rows: title to arrays of shape (steps, layers), one a subset.
    """
    figure, axes = _two_panels(len(rows), layers, label)
    for (left, right), (title, subsets), colour in zip(axes, rows.items(), sns.color_palette("deep"), strict=False):
        for values in subsets:
            left.plot(values.mean(0), color=colour, alpha=0.6, linewidth=1)
            right.plot(values.mean(1), color=colour, alpha=0.6, linewidth=1)
        left.set_title(f"{title}: per layer, a line a subset ({len(subsets)})", fontsize=10, loc="left")
        right.set_title("per step", fontsize=10, loc="left")
    return figure


def spread(lines: Mapping[str, np.ndarray], layers: Sequence[str], label: str, title: str = "") -> Figure:
    """Mean over pairs per layer and per step, with a band of one standard deviation over the pairs; a line an entry.

    Args:
        lines: legend entry to values of shape (pairs, steps, layers).
    """
    figure, axes = _two_panels(1, layers, label, height=3.8)
    palette = sns.color_palette("viridis" if all("=" in key for key in lines) else "deep", len(lines))
    for (name, values), colour in zip(lines.items(), palette, strict=True):
        for axis, per_pair in zip(axes[0], (values.mean(1), values.mean(2)), strict=True):
            x, mean, deviation = np.arange(per_pair.shape[1]), per_pair.mean(0), per_pair.std(0)
            axis.plot(x, mean, color=colour, label=f"{name} ({len(values)} pairs)")
            axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axes[0, 1].legend(fontsize=8)
    axes[0, 0].set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}
"""Where a legend goes that would lie on points."""


def tradeoff(frame: pd.DataFrame, x: str, y: str, labels: Mapping[str, str], hue: str = "model") -> Figure:
    """One point a model: memorization to the right, quality up; the best corner is the upper left.

    Args:
        frame: columns `x`, `y`, `hue`.
        labels: axis label of `x` and of `y`.
    """
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    sns.scatterplot(frame, x=x, y=y, hue=hue, style=hue, s=70, ax=axis)
    axis.set(xlabel=labels[x], ylabel=labels[y])
    axis.legend(title=None, fontsize=8, **BESIDE)
    sns.despine(figure)
    return figure


MEASURES = {
    "exact_rate": "held-out memorized captions replicated, exact test (%)",
    "replication_rate": "held-out memorized captions replicated, copy metric (%)",
}
"""Axis labels of the two replication rates."""


def sweep(frame: pd.DataFrame, references: Mapping[str, Mapping[str, float]], measure: str) -> Figure:
    """Replication rate against relative alignment: a panel a contrast, a line a number of steps.

    Args:
        frame: columns contrast, steps, sparsity, `measure`, relative_alignment; intervals are drawn where it has them.
        references: models without an edit by name, with the same columns: the unedited one, the twin.
        measure: a key of `MEASURES`.
    """
    contrasts = list(frame["contrast"].unique())
    size: dict = {"figsize": (4 * len(contrasts), 4), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(contrasts), squeeze=False, sharex=True, sharey=True, **size)
    taus = sorted(frame["steps"].unique())
    colours = dict(zip(taus, sns.color_palette("viridis", len(taus)), strict=True))
    titles = {"empty": "against the empty prompt", "random": "weights at random"}
    for axis, contrast in zip(axes[0], contrasts, strict=True):
        for (name, row), marker in zip(references.items(), ("k*", "kX"), strict=False):
            axis.plot(100 * row[measure], 100 * row["relative_alignment"], marker, markersize=11, label=name)
        for tau, line in frame[frame["contrast"] == contrast].groupby("steps"):
            line = line.sort_values("sparsity")
            x, y = 100 * line[measure], 100 * line["relative_alignment"]
            axis.plot(x, y, "o-", color=colours[tau], label=f"first {tau} steps")
            _across(axis, line, measure, "relative_alignment", colours[tau])
            for at, sparsity in zip(zip(x, y, strict=True), line["sparsity"], strict=True):
                axis.annotate(f"{100 * sparsity:g} %", at, fontsize=7, xytext=(4, 3), textcoords="offset points")
        axis.set_title(titles.get(contrast, f"against {contrast} prompts"), fontsize=10)
        axis.set_xlabel(MEASURES[measure].replace(", ", ",\n") + _counts(frame, measure))
        axis.legend(fontsize=8, loc="lower right")
    axes[0, 0].set(ylabel="relative alignment of never-seen captions (%)", xlim=(-2, 102), ylim=(None, 105))
    sns.despine(figure)
    return figure


def _across(axis: Axes, frame: pd.DataFrame, x: str, y: str, colour: Any) -> None:
    """The intervals of a rate, if the frame has them, as thin lines."""
    low, high = (f"{x.removesuffix('_rate')}_{end}" for end in ("low", "high"))
    if low in frame:
        axis.hlines(100 * frame[y], 100 * frame[low], 100 * frame[high], color=colour, linewidth=1, alpha=0.4)


def _counts(frame: pd.DataFrame, x: str) -> str:
    """What an axis says of these intervals."""
    return (
        f"\n(thin: 95 % intervals, n = {int(frame['n'].iloc[0])})" if f"{x.removesuffix('_rate')}_low" in frame else ""
    )


def exact_test(fresh: Sequence[float], own: float, p: float) -> Figure:
    """Similarity of an image to fresh layouts of its content, and to its training image."""
    figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
    sns.histplot(np.asarray(fresh), bins=40, color="tab:blue", ax=axis, label=f"{len(fresh)} fresh layouts")
    axis.axvline(own, color="tab:red", label=f"training image (p = {p:.3g})")
    axis.set(xlabel="similarity to the sampled image (cosine of blurred pixels)", ylabel="layouts")
    axis.legend(fontsize=8)
    sns.despine(figure)
    return figure


def p_values(kinds: Mapping[str, np.ndarray]) -> Figure:
    """Distribution of the exact test's p-values: the share of images at or below each, a line a kind of caption."""
    figure, axis = plt.subplots(figsize=(8.5, 3.8), layout="constrained")
    for (name, p), colour in zip(kinds.items(), sns.color_palette("deep"), strict=False):
        axis.ecdf(p, color=colour, label=f"{name} ({len(p)} images)")
    at = np.geomspace(1 / 256, 1, 200)
    axis.plot(at, at, "k:", linewidth=1, label="uniform: nothing remembered")
    axis.set(xscale="log", xlabel="p-value of the exact test", ylabel="share of images at or below it")
    axis.axvline(1 / 256, color="gray", linewidth=0.8)
    axis.legend(fontsize=8, **BESIDE)
    sns.despine(figure)
    return figure


def mask(values: np.ndarray, title: str) -> Figure:
    """Which weights of a layer are marked: rows are outputs, columns neurons."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    axis.imshow(values, aspect="auto", cmap="Greys", interpolation="nearest")
    axis.set(xlabel="neuron j", ylabel="output i", title=f"{title} (black: marked)")
    return figure


def methods(frame: pd.DataFrame, x: str, y: str, labels: Mapping[str, str], unit: str = " (%)") -> Figure:
    """A line a method through its strengths; the best corner is the upper left.

    Args:
        frame: columns method, strength (a label), `x` and `y` (shares, or similarities; shown times 100); intervals
            are drawn where it has them.
        labels: axis label of `x` and of `y`.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    names = list(frame["method"].unique())
    left: dict[str, Any] = {"xytext": (-4, 4), "ha": "right"}
    below, above = {"xytext": (4, -10)}, {"xytext": (5, 4)}
    sides = cycle([left, below, above, below])
    for name, colour, side in zip(names, sns.color_palette("deep", len(names)), sides, strict=False):
        part = frame[frame["method"] == name]
        if name in ("none", "twin"):  # on top of the methods that change nothing
            axis.plot(100 * part[x], 100 * part[y], "k*" if name == "none" else "kX", ms=11, label=name, zorder=3)
            continue
        axis.plot(100 * part[x], 100 * part[y], "o-", color=colour, label=name)
        _across(axis, part, x, y, colour)
        for point in part.itertuples():
            at = (100 * getattr(point, x), 100 * getattr(point, y))
            axis.annotate(point.strength, at, fontsize=7, textcoords="offset points", color=colour, **side)
    axis.set(xlabel=f"{labels[x]}{unit}{_counts(frame, x)}", ylabel=f"{labels[y]}{unit}", xlim=(-3, 118))
    axis.set_xticks(range(0, 101, 20))
    axis.legend(title=None, fontsize=8, **BESIDE)
    sns.despine(figure)
    return figure


def bars(values: pd.Series, label: str) -> Figure:
    """A bar an entry, its value beside it."""
    figure, axis = plt.subplots(figsize=(6.5, 0.4 * len(values) + 0.8), layout="constrained")
    axis.bar_label(axis.barh(values.index[::-1], values[::-1]), fmt="%.2f", padding=3, fontsize=8)
    axis.set(xlabel=label, xlim=(0, 1.1 * values.max()))
    sns.despine(figure)
    return figure


def extraction_curve(frame: pd.DataFrame) -> Figure:
    """Share of captions whose training image was extracted, at its exposures, with 95 % intervals; a colour a model.

    Args:
        frame: columns model, exposures, extracted; one row a caption.
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    rungs = frame.groupby(["model", "exposures"])["extracted"].agg(["sum", "size"])
    models = list(frame["model"].unique())
    for k, (model, style) in enumerate(_model_styles(models).items()):
        hits = rungs.loc[model]
        value = 100 * (hits["sum"] / hits["size"]).to_numpy(float)
        bounds = 100 * np.array([interval(int(h), int(n)) for h, n in hits.to_numpy()]).T
        at = np.arange(len(hits)) + 0.7 * ((k + 0.5) / len(models) - 0.5)  # side by side
        style |= {"linestyle": "none", "markersize": 4, "capsize": 2}
        axis.errorbar(at, value, yerr=np.maximum([value - bounds[0], bounds[1] - value], 0), **style)
    axis.set_xticks(range(len(hits)), [f"{e:.0f}\n(n = {n})" for e, n in hits["size"].items()], fontsize=8)
    axis.set(
        xlabel="exposures of the pair in training", ylabel="captions extracted (%),\n95 % intervals", ylim=(-3, 103)
    )
    axis.legend(title=None, fontsize=8, **BESIDE)
    sns.despine(figure)
    return figure


def roc(lines: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """ROC curves, a line an entry.

    Args:
        lines: legend entry to columns true_positives and false_positives (rates).
    """
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for (name, curve), colour in zip(lines.items(), sns.color_palette("Paired", len(lines)), strict=True):
        x, y = 100 * curve["false_positives"], 100 * curve["true_positives"]
        axis.plot(x, y, drawstyle="steps-post", label=name, color=colour)
    axis.plot([0, 100], [0, 100], ":", color="gray", linewidth=1, label="chance")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8, loc="lower right")
    sns.despine(figure)
    return figure


def copy_roc(metric: CopyMetric) -> Figure:
    """ROC of the copy metric against the exact test's verdicts on draws of edited models, and its threshold."""
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    chosen, roc = metric.roc, metric.roc["roc"]
    x, y = (100 * np.asarray(roc[rate]) for rate in ("false_positives", "true_positives"))
    axis.plot(x, y, drawstyle="steps-post", label="copy metric")
    point = (100 * chosen["false_positives"], 100 * chosen["true_positives"])
    axis.plot(*point, "ko", label=f"threshold {metric.threshold:.2f}: {point[1]:.0f} % at {point[0]:.0f} %")
    axis.set(
        xlim=(-2, 102),
        ylim=(-2, 102),
        xlabel=f"draws that do not replicate, above the threshold (%, n = {chosen['distinct']})",
        ylabel=f"draws that replicate, above it (%, n = {chosen['copies']})",
    )
    axis.legend(loc="lower right")
    sns.despine(figure)
    return figure


def width_tradeoff(table: pd.DataFrame) -> Figure:
    """Replication against alignment, and against sparsity: a line a model, a colour a row width.

    Args:
        table: as `testbed.widths.measured`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    colours = dict(zip(sorted(set(table["row"])), sns.color_palette("viridis", table["row"].nunique()), strict=True))
    for (row, training), model in table.groupby(["row", "training"]):
        line = model.groupby("sparsity")[["replicated", "alignment"]].mean().reset_index()
        label = f"rows of {row:.0f} weights" + (", trained again" if training else "")
        style = {"color": colours[row], "linestyle": "--" if training else "-", "marker": "o", "label": label}
        left.plot(100 * line["replicated"], 100 * line["alignment"], **style)
        edited = line[line["sparsity"] > 0]
        right.plot(100 * edited["sparsity"], 100 * edited["replicated"], **style)
    replicated = MEASURES["exact_rate"].replace(", ", ",\n")
    left.set(xlabel=replicated, ylabel="alignment of never-seen captions, relative to the twin (%)")
    right.set(xlabel="sparsity: share of a row at each of ten steps (%)", ylabel=replicated, xscale="log")
    right.axhline(50, color="gray", linestyle=":", linewidth=1)
    left.legend(fontsize=8)
    sns.despine(figure)
    return figure


def width_law(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """The sparsity that leaves half of the pictures against row width: measured, and what the line says elsewhere.

    Args:
        table: as `testbed.widths.measured`; found: as `testbed.widths.law` of it.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    half, elsewhere = half_sparsity(table).reset_index(name="half"), found.drop("slope")
    axis.plot(half["row"], 100 * half["half"], "o", label="measured: a point a training")
    at = elsewhere.index.to_numpy(float)
    ends = np.array([half["row"].min(), at.max()])
    axis.plot(ends, 100 * elsewhere["value"].iloc[0] * (ends / at[0]) ** found.loc["slope", "value"], "C1", linewidth=1)
    errors = 100 * np.abs(elsewhere[["low", "high"]].T.to_numpy() - elsewhere["value"].to_numpy())
    told = "the line, with the bootstrap's 95 % interval"
    axis.errorbar(at, 100 * elsewhere["value"], errors, fmt="s", color="C1", capsize=3, label=told)
    axis.axhline(1, color="gray", linestyle=":", linewidth=1, label="the paper's 1 %")
    axis.set(xscale="log", yscale="log", xlabel="weights in a row", ylabel="sparsity that leaves 50 % (% of a row)")
    axis.legend(fontsize=8)
    sns.despine(figure)
    return figure


def _panels(n: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Panels side by side that share the vertical axis, and room for a legend beside them."""
    return plt.subplots(1, n, figsize=(1.5 + width * n, height), sharey=True, squeeze=False, layout="constrained")


def _labelled(figure: Figure, axes: np.ndarray, label: str, title: str | None = None) -> Figure:
    """With what the shared axis says, and the legend beside the last panel."""
    axes[0, 0].set_ylabel(label)
    axes[0, -1].legend(fontsize=8, title=title, **BESIDE)
    sns.despine(figure)
    return figure


def _model_styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each model; the twin is dashed."""
    colours = sns.color_palette("husl", len(models))
    return {
        model: {"color": colour, "linestyle": "--" if model == "twin" else "-", "marker": marker, "label": model}
        for model, colour, marker in zip(models, colours, cycle("osD^vPX"), strict=False)
    }


def _share_line(axis: Axes, line: pd.DataFrame, x: str, style: Mapping[str, Any], alpha: float) -> None:
    """Shares (columns share, low, high) in percent over a column, their intervals as a band."""
    axis.plot(line[x], 100 * line["share"], **style)
    axis.fill_between(line[x], 100 * line["low"], 100 * line["high"], color=style["color"], alpha=alpha)


def attack_curves(work: pd.DataFrame, iterations: Sequence[int]) -> Figure:
    """Pictures that the embedding attack has drawn by so many iterations, with 95 % intervals: a line a model.

    Args:
        work: columns model, pairs ("removed", "fresh"), iterations, last, and perhaps start; one row a target, a panel
            a kind of pairs and a start.
    """
    kinds = {"removed": "memorized pictures", "fresh": "pictures never trained on"}
    begun = work["start"] if "start" in work and work["start"].nunique() > 1 else pd.Series("", work.index)
    panels = list(work.groupby([work["pairs"], begun], sort=False))
    figure, axes = _panels(len(panels), 4.8 if len(panels) < 3 else 3.4, 4)
    styles = _model_styles(work["model"].unique())
    for axis, ((kind, start), panel) in zip(axes[0], panels, strict=True):
        for model, part in panel.groupby("model", sort=False):
            style = styles[str(model)] | {"markersize": 4}
            _share_line(axis, attack_curve(part, iterations), "iterations", style, alpha=0.12)
        told = f"{kinds[str(kind)]}, n = {len(panel) // panel['model'].nunique()} a model"
        axis.set_title(told + (f",\nfrom {start}" if start else ""), fontsize=10)
        axis.set_xscale("symlog", linthresh=5)
        axis.set(xlabel="iterations of the embedding attack", ylim=(-3, 103))
        shown = [i for i in iterations if i <= panel["last"].min()]
        axis.set_xticks(shown, [f"{i:g}" for i in shown], fontsize=8)
    return _labelled(figure, axes, "pictures drawn (%)")


def relearning(learned: pd.DataFrame) -> Figure:
    """Removed pictures that come back, though not taught, while the model is fine-tuned on others; with 95 % intervals.

    Args:
        learned: columns model (a line each), taught and lr (a panel each), steps, share, low, high, n.
    """
    panels = list(learned.groupby(["taught", "lr"], sort=False))
    figure, axes = _panels(len(panels), 2.9, 3.6)
    styles = _model_styles(learned["model"].unique())
    for axis, ((taught, lr), part) in zip(axes[0], panels, strict=True):
        for model, line in part.groupby("model", sort=False):
            _share_line(axis, line, "steps", styles[str(model)] | {"markersize": 3}, alpha=0.08)
        axis.set_title(f"taught {taught},\nlearning rate {lr:g}, n = {part['n'].iloc[0]}", fontsize=9)
        axis.set(xlabel="steps", ylim=(-3, 103))
    return _labelled(figure, axes, "other removed pictures replicated (%)")


def recognition(found: pd.DataFrame) -> Figure:
    """How well pictures are denoised, over the steps of the schedule: a panel a model, a line what it is given.

    Args:
        found: columns model, given, t, error.
    """
    models = list(found["model"].unique())
    figure, axes = _panels(len(models), 2.6, 3.4)
    for axis, model in zip(axes[0], models, strict=True):
        for given, line in found[found["model"] == model].groupby("given", sort=False):
            axis.plot(line["t"], line["error"], "o-", markersize=3, label=str(given))
        axis.set_title(model, fontsize=9)
        axis.set(xlabel="t", yscale="log")
    return _labelled(figure, axes, "error of the predicted noise", "given")


def intervals(found: pd.DataFrame, columns: Mapping[str, str], reference: str = "twin") -> Figure:
    """Values of models with their intervals, a panel a column; the reference's value is a line.

    Args:
        found: one row a model; of each column also `<column>_low` and `<column>_high`.
        columns: column to what its axis says.
    """
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(2 + 2.7 * len(columns), 0.8 + 0.32 * len(found)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    at = np.arange(len(found))[::-1]
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        value, low, high = (100 * found[c].to_numpy(float) for c in (column, f"{column}_low", f"{column}_high"))
        axis.errorbar(value, at, xerr=np.maximum([value - low, high - value], 0), fmt="o", markersize=4, capsize=2)
        if reference in found.index:
            axis.axvline(100 * float(found.loc[reference, column]), color="gray", linestyle=":", linewidth=1)
        axis.set(xlabel=label, yticks=at)
        axis.set_yticklabels(found.index, fontsize=8)
    axes[0, 0].set_ylabel("model")
    sns.despine(figure)
    return figure


# --- for the lab: figures that pyplot does not know of, so that a thread can draw them --------------------------------


def layer_bars(values: pd.Series, label: str) -> Figure:
    """A bar a layer.

    Args:
        values: shares by module name, in execution order; shown times 100.
    """
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(values)), 100 * values.to_numpy(), color="tab:blue")
    _label_layers(axis, list(values.index))
    axis.set(ylabel=label, ylim=(0, max(1.0, 110 * values.max())))
    sns.despine(figure)
    return figure


def score_lines(lines: Mapping[str, np.ndarray], label: str) -> Figure:
    """A score along the steps of sampling: the mean over captions, thin a line a caption.

    Args:
        lines: legend entry to values (captions, calls).
    """
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(lines.items(), sns.color_palette("deep"), strict=False):
        axis.plot(values.T, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(values.mean(0), color=colour, linewidth=2, label=f"{name} ({len(values)} captions)")
    axis.set(xlabel="denoising step", ylabel=label, ylim=(0, None))
    axis.legend(fontsize=7)
    sns.despine(figure)
    return figure


def attack_lines(runs: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float, title: str = "") -> Figure:
    """Similarity to the target along the iterations of an attack; filled marks: the picture replicates it.

    Args:
        runs: legend entry to what `Lab.attack` yields.
        threshold: of the copy metric.
    """
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axis = figure.subplots()
    for (name, steps), colour in zip(runs.items(), cycle(sns.color_palette("deep")), strict=False):
        found = pd.DataFrame(list(steps))
        axis.plot(found["iteration"], found["similarity"], color=colour, label=name)
        hit = found["replicates"].astype(bool)
        for part, face in ((found[hit], colour), (found[~hit], "white")):
            axis.scatter(part["iteration"], part["similarity"], color=colour, facecolor=face, zorder=3)
    axis.axhline(
        threshold, color="black", linestyle="--", linewidth=1, label=f"copy metric's threshold ({threshold:.2f})"
    )
    axis.set(xlabel="iterations of the attack (filled: the picture replicates its target)", ylabel="copy similarity")
    axis.set_ylim(min(0.0, *axis.get_ylim()), 1.04)
    axis.set_title(textwrap.shorten(title, 110), fontsize=9, loc="left")
    axis.legend(fontsize=7, loc="best")
    sns.despine(figure)
    return figure
