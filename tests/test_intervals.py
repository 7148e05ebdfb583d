"""Intervals of rates, means, differences, ratios and areas: known values, and how often they hold the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from tools.coverage import Effects, counted_images, covered, fitted, outcomes, used

from memsub.measure.exact import LEVEL
from memsub.measure.intervals import interval
from memsub_extra.notebooks.intervals import (
    auc_interval,
    difference_interval,
    difference_of,
    mean_interval,
    ratio_interval,
    ratio_of,
    share_difference_interval,
    smallest_share,
)

RNG = np.random.default_rng(0)


def outcomes_of(successes: int, n: int) -> np.ndarray:
    return np.arange(n) < successes


def test_shares_of_which_none_differs_are_not_known_to_be_equal():
    shares = np.array([0.0, 0.5, 1.0, 1.0])
    low, high = share_difference_interval(shares, shares)
    assert (-low, high) == (high, pytest.approx(interval(0, 4)[1])) and high > 0.4
    assert difference_interval(shares, shares, paired=True) == (0, 0)
    other = np.array([0.0, 0.0, 1.0, 1.0])
    assert share_difference_interval(shares, other) == difference_interval(shares, other, paired=True)


def test_outcomes_have_wilsons_interval():
    scipys = binomtest(19, 20).proportion_ci(0.95, method="wilson")
    assert interval(19, 20) == pytest.approx((scipys.low, scipys.high))
    assert mean_interval(outcomes_of(81, 263)) == interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = mean_interval(outcomes_of(10, 10))
    assert 0.7 < low < 0.75 and high == 1


def test_numbers_have_a_seeded_bootstrap():
    values = RNG.normal(2, 1, 100)
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(list(values))
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 10, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 10, abs=0.05)


def test_the_difference_of_two_rates_is_newcombes():
    found = difference_interval(outcomes_of(56, 70), outcomes_of(48, 80), paired=False)
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, example (a), method 10


def test_pairs_that_agree_make_a_difference_narrower():
    a, b = outcomes_of(50, 60), outcomes_of(40, 60)  # b never where a is not
    paired, apart = (difference_interval(a, b, paired=p) for p in (True, False))
    assert apart[0] < paired[0] < 1 / 6 < paired[1] < apart[1]
    numbers = RNG.normal(0, 1, 40)
    shifted = numbers - 1 + RNG.normal(0, 0.1, 40)
    low, high = difference_interval(numbers, shifted, paired=True)
    assert 0.9 < low < 1 < high < 1.1
    wide = difference_interval(numbers, shifted, paired=False)
    assert wide[0] < low and high < wide[1]


def test_ratios():
    before = RNG.uniform(0.5, 1, 50)
    low, high = ratio_interval(0.8 * before + RNG.normal(0, 0.02, 50), before, paired=True)
    assert 0.78 < low < 0.8 < high < 0.82
    low, high = ratio_interval(outcomes_of(28, 28), outcomes_of(28, 28), paired=False)
    assert low == pytest.approx(interval(28, 28)[0]) and high > 1  # not [1, 1], as a bootstrap would say
    low, high = ratio_interval(outcomes_of(8, 12), outcomes_of(12, 12), paired=True)
    assert 0.35 < low < 0.45 and 0.9 < high < 1
    assert ratio_interval(outcomes_of(1, 12), outcomes_of(0, 12), paired=True)[1] == np.inf
    assert ratio_of((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) == pytest.approx((2, 2))
    assert difference_of((0.5, 0.4, 0.6), (0.25, 0.25, 0.25)) == pytest.approx((0.15, 0.35))


def test_a_ratio_holds_what_the_difference_at_it_does():
    a, b = (0.6, 0.45, 0.72), (0.8, 0.66, 0.9)
    for end, correlation in ((0, 0.0), (1, 0.0), (0, 0.3), (1, 0.3)):
        ratio = ratio_of(a, b, correlation)[end]
        scaled = tuple(ratio * value for value in b)
        assert min(abs(bound) for bound in difference_of(a, scaled, correlation)) == pytest.approx(0, abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hold = {"difference": 0, "ratio": 0}
    for _ in range(200):
        a, b = RNG.random(40) < 0.8, RNG.random(40) < 0.5
        low, high = difference_interval(a, b, paired=False)
        hold["difference"] += low <= 0.3 <= high
        low, high = ratio_interval(b, a, paired=False)
        hold["ratio"] += low <= 0.625 <= high
    assert all(178 <= count <= 200 for count in hold.values()), hold


def test_the_share_of_the_smallest_p_has_wilsons_interval():
    share = smallest_share([1 / 32] * 19 + [2 / 32], 1 / 32)
    assert list(share) == ["least", "least_low", "least_high"]
    assert list(share.values()) == pytest.approx([0.95, *interval(19, 20)])


def test_an_area_has_an_interval_at_its_ends_too():
    low, high = auc_interval(0.7, 30, 40)
    assert 0.56 < low < 0.6 and 0.79 < high < 0.83
    assert auc_interval(1.0, 28, 28) == pytest.approx((0.928, 1.0), abs=1e-3)
    low, high = auc_interval(0.3, 40, 30)
    assert (1 - high, 1 - low) == pytest.approx(auc_interval(0.7, 30, 40))


def test_too_few_values_say_nothing():
    for found in (
        mean_interval([0.5]),
        difference_interval([1.0, 2.0], [1.0], paired=False),
    ):
        assert np.isnan(found).all()
    with pytest.raises(ValueError, match="2 values against 1"):
        ratio_interval([1.0, 2.0], [1.0], paired=True)
    with pytest.raises(ValueError, match=r"\(units, images\) expected"):
        mean_interval(np.ones((2, 2, 2)))


# --- captions and their images -------------------------------------------------------------------------------------


def test_images_of_a_caption_are_no_independent_units():
    alike = np.repeat(outcomes_of(34, 67)[:, None], 4, axis=1)
    low, high = mean_interval(alike)
    assert (low, high) == pytest.approx(interval(34, 67), abs=0.005)
    apart = RNG.random((67, 4)) < 0.5  # of independent ones there are as many as images, or nearly
    low, high = mean_interval(apart)
    assert high - low < 1.3 * np.diff(interval(134, 268)).item()
    numbers = np.repeat(RNG.normal(0, 1, (50, 1)), 4, axis=1)
    assert mean_interval(numbers) == pytest.approx(mean_interval(numbers[:, 0]))


def test_the_order_of_images_within_a_caption_does_not_matter():
    hits = RNG.random((40, 4)) < RNG.random((40, 1))
    shuffled = RNG.permuted(hits, axis=1)
    assert mean_interval(hits) == mean_interval(shuffled)


def test_outcomes_that_are_all_equal_have_a_width():
    none = np.zeros((67, 4), bool)
    assert mean_interval(none) == pytest.approx(interval(0, 67))
    low, high = difference_interval(none, none, paired=True)
    assert low == -high < -0.03
    low, high = mean_interval(np.full(100, 1 / 32), bounds=(1 / 32, 1.0))
    assert low == 1 / 32 and 0.06 < high < 0.07
    assert np.ptp(mean_interval(np.full(100, 1 / 2), bounds=(1 / 32, 1.0))) == 0


def test_two_models_are_compared_image_by_image():
    shared = RNG.random((60, 4))
    a, b = shared < 0.5, shared < 0.4
    paired, apart = (difference_interval(a, b, paired=p) for p in (True, False))
    assert np.ptp(paired) < np.ptp(apart)
    numbers = RNG.normal(0, 1, (60, 4))
    less = numbers - 1 + RNG.normal(0, 0.1, (60, 4))
    low, high = difference_interval(numbers, less, paired=True)
    assert 0.9 < low < 1 < high < 1.1
    low, high = ratio_interval(10 + less, 10 + numbers, paired=True)
    assert 0.85 < low < 0.9 < high < 0.95


def test_intervals_hold_the_truth_of_outcomes_as_those_that_ship():
    """A part of `python -m tools.coverage`."""
    effects = Effects(caption=0.46, captions_agree=0.29, images_agree=0.79)
    held = covered(outcomes((0.5,), 67, 4, effects), 0.5, {"used": used, "by image": counted_images}, 400)
    assert 0.925 <= held["used"] <= 0.975
    assert held["by image"] < 0.92
    assert 0.925 <= covered(outcomes((0.5, 0.4), 33, 4, effects), 0.1, {"used": used}, 400)["used"] <= 0.975


def test_the_fitted_effects_are_those_of_the_simulation():
    """Two thousand captions and forty seeds tell the variances that the shipped audits' few only estimate."""
    effects = Effects(caption=0.4, captions_agree=0.5, images_agree=0.8)
    hits = outcomes((0.6, 0.4), 1000, 40, effects)(np.random.default_rng(1))
    table = pd.concat(
        pd.DataFrame({"p": np.where(x, LEVEL, 1.0).ravel(), "model": name, "pairs": "forget set"}).assign(
            target=np.repeat(np.arange(1000), 40), seed=np.tile(np.arange(40), 1000)
        )
        for name, x in zip("ab", hits, strict=True)
    )
    found = fitted(table)
    assert (found.caption, found.captions_agree) == pytest.approx((0.4, 0.5), abs=0.05)
    assert found.images_agree == pytest.approx(0.8, abs=0.06)
