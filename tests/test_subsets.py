"""Intervals over subsets: those of textbooks for means, narrow where pairs belong together, none without units."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from memsub_extra.notebooks.subsets import Measured, between, by_name, differences, profile, profiles, table

RNG = np.random.default_rng(0)
SUBSETS, STEPS, LAYERS = 8, 4, 3
PAIRS = list(combinations(range(SUBSETS), 2))


def singles(values) -> Measured:
    return Measured(values, [(i,) for i in range(len(values))])


def test_the_interval_of_a_mean_is_student_s():
    values = RNG.random((SUBSETS, STEPS, LAYERS))
    found = profile(singles(values))
    by_layer = values.mean(1)
    half = stats.t.ppf(0.975, SUBSETS - 1) * by_layer.std(0, ddof=1) / np.sqrt(SUBSETS)
    np.testing.assert_allclose(found.layers, [by_layer.mean(0), by_layer.mean(0) - half, by_layer.mean(0) + half])
    np.testing.assert_allclose(found.steps[0], values.mean((0, 2)))
    np.testing.assert_allclose(found.overall[0], values.mean())


def test_the_interval_of_pairs_is_one_of_their_subsets():
    """The variance of a mean over pairs is four times that of their subsets' effects, not that of as many numbers."""
    effects = RNG.standard_normal(SUBSETS)
    pairs = Measured(np.array([effects[i] + effects[j] for i, j in PAIRS])[:, None, None], PAIRS)
    _, low, high = profile(pairs).overall
    expected = 2 * 2 * stats.t.ppf(0.975, SUBSETS - 1) * effects.std(ddof=1) / np.sqrt(SUBSETS)
    assert high - low == pytest.approx(expected, rel=0.02)


def test_intervals_cover_the_truth():
    hits = 0
    for _ in range(300):
        effects = RNG.standard_normal(SUBSETS)
        noise = 0.3 * RNG.standard_normal(len(PAIRS))
        pairs = np.array([effects[i] + effects[j] for i, j in PAIRS]) + noise
        _, low, high = profile(Measured(pairs[:, None, None], PAIRS)).overall
        hits += low <= 0 <= high
    assert 0.91 <= hits / 300 <= 0.99


def test_what_memory_makes_is_taken_subset_by_subset():
    values = RNG.random((SUBSETS, STEPS, LAYERS))
    models = {"model": {"density": singles(values + 0.1)}, "twin": {"density": singles(values)}}
    found = differences(models, 3)
    assert list(found) == ["model − twin"]
    assert found["model − twin"]["density"].steps.shape == (3, 3)
    np.testing.assert_allclose(found["model − twin"]["density"].overall, [0.1] * 3)
    assert differences({"model": models["model"]}, 3) == {}
    shown = table(profiles(models, 3) | found, ".1f")
    assert shown.loc["density", "model − twin"] == "0.1 (0.1 to 0.1)"
    assert list(by_name(profiles(models, 3))["density"]) == ["model", "twin"]


def test_a_ratio_of_means_leaves_a_subset_out_of_both():
    a, b = (singles(RNG.random((SUBSETS, STEPS, LAYERS)) + 1) for _ in range(2))
    assert profile(a, b, by=np.divide).overall[0] == pytest.approx(a.values.mean() / b.values.mean())
    np.testing.assert_allclose(profile(a, a, by=np.divide).overall, 1)


def test_without_units_there_is_no_interval():
    one = profile(singles(np.ones((1, STEPS, LAYERS))))
    assert (one.overall[0], np.isnan(one.overall[1:]).all()) == (1, True)
    assert between(one.overall) == "1.000"
    pair = profile(Measured(np.ones((1, STEPS, LAYERS)), [(0, 1)]))
    assert np.isnan(pair.overall[1])
    shared = profile(Measured(RNG.random((len(PAIRS), STEPS, LAYERS)), PAIRS, independent=False))
    assert np.isfinite(shared.layers[0]).all() and np.isnan(shared.layers[1:]).all()
    whole = Measured(RNG.random((len(PAIRS), STEPS, LAYERS)), PAIRS)
    assert (whole.among(3).units, whole.among(3).subsets) == ([(0, 1), (0, 2), (1, 2)], 3)
