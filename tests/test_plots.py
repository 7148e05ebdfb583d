"""Figures: axis labels, legends that say what was compared, one point or line for each thing that was given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from memsub import plots

LAYERS = ["down_blocks.0.attentions.0.x", "mid_block.attentions.0.x"]
XY = ("copy_similarity", "prompt_similarity")
LADDER = pd.DataFrame({"prompt": list("aabb"), "exposures": [1, 1, 9, 9], "replicated": [0, 0, 1, 1]})
RNG = np.random.default_rng(0)


def labelled(figure) -> bool:
    """Whether every axis that is drawn on says what it shows, somewhere in its row and column."""
    axes = [a for a in figure.axes if a.has_data()]
    return any(a.get_xlabel() for a in axes) and any(a.get_ylabel() for a in axes)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def rates(n: int = 6) -> pd.DataFrame:
    columns = ["exact_rate", "replication_rate", "relative_alignment", "copy_similarity", "prompt_similarity"]
    frame = pd.DataFrame(RNG.random((n, len(columns))), columns=columns)
    contrasts = np.resize(["empty", "ordinary", "random"], n)
    return frame.assign(contrast=contrasts, steps=10, sparsity=0.1, method=contrasts, strength="1", model=contrasts)


LEARNED = pd.DataFrame(
    {"model": ["a", "twin"] * 2, "taught": "ordinary pairs", "lr": 1e-4, "steps": [0, 0, 9, 9], "share": 0.1, "n": 9}
).assign(low=0.0, high=0.4)
AUDITED = pd.DataFrame({"attacked": [0.5, 0.1], "attacked_low": 0.1, "attacked_high": 0.6}, index=["a", "twin"])


def attack_work() -> pd.DataFrame:
    work = pd.DataFrame({"model": ["a", "a", "twin", "twin"], "iterations": [0, 10, 50, np.inf], "last": 50})
    return pd.concat([work.assign(pairs=pairs) for pairs in ("removed", "fresh")])


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.heatmaps({"a": RNG.random((3, 2)), "b": RNG.random((3, 2))}, LAYERS, "norm"),
        lambda: plots.sorted_norms({"a": RNG.random(5) + 0.1}, "layer"),
        lambda: plots.curves({"a": [RNG.random((3, 2))] * 2}, LAYERS, "density (%)"),
        lambda: plots.spread({"m = 1": RNG.random((4, 3, 2))}, LAYERS, "IoU"),
        lambda: plots.tradeoff(rates(), *XY, dict(zip(XY, "xy", strict=True))),
        lambda: plots.sweep(rates(), {"unedited": rates(1).iloc[0]}, "exact_rate"),
        lambda: plots.methods(rates(), *XY, dict(zip(XY, "xy", strict=True))),
        lambda: plots.exact_test(RNG.random(255), 0.9, 1 / 256),
        lambda: plots.p_values({"a": RNG.random(9)}),
        lambda: plots.mask(RNG.random((4, 8)) > 0.5, "layer"),
        lambda: plots.exposure_curve(LADDER),
        lambda: plots.similarity_histograms(pd.DataFrame({"kind": ["a", "b"], "similarity": [0.1, 0.9]}), 0.5),
        lambda: plots.roc({"a": pd.DataFrame({"false_positives": [0, 1], "true_positives": [0, 1]})}, "x", "y"),
        lambda: plots.extraction_curve(LADDER.assign(model=list("abab"), extracted=[False, True] * 2)),
        lambda: plots.attack_curves(attack_work(), (0, 10, 50)),
        lambda: plots.relearning(LEARNED),
        lambda: plots.recognition(pd.DataFrame({"model": "a", "given": "x", "t": [1, 2], "error": [0.1, 0.2]})),
        lambda: plots.intervals(AUDITED, {"attacked": "drawn (%)"}),
    ],
)
def test_axes_say_what_they_show(make):
    assert labelled(make())


def test_a_panel_a_contrast_and_a_point_a_setting():
    figure = plots.sweep(rates(6), {"unedited": rates(1).iloc[0], "twin": rates(1).iloc[0]}, "replication_rate")
    assert [a.get_title() for a in figure.axes] == [
        "against the empty prompt",
        "against ordinary prompts",
        "weights at random",
    ]
    assert "copy metric" in figure.axes[0].get_xlabel()
    assert [line.get_label() for line in figure.axes[0].lines] == ["unedited", "twin", "first 10 steps"]
    assert len(figure.axes[0].lines[2].get_xdata()) == 2


def test_a_line_a_method():
    labels = {"exact_rate": "replicated", "relative_alignment": "kept"}
    figure = plots.methods(rates(6), "exact_rate", "relative_alignment", labels)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["empty", "ordinary", "random"]
    assert figure.axes[0].get_xlabel() == "replicated (%)"


@pytest.mark.parametrize("draw", ["sweep", "methods"])
def test_rates_that_have_intervals_show_them_and_their_n(draw):
    frame = rates(6).assign(exact_low=0.1, exact_high=0.9, n=20)
    if draw == "sweep":
        axis = plots.sweep(frame, {}, "exact_rate").axes[0]
    else:
        labels = {"exact_rate": "replicated", "relative_alignment": "kept"}
        axis = plots.methods(frame, "exact_rate", "relative_alignment", labels).axes[0]
    assert axis.get_xlabel().endswith("(thin: 95 % intervals, n = 20)")
    ends = [path.vertices[:, 0].tolist() for lines in axis.collections for path in lines.get_paths()]
    assert ends
    assert all(x == pytest.approx([10, 90]) for x in ends)


def test_extraction_is_told_with_intervals_side_by_side():
    frame = pd.DataFrame(
        {"model": ["a", "a", "a", "b", "b", "b"], "exposures": [1, 9, 9] * 2, "extracted": [0, 1, 0] * 2}
    )
    axis = plots.extraction_curve(frame).axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1\n(n = 1)", "9\n(n = 2)"]
    points = {c.get_label(): (c[0].get_xdata(), c[0].get_ydata()) for c in axis.containers}
    assert [points[name][1].tolist() for name in "ab"] == [[0, 50], [0, 50]]
    assert (points["a"][0] < points["b"][0]).all()


def test_an_attack_has_a_panel_for_each_kind_of_pairs_and_a_line_a_model():
    figure = plots.attack_curves(attack_work(), (0, 10, 50))
    assert [a.get_title() for a in figure.axes] == [
        "memorized pictures, n = 2 a model",
        "pictures never trained on, n = 2 a model",
    ]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"a": [50, 100, 100], "twin": [0, 0, 50]}


def test_pictures_stand_in_labelled_rows():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    figure = plots.image_grid({"training image": images, "seed 0": images}, list("abc"))
    axis = figure.axes[0]
    places = [image.get_extent() for image in axis.images]
    assert [(left, top) for left, _, _, top in places] == [(j, i) for i in range(2) for j in range(3)]
    told = {text.get_text(): text.get_position() for text in axis.texts}
    assert list(told) == ["training\nimage", "seed 0", "a", "b", "c"]
    assert 0 < told["training\nimage"][1] < 1 < told["seed 0"][1] < 2  # beside their rows
    assert [0 < told[text][0] - j < 1 for j, text in enumerate("abc")] == [True] * 3  # above their columns
    with pytest.raises(ValueError, match="rows of one length and a caption a column expected"):
        plots.image_grid({"a": images, "b": images[:2]})


def test_layers_are_named_by_block_and_place():
    names = ["down_blocks.0.attentions.1.x", "mid_block.attentions.0.x", "up_blocks.3.attentions.2.x"]
    assert [plots.layer_label(n) for n in names] == ["down 0.1", "mid", "up 3.2"]
