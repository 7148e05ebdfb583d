"""The lab as one matplotlib figure, for pages without a kernel.

still(shown)    # `explorer.still()` does this for an `Explorer`
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from ..notebooks.plots.layers import layer_label
from ..notebooks.plots.style import finished, shown
from .plots import draw_bars, draw_scores, layer_colours, layer_place

FRAMES = {True: "#b2182b", False: "#1a7a3c", None: "#888888"}
"""Colours of the frames of copies, of images that are no copies, and of images without a verdict."""
_SIDE, _ROW = 0.94, 1.26
"""Side of an image, and height of a row including the line below its images; a column is 1 wide."""


class Cell(NamedTuple):
    """An image (None: no image), the line below it, and whether it is a copy (None: no verdict)."""

    image: np.ndarray | None
    text: str = ""
    copy: bool | None = None


@dataclass(frozen=True)
class Shown:
    """The content of an explorer.

    Attributes:
        controls: name of each control to its value.
        shared: overlap (mean IoU) of sets of memorized prompts in each layer, by module name.
        edited: names of the edited layers.
        captions: captions above the columns of images.
        rows: label of a row to its cells, one for each caption.
        density: share of each layer's weights that is set to zero, by module name.
        scores: name to values (captions, calls) of the detection score.
        status: the line below everything.
    """

    controls: Mapping[str, str]
    shared: Mapping[str, float]
    edited: Collection[str]
    captions: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    density: pd.Series
    scores: Mapping[str, np.ndarray]
    status: str


def still(shown_now: Shown) -> Figure:
    """Controls and layers on the left; on the right images with verdicts, pruned weights by layer, and the score."""
    height = 1.6 * len(shown_now.rows) + 4.1
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 2.6])[0]
    _controls(left, shown_now)
    above, below = right.subfigures(2, 1, squeeze=False, height_ratios=[height - 2.9, 2.9])[:, 0]
    _images(above.subplots(), shown_now)
    bars, lines = below.subplots(1, 2, width_ratios=[1.1, 1])
    draw_bars(bars, shown_now.density, "weights set to zero (%)")
    draw_scores(lines, shown_now.scores, "text magnitude")
    figure.supxlabel(shown(shown_now.status), fontsize=9)
    return finished(figure)


def _controls(figure: SubFigure, shown_now: Shown) -> None:
    above, below = figure.subplots(2, 1)
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.axis("off")
    for i, (name, value) in enumerate(shown_now.controls.items()):
        height = 0.96 - 0.12 * i
        above.text(0.36, height, name, ha="right", va="top", fontsize=9, color="#666666")
        above.text(0.40, height, textwrap.fill(shown(value), 22), va="top", fontsize=9)
    _layers(below, shown_now)


def _layers(axis: Axes, shown_now: Shown) -> None:
    """The network as a U: down on the left, the middle at the bottom, up on the right."""
    places = {name: layer_place(name) for name in shown_now.shared}
    depth = max((row for side, row in places.values() if side != "mid"), default=0)
    tones = layer_colours(shown_now.shared, shown_now.edited)
    for side, direction in (("down", -1), ("up", 1), ("mid", 0)):
        for row in range(depth + 1):
            names = [name for name, place in places.items() if place == (side, row)]
            inner = 0.3 + 0.3 * (depth - row)  # half of the gap between both sides
            start = {-1: -inner - len(names), 1: inner, 0: -0.5}[direction]
            for i, name in enumerate(names):
                at = (start + i, -row if direction else -depth - 1)
                axis.add_patch(Rectangle(at, 0.94, 0.8, facecolor=tones[name][0], edgecolor="#999999", linewidth=0.5))
                label = layer_label(name).replace(" ", "\n")
                axis.text(at[0] + 0.47, at[1] + 0.4, label, ha="center", va="center", fontsize=6, color=tones[name][1])
    axis.set_title("layers that are edited; darker: memorized\nsets share more of it", fontsize=8, color="#666666")
    axis.set(xlim=(-4.7, 4.7), ylim=(-depth - 1.3, 1.0))
    axis.axis("off")


def _images(axis: Axes, shown_now: Shown) -> None:
    columns = len(shown_now.captions)
    for i, (label, cells) in enumerate(shown_now.rows.items()):
        top = i * _ROW
        axis.text(-0.06, top + _SIDE / 2, textwrap.fill(shown(label), 9), ha="right", va="center", fontsize=9)
        for j, cell in enumerate(cells):
            if cell.image is None:
                continue
            axis.imshow(cell.image, extent=(j, j + _SIDE, top + _SIDE, top))
            colour = FRAMES[cell.copy]
            axis.add_patch(Rectangle((j, top), _SIDE, _SIDE, fill=False, edgecolor=colour, linewidth=3))
            below = cell.text.replace(" (", "\n(")
            axis.text(j + _SIDE / 2, top + _SIDE + 0.04, below, ha="center", va="top", fontsize=7)
    for j, caption in enumerate(shown_now.captions):
        axis.text(j + _SIDE / 2, -0.06, textwrap.fill(shown(caption), 20), ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(-0.05, max(columns, 3)), ylim=(_ROW * len(shown_now.rows), -0.05))
    axis.axis("off")
