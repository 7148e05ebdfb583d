"""Intervals of rates, means, differences, ratios and areas: known values, and how often they hold the truth."""

import numpy as np
import pytest

from memsub_extra.notebooks.intervals import (
    auc_interval,
    difference_interval,
    difference_of,
    interval,
    jackknife_interval,
    mean_interval,
    ratio_interval,
    ratio_of,
)

RNG = np.random.default_rng(0)


def outcomes(successes: int, n: int) -> np.ndarray:
    return np.arange(n) < successes


def test_outcomes_have_wilsons_interval():
    assert mean_interval(outcomes(81, 263)) == interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = mean_interval(outcomes(10, 10))
    assert 0.7 < low < 0.75 and high == 1


def test_numbers_have_a_seeded_bootstrap():
    values = RNG.normal(2, 1, 100)
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(list(values))
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 10, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 10, abs=0.05)
    narrow = mean_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_difference_of_two_rates_is_newcombes():
    found = difference_interval(outcomes(56, 70), outcomes(48, 80), paired=False)
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, example (a), method 10


def test_pairs_that_agree_make_a_difference_narrower():
    a, b = outcomes(50, 60), outcomes(40, 60)  # b never where a is not
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
    low, high = ratio_interval(outcomes(28, 28), outcomes(28, 28), paired=False)
    assert low == pytest.approx(interval(28, 28)[0]) and high > 1  # not [1, 1], as a bootstrap would say
    low, high = ratio_interval(outcomes(8, 12), outcomes(12, 12), paired=True)
    assert 0.35 < low < 0.45 and 0.9 < high < 1
    assert ratio_interval(outcomes(1, 12), outcomes(0, 12), paired=True)[1] == np.inf
    assert ratio_of((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) == pytest.approx((2, 2))
    assert difference_of((0.5, 0.4, 0.6), (0.25, 0.25, 0.25)) == pytest.approx((0.15, 0.35))


def test_a_ratio_holds_what_the_difference_at_it_does():
    a, b = (0.6, 0.45, 0.72), (0.8, 0.66, 0.9)
    for end, correlation in ((0, 0.0), (1, 0.0), (0, 0.3), (1, 0.3)):
        ratio = ratio_of(a, b, correlation)[end]
        scaled = tuple(ratio * value for value in b)
        assert min(abs(bound) for bound in difference_of(a, scaled, correlation)) == pytest.approx(0, abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hold = {"difference": 0, "ratio": 0, "mean": 0}
    for _ in range(200):
        a, b, numbers = RNG.random(40) < 0.8, RNG.random(40) < 0.5, RNG.exponential(1, 40)
        low, high = difference_interval(a, b, paired=False)
        hold["difference"] += low <= 0.3 <= high
        low, high = ratio_interval(b, a, paired=False)
        hold["ratio"] += low <= 0.625 <= high
        low, high = difference_of((numbers.mean(), *_t(numbers)), (0, 0, 0))
        hold["mean"] += low <= 1 <= high
    assert all(178 <= count <= 200 for count in hold.values()), hold


def _t(values: np.ndarray) -> tuple[float, float]:
    return jackknife_interval(values.mean(), [np.delete(values, i).mean() for i in range(len(values))])


def test_the_jackknife_of_a_mean_is_students_interval():
    values = RNG.normal(5, 2, 12)
    half = 2.201 * values.std(ddof=1) / np.sqrt(12)
    assert _t(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)


def test_the_jackknife_counts_subsets_and_not_their_pairs():
    """IoU of every two of ten subsets: 45 pairs, which are not 45 independent values."""
    effect = RNG.normal(0, 1, 10)
    pairs = [(i, j) for i in range(10) for j in range(i)]
    values = np.array([effect[i] + effect[j] for i, j in pairs])
    left_out = [values[[k not in pair for pair in pairs]].mean() for k in range(10)]
    low, high = jackknife_interval(values.mean(), left_out)
    assert high - low > 1.8 * np.diff(mean_interval(values)).item()


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
        jackknife_interval(1, [1]),
    ):
        assert np.isnan(found).all()
    with pytest.raises(ValueError, match="2 values against 1"):
        ratio_interval([1.0, 2.0], [1.0], paired=True)
