"""One function a figure; each returns the matplotlib figure.

    image_grid({"training image": a, "seed 0": b}, captions)    # one labelled row per entry, one column per caption
    label_points(axis, [(x, y, "pruned", colour)])              # labels beside points, without overlap
    similarity_strips(frame, threshold)                         # copy similarity of images, by the exact test's verdict
    exposure_curve(points)                                      # replication rate against exposures
    exact_test(fresh, trained, p)                                  # one image: like its training image, or like others?
    p_values({"verbatim": p, ...}, step)                        # distribution of an exact test's p-values, by kind
    uniform_band(axis, n)                                       # band of the curve of n uniform p-values

    sorted_norms({"memorized": (neurons,), ...}, "")            # norms of a layer's neurons, sorted
    subset_lines({"memorized": measured}, layers, "")           # per layer and per step, one line per subset
    profiles({"model": {"memorized": profile, ...}}, layers, "")    # per layer and per step, with intervals
    mask(values, title)                                         # the marked weights of a layer
    layer_label("down_blocks.0.attentions.1....")               # "down 0.1"

    by_kind(run.by_kind["pruned models"], "replication")        # a rate, one panel per kind of memorized caption
    trade_off(frame, x)                                         # memorization and alignment, one point per model

    roc(curves, areas)                                          # how well a score separates two kinds of captions

`colours(names)` gives each method one colour in all figures (`METHOD_COLOURS`).
"""

# ruff: noqa: F401 (these names are exported)
from .attacks import roc
from .images import image_grid
from .kinds import by_kind
from .labels import label_points
from .layers import layer_label, mask, profiles, sorted_norms, subset_lines
from .replication import exact_test, exposure_curve, p_values, similarity_strips, uniform_band
from .style import BASELINE_COLOURS, METHOD_COLOURS, colours
from .tradeoffs import MEASURES, trade_off
