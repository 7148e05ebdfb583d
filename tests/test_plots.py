"""Figures: axis labels, legends that say what was compared, one point or line for each thing that was given."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from memsub_extra.lab import plots as lab_plots
from memsub_extra.mitigations import BASELINES
from memsub_extra.notebooks import plots
from memsub_extra.notebooks.plots.style import model_styles
from memsub_extra.notebooks.subsets import Measured, profile
from memsub_extra.unlearning import plots as unlearning_plots

LAYERS = ["down_blocks.0.attentions.0.x", "mid_block.attentions.0.x"]
XY = ("copy_similarity", "prompt_similarity")
POINTS = pd.DataFrame(
    {
        "kind": ["ladder", "ladder", "template"],
        "exposures": [1, 9, 9],
        "exact": [0.0, 1.0, 1.0],
        "exact_low": [0.0, 0.3, 0.4],
    }
).assign(exact_high=[0.7, 1.0, 1.0], captions=[2, 2, 4])
SIMILAR = pd.DataFrame({"kind": ["a", "b"], "similarity": [0.1, 0.9], "exact": [False, True]})
ROC = pd.DataFrame({"false_positives": [0, 1], "true_positives": [0, 1]})
RNG = np.random.default_rng(0)
PAIRS = Measured(RNG.random((3, 3, 2)), [(0, 1), (0, 2), (1, 2)])


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
ATTACKED = {"iteration": 0, "similarity": 0.1, "replicates": False}
AUDITED = pd.DataFrame({"attacked": [0.5, 0.1], "attacked_low": 0.1, "attacked_high": 0.6}, index=["a", "twin"])


MEMBERS = pd.DataFrame({"model": ["twin", "a"], "caption": "its own", "n": 9, "mean": 0.5, "low": 0.4, "high": 0.6})


def attack_work() -> pd.DataFrame:
    work = pd.DataFrame({"model": ["a", "a", "twin", "twin"], "iterations": [0, 10, 50, np.inf], "last": 50})
    work = work.assign(target=[0, 1, 0, 1])
    return pd.concat([work.assign(pairs=pairs) for pairs in ("forget set", "unseen")])


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.sorted_norms({"a": RNG.random(5) + 0.1}, "layer"),
        lambda: plots.subset_lines({"a": PAIRS}, LAYERS, "density (%)"),
        lambda: plots.profiles({"model": {"a": profile(PAIRS)}}, LAYERS, "IoU", reference=0),
        lambda: plots.trade_off(rates(), "exact_rate"),
        lambda: plots.trade_off(rates(), *XY, name="model"),
        lambda: plots.exact_test(RNG.random(255), 0.9, 1 / 256),
        lambda: plots.p_values({"a": RNG.random(9)}, 1 / 32),
        lambda: plots.mask(RNG.random((4, 8)) > 0.5, "layer"),
        lambda: plots.exposure_curve(POINTS),
        lambda: plots.similarity_strips(SIMILAR, 0.5),
        lambda: plots.roc({("a", "x"): ROC}, {("a", "x"): 0.5}),
        lambda: unlearning_plots.attack_curves(attack_work(), (0, 10, 50)),
        lambda: unlearning_plots.beside_references(LEARNED, "steps", "steps", "replicated (%)"),
        lambda: unlearning_plots.block_errors(pd.DataFrame({"step": [0, 1], "pairs": "aside", "error": [1.0, 0.5]})),
        lambda: unlearning_plots.membership_means(MEMBERS, margin=0.1),
        lambda: unlearning_plots.membership_curves(MEMBERS.assign(p=0.5)),
        lambda: unlearning_plots.price(AUDITED.assign(compute=[10.0, 100.0]), {"attacked": "generated (%)"}),
        lambda: lab_plots.layer_bars(pd.Series([0.1, 0.2], LAYERS), "weights (%)"),
        lambda: lab_plots.score_lines({"before": RNG.random((2, 5))}, "score"),
        lambda: lab_plots.attack_lines({"unedited": [ATTACKED]}, 0.5, "x"),
        lambda: unlearning_plots.intervals(AUDITED, {"attacked": "generated (%)"}),
    ],
)
def test_axes_say_what_they_show(make):
    assert labelled(make())


def test_a_line_a_method_through_its_strengths_with_labels_beside_the_points():
    frame = pd.DataFrame({"method": ["none", "a", "a"], "strength": ["", "1", "2"], "exact_rate": [1.0, 0.5, 0.2]})
    frame = frame.assign(relative_alignment=[1.0, 0.9, 0.8], exact_low=0.1, exact_high=0.9, n=20)
    axis = plots.trade_off(frame, "exact_rate").axes[0]
    lines = [line.get_xdata().tolist() for line in axis.lines if line.get_linewidth() > 1]
    assert lines == [[100.0], [50.0, 20.0]]
    assert {text.get_text() for text in axis.texts} == {"none", "1", "a 2"}
    assert axis.get_xlabel() == f"{plots.MEASURES['exact_rate']}; thin: 95 % intervals, 20 captions"
    ends = [path.vertices[:, 0].tolist() for lines in axis.collections for path in lines.get_paths()]
    assert len(ends) == 3 and all(x == pytest.approx([10, 90]) for x in ends)


def test_similarities_are_shown_as_they_are():
    axis = plots.trade_off(rates(1).assign(copy_similarity=0.7), "copy_similarity").axes[0]
    assert axis.lines[0].get_xdata().tolist() == [0.7]


def test_labels_lie_over_no_other_and_beside_their_points():
    _, axis = plt.subplots()
    axis.plot([0.5] * 6, [0.5] * 6, "o")
    plots.label_points(axis, [(0.5, 0.5, f"model {i}", "black") for i in range(6)])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    at = axis.transData.transform((0.5, 0.5))
    assert not any(box.contains(*at) for box in boxes)


def test_an_attack_has_a_panel_for_each_kind_of_pairs_and_a_line_a_model():
    figure = unlearning_plots.attack_curves(attack_work(), (0, 10, 50))
    assert [a.get_title() for a in figure.axes] == [
        "forget set, n = 2 a model",
        "unseen, n = 2 a model",
    ]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"a": [50, 100, 100], "twin": [0, 0, 50]}


def test_removals_stand_beside_the_same_references():
    lines = pd.concat([LEARNED, LEARNED[LEARNED["model"] == "a"].assign(model="b", share=0.9)])
    figure = unlearning_plots.beside_references(lines, "steps", "steps", "replicated (%)")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [[line.get_ydata().tolist() for line in axis.lines] for axis in figure.axes] == [
        [[10, 10], [10, 10]],
        [[10, 10], [90, 90]],
    ]
    assert [text.get_text() for text in figure.axes[1].texts] == ["twin"], "named once, at the end of a row"


def test_images_stand_in_labelled_rows():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    figure = plots.image_grid({"training image": images, "seed 0": images}, list("abc"))
    axis = figure.axes[0]
    places = [image.get_extent() for image in axis.images]
    assert [(left, top) for left, _, _, top in places] == [(j, i) for i in range(2) for j in range(3)]
    labels = {text.get_text(): text.get_position() for text in axis.texts}
    assert list(labels) == ["training\nimage", "seed 0", "a", "b", "c"]
    assert 0 < labels["training\nimage"][1] < 1 < labels["seed 0"][1] < 2  # beside their rows
    assert [0 < labels[text][0] - j < 1 for j, text in enumerate("abc")] == [True] * 3  # above their columns
    axis = plots.image_grid({"seed 0": images}, marked={"seed 0": np.array([True, False, True])}).axes[0]
    assert [patch.get_xy() for patch in axis.patches] == [(0, 0), (2, 0)]
    assert axis.texts[0].get_text() == "seed 0\n2 of 3"
    with pytest.raises(ValueError, match="rows of one length and a caption a column expected"):
        plots.image_grid({"a": images, "b": images[:2]})


def test_layers_are_named_by_block_and_place():
    names = ["down_blocks.0.attentions.1.x", "mid_block.attentions.0.x", "up_blocks.3.attentions.2.x"]
    assert [plots.layer_label(n) for n in names] == ["down 0.1", "mid", "up 3.2"]


MONEY = "costs $20 or $30, #cash$"


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.image_grid({MONEY: np.zeros((1, 4, 4, 3), np.uint8)}, [MONEY], title=MONEY),
        lambda: plots.sorted_norms({MONEY: RNG.random(5) + 0.1}, MONEY),
        lambda: plots.subset_lines({MONEY: PAIRS}, LAYERS, MONEY),
        lambda: plots.profiles({MONEY: {MONEY: profile(PAIRS)}}, LAYERS, MONEY, ordered=True),
        lambda: plots.similarity_strips(SIMILAR.assign(kind=MONEY), 0.5),
        lambda: plots.exposure_curve(POINTS.assign(kind=MONEY)),
        lambda: plots.p_values({MONEY: RNG.random(9)}, 1 / 32),
        lambda: plots.mask(RNG.random((4, 8)) > 0.5, MONEY),
        lambda: plots.trade_off(rates().assign(method=MONEY, strength=MONEY), "exact_rate"),
        lambda: plots.roc({(MONEY, MONEY): ROC}, {(MONEY, MONEY): 0.5}),
        lambda: lab_plots.attack_lines({MONEY: [ATTACKED]}, 0.5, MONEY),
        lambda: unlearning_plots.beside_references(LEARNED.assign(model=MONEY), "steps", MONEY, MONEY),
    ],
)
def test_dollars_in_names_and_captions_are_dollars(make):
    figure = make()
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if "$" in text.get_text() and "mathdefault" not in text.get_text()]
    assert any("$20" in text.get_text() for text in shown)
    assert not any(text.get_parse_math() for text in shown)


def test_a_method_has_one_colour_in_all_figures():
    table = plots.METHOD_COLOURS
    names = ["none", "pruning", "random pruning", "twin", *BASELINES]
    shown = plots.colours(names)
    assert [shown[name] for name in names[:4]] == [
        table[name] for name in ("unedited", "pruned", "density-matched random", "twin")
    ]
    assert [shown[name] for name in BASELINES] == list(plots.BASELINE_COLOURS[: len(BASELINES)])
    assert len(set(shown.values())) == len(names)
    assert plots.colours(["random tokens"])["random tokens"] == shown["random tokens"]  # whatever else is shown
    assert plots.colours(["twin, text magnitude: AUC 0.5"]).popitem()[1] == table["twin"]
    assert model_styles(["pruned", "twin"])["twin"]["linestyle"] == "--"


def test_names_of_no_method_have_colours_that_are_free():
    shown = plots.colours(["10 memorized prompts", "10 ordinary prompts", "empty prompt", "memorized – ordinary"])
    assert list(shown.values())[:2] == [plots.METHOD_COLOURS[name] for name in ("pruned", "ordinary")]
    assert len(set(shown.values())) == 4
    kinds = plots.colours(
        ["verbatim", "verbatim, without tail", "ladder", "verbatim, by the twin", "verbatim, by other"]
    )
    assert kinds["verbatim, by other"] == plots.METHOD_COLOURS["other"]
    assert len(set(kinds.values())) == 5
    assert kinds["verbatim, by the twin"] == plots.METHOD_COLOURS["twin"]
    assert len(plots.colours(map(str, range(30)))) == 30
    assert plots.colours(["regrowth, located"], {"regrowth": (1.0, 0.0, 0.0)})["regrowth, located"] == (1.0, 0.0, 0.0)


def test_a_removal_has_one_colour_in_all_figures():
    colours = unlearning_plots.removal_colours()
    assert len(set(colours.values())) == len(colours) > 5
    taken = {plots.METHOD_COLOURS[name] for name in ("unedited", "pruned", "twin")}
    assert not taken & set(colours.values())


def test_kinds_of_equal_exposures_stand_side_by_side_each_with_its_interval():
    axis = plots.exposure_curve(POINTS).axes[0]
    (rungs, template) = (container[2][0].get_segments() for container in axis.containers)
    assert [segment[:, 1].tolist() for segment in rungs] == [[0, 70], [30, 100]]
    assert template[0][0, 0] > rungs[1][0, 0] == 9
    assert {text.get_text() for text in axis.texts} == {"ladder, n = 2", "template, n = 4"}


def test_every_image_is_a_point_coloured_by_the_verdict():
    axis = plots.similarity_strips(SIMILAR, 0.5).axes[0]
    no, yes = axis.lines[:2]
    assert (no.get_xdata().tolist(), yes.get_xdata().tolist()) == ([0.1], [0.9])
    assert no.get_color() != yes.get_color()


def test_p_values_of_each_kind_have_a_panel_on_common_axes():
    figure = plots.p_values({name: RNG.random(9) for name in "abcde"}, 1 / 256)
    used = [axis for axis in figure.axes if axis.has_data()]
    assert [axis.get_title() for axis in used] == [f"{name}\nn = 9" for name in "abcde"]
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in used}) == 1


def test_lines_are_named_at_their_ends_and_no_name_lies_on_another():
    lines = {name: profile(PAIRS) for name in ("memorized", "ordinary", "random, equal density")}
    figure = plots.profiles({"model": lines, "twin": lines}, LAYERS, "IoU")
    figure.draw_without_rendering()
    for _, right in figure.axes[:2], figure.axes[2:]:
        boxes = [text.get_window_extent() for text in right.texts]
        assert {text.get_text() for text in right.texts} == set(lines)
        assert min(box.x0 for box in boxes) > right.get_window_extent().x1
        heights = sorted((box.y0, box.y1) for box in boxes)
        assert all(above[0] >= below[1] - 1 for below, above in pairwise(heights))
    assert plots.profiles({}, LAYERS, "IoU") is None  # no control model, nothing to compare


def test_legends_lie_beside_the_data():
    figure = plots.similarity_strips(SIMILAR, 0.5)
    figure.draw_without_rendering()
    axis = figure.axes[-1]
    assert axis.get_legend().get_window_extent().x0 > axis.get_window_extent().x1
