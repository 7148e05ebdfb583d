"""Figures of detection: how well scores separate memorized from other captions."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from .labels import Label, label_points
from .style import colours, finished, panels


def roc(curves: Mapping[tuple[str, str], pd.DataFrame], areas: Mapping[tuple[str, str], float]) -> Figure:
    """ROC curves: one panel per score, one line per model, labelled with its area.

    Args:
        curves: (model, score) to columns true_positives and false_positives (rates).
        areas: areas under these curves, by the same keys.
    """
    scores = list(dict.fromkeys(score for _, score in curves))
    tones = colours(dict.fromkeys(model for model, _ in curves))
    figure, axes = panels(len(scores), 4.1, 4)
    for axis, score in zip(axes[0], scores, strict=True):
        axis.plot([0, 100], [0, 100], ":", color="black", linewidth=1)
        texts: list[Label] = [(72.0, 72.0, "chance", "black")]
        for model, colour in tones.items():
            curve = curves[model, score]
            x, y = 100 * curve["false_positives"], 100 * curve["true_positives"]
            axis.plot(x, y, color=colour, drawstyle="steps-post")
            middle = int((x + y - 100).abs().argmin())  # where false negatives equal false positives
            texts.append((x.iloc[middle], y.iloc[middle], f"{model}: {areas[model, score]:.2f}", colour))
        axis.set(title=score, xlabel="unseen captions above the threshold (%)", xlim=(-3, 103), ylim=(-3, 103))
        label_points(axis, texts, fontsize=9)
    axes[0, 0].set_ylabel("memorized captions above it (%)")
    return finished(figure)
