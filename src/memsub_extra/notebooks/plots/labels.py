"""Labels beside points instead of legends, without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .style import shown

Label = tuple[float, float, str, Any]
"""A point in data coordinates, its text and its colour."""
_DISTANCES = (7, 11, 18, 27, 38, 52)
"""Possible distances of a label from its point, in points; the nearest free place is used."""
_SIDES = [(x, y) for x, y in product((1, -1, 0), (0, 1, -1)) if x or y]


def label_points(axis: Axes, labels: Sequence[Label], fontsize: float = 8) -> None:
    """Writes each label beside its point, where it overlaps least with other labels, points and lines.

    A label without room nearby gets a thin line to its point. Call this after everything else is drawn.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout determines the positions of data on the page
    points = _drawn(axis)
    taken: list[Bbox] = []
    for x, y, text, colour in labels:
        at = axis.transData.transform((x, y))
        style = {"fontsize": fontsize, "color": colour, "parse_math": False}
        note = axis.annotate(shown(text), (x, y), xytext=(0, 0), textcoords="offset points", **style)
        note.set_in_layout(False)  # the label does not move the panel
        size = note.get_window_extent()
        inside = axis.get_window_extent()
        scale = figure.dpi / 72
        costs = []
        for distance, (right, up) in product(_DISTANCES, _SIDES):
            left = at[0] + scale * distance * right - {1: 0, -1: 1, 0: 0.5}[right] * size.width
            bottom = at[1] + scale * distance * up - {1: 0, -1: 1, 0: 0.5}[up] * size.height
            box = Bbox.from_bounds(left, bottom, size.width, size.height)
            costs.append((_cost(box, taken, points, inside) + distance / 20, box, distance))
        _, box, distance = min(costs, key=lambda each: each[0])
        taken.append(box)
        note.set_position(((box.x0 - at[0]) / scale, (box.y0 - at[1]) / scale))
        if distance > _DISTANCES[1]:
            end = axis.transData.inverted().transform(np.clip(at, box.min, box.max))
            axis.plot([x, end[0]], [y, end[1]], color=colour, linewidth=0.5, alpha=0.6, scalex=False, scaley=False)


def _drawn(axis: Axes) -> np.ndarray:
    """Points on all lines of an axis in page coordinates, including intermediate ones: (points, 2)."""
    lines = [(line.get_transform(), line.get_xydata(), line.get_linestyle() != "None") for line in axis.lines]
    intervals = [each for each in axis.collections if isinstance(each, LineCollection)]
    lines += [(each.get_transform(), segment, True) for each in intervals for segment in each.get_segments()]
    parts = [np.zeros((0, 2))]
    for transform, data, joined in lines:
        ends = transform.transform(np.asarray(data, float))
        parts.append(ends)
        if joined:
            parts += [ends[:-1] + share * np.diff(ends, axis=0) for share in np.linspace(0.05, 0.95, 19)]
    return np.concatenate(parts)


def _cost(box: Bbox, taken: Sequence[Bbox], points: np.ndarray, inside: Bbox) -> float:
    """How much a label would overlap with others or leave the panel."""
    covered = np.all((points > np.asarray(box.min) - 2) & (points < np.asarray(box.max) + 2), axis=1).sum()
    over = sum(100 for other in taken if box.overlaps(other.padded(1)))
    out = max(0, inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
    return float(covered + over + 2 * out)
