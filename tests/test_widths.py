"""The law of row width, on tables whose law is known."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from memsub_extra.store import Store
from memsub_extra.training import plots
from memsub_extra.training.widths import half_interval, half_sparsity, law, stored_law

SPARSITY = (0.01, 0.03, 0.1, 0.3, 0.6)


def table(exponent: float, captions: int = 400) -> pd.DataFrame:
    """Models whose half-sparsity is 0.4 (row / 300) ** exponent."""
    rng, rows = np.random.default_rng(0), []
    for row in (300.0, 1000.0, 3000.0):
        half = 0.4 * (row / 300) ** exponent
        for sparsity in (0.0, *SPARSITY):
            chance = 1 / (1 + (sparsity / half) ** 2)
            rows.append(
                pd.DataFrame(
                    {
                        "row": row,
                        "training": 0,
                        "sparsity": sparsity,
                        "density": sparsity,
                        "caption": range(captions),
                        "replicated": rng.random(captions) < chance,
                        "alignment": 1 - sparsity,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def test_half_sparsity_is_found():
    half = half_sparsity(table(-0.5))
    assert half.to_numpy() == pytest.approx([0.4, 0.4 * 0.3**0.5, 0.4 * 0.1**0.5], rel=0.15)


def test_half_sparsity_of_one_model_has_an_interval_around_it():
    one = table(0.0, captions=100).query("row == 300")
    value, low, high = half_interval(one, draws=60)
    assert low < value < high
    assert value == half_sparsity(one).item() == pytest.approx(0.4, rel=0.25)
    narrower = half_interval(table(0.0, captions=400).query("row == 300"), draws=60)
    assert narrower[2] - narrower[1] < high - low


def test_each_training_of_a_width_counts():
    first = table(-0.5, captions=100)
    again = first[first["row"] == 300].assign(training=1, replicated=False)
    again.loc[again["sparsity"] < 0.1, "replicated"] = True
    one, both = (half_sparsity(part) for part in (first, pd.concat([first, again])))
    assert both.drop((300.0, 1)).equals(one)
    assert 0.03 < both[300.0, 1] < 0.1 < both[300.0, 0]
    before, after = (law(part, widths=(300,), draws=5) for part in (first, pd.concat([first, again])))
    assert after.loc[300, "value"] < before.loc[300, "value"]
    assert after.loc["slope", "value"] > before.loc["slope", "value"]
    assert len(plots.width_tradeoff(pd.concat([first, again])).axes[0].lines) == 4


@pytest.mark.parametrize("exponent", [-1.0, 0.0])
def test_the_law_is_found(exponent):
    line = law(table(exponent, captions=100), widths=(600, 2000), draws=60)
    assert line.loc["slope", "value"] == pytest.approx(exponent, abs=0.12)
    assert line.loc[600, "value"] == pytest.approx(0.4 * 2**exponent, rel=0.15)
    assert (line["low"] < line["value"]).all() and (line["value"] < line["high"]).all()
    assert line.loc["slope", "high"] - line.loc["slope", "low"] < 0.3


def test_a_model_that_always_replicates_has_no_half_sparsity():
    flat = table(0.0).assign(replicated=True)
    assert half_sparsity(flat).isna().all()
    assert law(flat, widths=(600,), draws=3).isna().all(axis=None)


def test_figures():
    frame = table(-1.0, captions=40)
    for figure in (plots.width_tradeoff(frame), plots.width_law(frame, law(frame, (1280, 5120), draws=5))):
        assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)


def test_the_law_of_the_shipped_table_is_computed_once(tmp_path, monkeypatch):
    run = SimpleNamespace(store=Store(tmp_path))
    monkeypatch.setattr("memsub_extra.training.widths.measured", lambda: table(-0.5, captions=20))
    monkeypatch.setattr("memsub_extra.training.widths.law", partial(law, draws=3))
    first = stored_law(run, [600])
    assert first.index.tolist() == ["slope", 600]
    monkeypatch.setattr("memsub_extra.training.widths.law", None)
    assert stored_law(run, [600]).equals(first)
