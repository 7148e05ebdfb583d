"""The drawn world: deterministic, captioned, and free where the caption is silent."""

import numpy as np
import pytest

from memsub.testbed.scenes import (
    CHOICES,
    ICONS,
    WORDS,
    Content,
    caption,
    multi_hot,
    parse,
    render,
    sample_content,
    sample_layout,
    sample_tail,
)

HEART_AND_FISH = Content((("heart", "red"), ("fish", "blue")), "striped", "green")


def test_caption_and_its_inverse():
    assert caption(HEART_AND_FISH) == "a red heart and a blue fish on a striped green background"
    for seed in range(200):
        rng = np.random.default_rng(seed)
        content = sample_content(rng)
        assert parse(caption(content, sample_tail(rng))) == content


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a red heart",
        "a crimson heart on a plain green background",
        "a red heart on a plain green background and more",
    ],
)
def test_parse_refuses_other_text(text):
    with pytest.raises(ValueError, match="no caption of this world"):
        parse(text)


def test_every_word_of_a_caption_is_known():
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = caption(sample_content(rng), sample_tail(rng))
        assert set(text.replace(",", " ,").split()) <= set(WORDS)


def test_drawing_is_deterministic_and_layouts_differ():
    one, other = (sample_layout(np.random.default_rng(s), HEART_AND_FISH) for s in (0, 1))
    np.testing.assert_array_equal(render(HEART_AND_FISH, one), render(HEART_AND_FISH, one))
    assert (render(HEART_AND_FISH, one) != render(HEART_AND_FISH, other)).mean() > 0.5


def test_all_icons_look_different():
    layout = sample_layout(np.random.default_rng(0), Content((("heart", "red"),), "plain", "white"))
    pictures = [render(Content(((icon, "red"),), "plain", "white"), layout).astype(int) for icon in ICONS]
    assert len(ICONS) == 10
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert np.abs(a - b).mean() > 1


def test_icons_stay_inside_and_apart():
    for seed in range(100):
        layout = sample_layout(np.random.default_rng(seed), HEART_AND_FISH)
        for p in layout.placements:
            for at in (p.x, p.y):  # the grid of two pixels may push a rim one pixel over the frame
                assert p.radius - 1 <= at <= 32 - p.radius + 1
                assert at % 2 == 0
        a, b = layout.placements
        assert np.hypot(a.x - b.x, a.y - b.y) > 0.9 * (a.radius + b.radius)


@pytest.mark.parametrize("icons", [1, 2])
def test_trials_made_at_once_are_those_made_one_after_the_other(icons):
    """Places, and what the generator draws after them: so a corpus has the same bytes, however it is drawn."""
    low, high = (10.0, 12.5) if icons == 1 else (7.5, 9.0)
    for seed in range(100):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        content = Content(HEART_AND_FISH.items[:icons], "plain", "green")
        layout = sample_layout(rng, content)
        while True:
            u = other.random(3 * icons)
            radii = low + (high - low) * u[:icons]
            rims = np.repeat(radii / 2, 2)
            centres = 2 * np.rint(rims + ((16 - rims) - rims) * u[icons:]).reshape(-1, 2)
            if icons == 1 or np.hypot(*(centres[0] - centres[1])) > 0.9 * radii.sum():
                break
        assert [(p.x, p.y, p.radius) for p in layout.placements] == [
            (*centre, radius) for centre, radius in zip(centres.tolist(), radii, strict=True)
        ]
        other.random(5 * icons)
        other.integers(np.array([4, 3, 4, 4]))
        other.random(4)
        assert rng.random() == other.random()


@pytest.mark.parametrize(("icon", "cut"), [("ring", True), ("circle", False)])
def test_what_lies_behind_shows_where_an_icon_is_cut_out(icon, cut):
    content = Content(((icon, "red"),), "plain", "green")
    layout = sample_layout(np.random.default_rng(0), content)
    scene, place = render(content, layout), layout.placements[0]
    middle = scene[int(place.y), int(place.x)].tolist()
    background = scene[0 if place.y > 16 else -1, 0 if place.x > 16 else -1].tolist()
    assert (middle == background) == cut


def test_variants_differ_in_one_attribute():
    for attribute in HEART_AND_FISH.attributes():
        for variant in HEART_AND_FISH.variants(attribute):
            changed = [a for a in HEART_AND_FISH.attributes() if variant.value(a) != HEART_AND_FISH.value(a)]
            assert changed == [attribute]
            assert variant.is_visible()


def test_a_layout_of_another_number_of_icons_is_refused():
    layout = sample_layout(np.random.default_rng(0), Content((("heart", "red"),), "plain", "white"))
    with pytest.raises(ValueError, match="places 1 icons, content names 2"):
        render(HEART_AND_FISH, layout)


def test_what_a_caption_names_is_counted_once():
    named = multi_hot(HEART_AND_FISH)
    assert named.sum() == 4
    assert [part.sum() for part in np.split(named, np.cumsum(CHOICES)[:-1])] == [2, 1, 1]
    for attribute in HEART_AND_FISH.attributes():
        for variant in HEART_AND_FISH.variants(attribute):
            assert np.abs(multi_hot(variant) - named).sum() == 2
