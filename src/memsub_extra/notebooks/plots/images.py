"""Images in rows and columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .style import colours, finished, shown


def image_grid(
    rows: Mapping[str, np.ndarray],
    captions: Sequence[str] = (),
    title: str = "",
    marked: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Images in rows labelled by the keys; `captions` are above the columns.

    Args:
        rows: label to uint8 images (columns, height, width, 3), all of one length.
        marked: label of a row to bool (columns,): whether an image gets a frame; their number is below the label.

    Raises:
        ValueError: the rows differ in length, or there is not one caption for each column.
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
    marked, frame = marked or {}, colours(["marked"])["marked"]
    for i, (label, images) in enumerate(rows.items()):
        counted = f"\n{np.sum(marked[label])} of {columns}" if label in marked else ""
        axis.text(-0.05, i + side / 2, textwrap.fill(shown(label), 12) + counted, ha="right", va="center", fontsize=9)
        for j, image in enumerate(images):
            axis.imshow(image, extent=(j, j + side, i + side, i))
            if label in marked and marked[label][j]:
                axis.add_patch(Rectangle((j, i), side, side, fill=False, edgecolor=frame, linewidth=3.5))
    for j, text in enumerate(captions):
        axis.text(j + side / 2, -0.05, textwrap.fill(shown(text), 19), ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(0, columns), ylim=(len(rows), 0))
    axis.axis("off")
    if title:
        figure.suptitle(textwrap.fill(shown(title), int(11 * size[0])), fontsize=11)
    return finished(figure)
