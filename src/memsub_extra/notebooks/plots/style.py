"""The style of all figures: one colour a method, legends beside the data, and text without formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from memsub.io.files import printable
from memsub_extra.mitigations import BASELINES

Colour = tuple[float, float, float]

if plt.get_backend().lower().endswith("inline"):
    # Notebooks draw figures when they show them; without this, pyplot would also draw each of them before.
    plt.switch_backend(plt.get_backend())  # otherwise pyplot does so, and adds a hook, at the first figure
    plt.uninstall_repl_displayhook()

_BLUE, _ORANGE, _GREEN, _RED, _PINK, _BROWN, _ROSE, _GREY, _YELLOW, _SKY = sns.color_palette("colorblind")
_PURPLE: Colour = (0.38, 0.22, 0.58)  # the palette's ten belong to methods
METHOD_COLOURS: dict[str, Colour] = {
    "unedited": (0.0, 0.0, 0.0),
    "pruned": _BLUE,
    "density-matched random": _ORANGE,
    "ordinary": _GREEN,
    "twin": _GREY,
    "other": _PURPLE,
}
"""Colour of each method in all figures. Kinds of prompts have the colour of the edit that they locate."""
BASELINE_COLOURS: tuple[Colour, ...] = (_RED, _PINK, _SKY, _BROWN, _ROSE, _YELLOW)
"""Colours of baselines, in the order of their registry."""
_FREE = (_RED, _PINK, _SKY, _BROWN, _ROSE, _GREEN, _BLUE, _ORANGE, _YELLOW, _GREY)
"""Colours for other names: first those that no method has, except yellow, which is faint on white."""
ALIASES = {
    "none": "unedited",
    "model": "unedited",
    "pruning": "pruned",
    "memorized": "pruned",
    "by other": "other",
    "pruned, located on ordinary prompts": "ordinary",
    "against the empty prompt": "pruned",
    "random": "density-matched random",
    "random pruning": "density-matched random",
    "pruned at random": "density-matched random",
}
"""Other names of methods in tables, to those in `METHOD_COLOURS`."""
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "fontsize": 8, "frameon": False}
"""Options of a legend beside the data."""


def colours(names: Iterable[Any], more: Mapping[str, Colour] | None = None) -> dict[str, Colour]:
    """A colour for each name: that of its method in `METHOD_COLOURS`, or for other names a free one.

    A name may begin with a method ("unedited, text magnitude") or contain a kind of prompts ("10 memorized prompts").

    Args:
        more: colours of methods that are not in `METHOD_COLOURS`.
    """
    table = METHOD_COLOURS | dict(zip(BASELINES, cycle(BASELINE_COLOURS), strict=False)) | dict(more or {})
    known = {str(name): table.get(_method(str(name), table)) for name in names}
    taken = {colour for colour in known.values() if colour is not None}
    free = cycle([colour for colour in _FREE if colour not in taken])
    return {name: colour if colour is not None else next(free) for name, colour in known.items()}


def _method(name: str, table: Mapping[str, Any]) -> str:
    """The method or kind of prompts in a name; the name itself if there is none."""
    for candidate in (name, re.split(r"[,:]", name)[0]):
        if (method := ALIASES.get(candidate, candidate)) in table:
            return method
    kinds = {word for word in ("memorized", "ordinary", "twin", "by other") if re.search(rf"\b{word}\b", name)}
    kind = kinds.pop() if len(kinds) == 1 else name
    return ALIASES.get(kind, kind)


def model_styles(models: Sequence[Any], more: Mapping[str, Colour] | None = None) -> dict[str, dict[str, Any]]:
    """Colour (from `colours`), line, marker and label of each model; the twin is dashed."""
    return {
        name: {"color": colour, "linestyle": "--" if name == "twin" else "-", "marker": marker, "label": name}
        for (name, colour), marker in zip(colours(models, more).items(), cycle("osD^vPX"), strict=False)
    }


def finished(figure: Figure) -> Figure:
    """Removes frames from a figure, and lets no `$` in a caption or name begin a formula; returns the figure.

    Tick labels may be formulas, because logarithmic axes use them; for ticks with names, use `parse_math=False`.
    """
    sns.despine(figure)
    for text in _texts(figure):
        text.set_parse_math(False)
    return figure


def _texts(artist: Artist) -> Iterator[Text]:
    """All text in a figure except tick labels."""
    if isinstance(artist, Text):
        yield artist
    if not isinstance(artist, Tick):
        for child in artist.get_children():
            yield from _texts(child)


def label_ends(axis: Axes, ends: Mapping[str, float], tones: Mapping[str, Colour], gap: float = 0.09) -> None:
    """Writes names of lines at their right ends, in their colours, instead of a legend; close names move apart.

    Call it after the limits of the axis are set.

    Args:
        ends: name to the value at which the line ends.
        gap: the least distance of two names, as a share of the axis.
    """
    low, high = axis.get_ylim()
    names = sorted(ends, key=lambda name: ends[name])
    wanted = (np.array([ends[name] for name in names]) - low) / (high - low)
    places = wanted.copy()
    for _ in range(100):  # neighbours push each other apart, within the axis
        for i in range(1, len(places)):
            if (missing := gap - (places[i] - places[i - 1])) > 1e-9:
                places[i - 1 : i + 1] += np.array([-missing, missing]) / 2
        places += max(0.0, 0.02 - places[0]) if places[-1] < 0.98 else min(0.0, 0.98 - places[-1])
    for name, place in zip(names, places, strict=True):
        axis.annotate(
            name,
            (1.02, place),
            xycoords="axes fraction",
            color=tones[name],
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def shown(text: str, most: int = 300) -> str:
    """A caption or name for a figure: without control characters, and shortened to fit."""
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def panels(n: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Panels side by side that share the vertical axis, and room for a legend beside them; axes of shape (1, n)."""
    return plt.subplots(1, n, figsize=(1.5 + width * n, height), sharey=True, squeeze=False, layout="constrained")
