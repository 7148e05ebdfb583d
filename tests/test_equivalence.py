"""Equivalence by a margin that is stated beforehand, and p-values that are read together."""

import numpy as np
import pytest

from memsub_extra.notebooks.equivalence import MARGINS, Margin, equivalence, holm, verdict

RNG = np.random.default_rng(0)


def test_three_verdicts():
    within = Margin(-0.1, 0.1)
    assert verdict(-0.05, 0.09, within) == "equivalent"
    assert verdict(0.01, 0.09, within) == "equivalent", "what is told apart but lies within the margin"
    assert verdict(0.01, 0.2, within) == verdict(-0.5, -0.2, within) == "different"
    assert verdict(-0.2, 0.05, within) == verdict(np.nan, np.nan, within) == "inconclusive"
    kept = MARGINS["alignment"]
    assert verdict(0.975, 1.2, kept) == "equivalent"
    assert verdict(0.9, 0.99, kept) == "different"
    assert verdict(0.9, 1.01, kept) == "inconclusive"


def test_few_pairs_prove_nothing():
    few, many = (RNG.random((n, 4)) < 0.02 for n in (10, 200))
    other, others = (RNG.random((n, 4)) < 0.02 for n in (10, 200))
    small, large = equivalence(few, other, "rate"), equivalence(many, others, "rate")
    assert (small.verdict, small.n) == ("inconclusive", 10) and small.power < 0.5 and small.needed > 10
    assert (large.verdict, large.n) == ("equivalent", 200) and large.power > 0.9 and large.needed < 200


def test_fewer_than_eight_units_have_no_verdict():
    for name, value in {"mean p": 0.5, "alignment": 0.8}.items():
        same, lower = equivalence([value] * 7, [value] * 7, name), equivalence([value / 9] * 7, [value] * 7, name)
        assert same.verdict == lower.verdict == "inconclusive", "a bootstrap of equal numbers has no width"
        assert equivalence([value] * 8, [value] * 8, name).verdict == "equivalent"


def test_numbers_and_ratios():
    twin = RNG.random(400)
    lower = equivalence(twin**2, twin, "mean p")
    assert lower.verdict == "different" and lower.value == pytest.approx((twin**2 - twin).mean())
    assert equivalence(twin, twin, "mean p").verdict == "equivalent"
    ratio = equivalence(0.99 * twin + 0.01 * RNG.random(400), twin, "alignment")
    assert ratio.verdict == "equivalent" and 0.97 < ratio.low < ratio.value < ratio.high


def test_the_power_is_how_often_equal_models_are_called_equivalent():
    called, powers = 0, []
    for _ in range(200):
        a, b = RNG.normal(0, 1, (2, 60)) * 0.2
        one = equivalence(a, b, "mean p")
        called += one.verdict == "equivalent"
        powers.append(one.power)
    assert called / 200 == pytest.approx(np.mean(powers), abs=0.1)
    assert 0.2 < np.mean(powers) < 0.95


def test_holm():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
