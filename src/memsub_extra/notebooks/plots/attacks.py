"""What extraction and detection find."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from memsub.measure.intervals import interval

from .style import BESIDE, colours, finished, model_styles


def extraction_curve(frame: pd.DataFrame) -> Figure:
    """Share of captions whose training image was extracted, at its exposures, with 95 % intervals; a colour a model.

    Args:
        frame: columns model, exposures, extracted; one row a caption.
    """
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    rungs = frame.groupby(["model", "exposures"])["extracted"].agg(["sum", "size"])
    models = list(frame["model"].unique())
    for k, (model, style) in enumerate(model_styles(models).items()):
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
    axis.legend(**BESIDE)
    return finished(figure)


def roc(lines: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """ROC curves, a line an entry: a colour a model, a dash a score.

    Args:
        lines: "<model>, <score>" to columns true_positives and false_positives (rates).
    """
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    models = colours(dict.fromkeys(name.partition(", ")[0] for name in lines))
    scores = dict.fromkeys(name.partition(", ")[2].partition(":")[0] for name in lines)
    dashes = dict(zip(scores, cycle(["-", "--", "-.", ":"]), strict=False))
    for name, curve in lines.items():
        model, _, score = name.partition(", ")
        x, y = 100 * curve["false_positives"], 100 * curve["true_positives"]
        style: dict[str, Any] = {"color": models[model], "linestyle": dashes[score.partition(":")[0]]}
        axis.plot(x, y, drawstyle="steps-post", label=name, **style)
    axis.plot([0, 100], [0, 100], ":", color="black", linewidth=1, label="chance")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(**BESIDE)
    return finished(figure)
