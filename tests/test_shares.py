"""Share of memorized pairs and exposures against replication: rates by pair, and their figure, of a made-up table."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from memsub.measure.intervals import clustered, interval
from memsub_extra.files import save_table
from memsub_extra.training import plots, shares


def table() -> pd.DataFrame:
    """Two shares and two rungs; under the larger share the upper rung replicates in full, the lower in half."""
    rows = []
    for share, pairs in ((0.05, 4), (0.4, 8)):
        for exposures in (100, 400):
            for pair in range(pairs):
                hit = share == 0.4 and (exposures == 400 or pair % 2 == 0)
                rows += [(share, exposures, 1000 * exposures + pair, noise, hit) for noise in range(4)]
    return pd.DataFrame(rows, columns=["share", "exposures", "pair", "noise", "replicated"])


def test_rates_count_pairs_not_images():
    measured = shares.rates(table()).set_index(["share", "exposures"])
    assert measured["value"].to_dict() == {(0.05, 100): 0, (0.05, 400): 0, (0.4, 100): 0.5, (0.4, 400): 1}
    assert measured["pairs"].tolist() == [4, 4, 8, 8]
    assert measured["n"].tolist() == [16, 16, 32, 32]
    half = measured.loc[(0.4, 100)]
    # All four images of a pair agree, so that eight pairs say less than 32 images would.
    assert (half["low"], half["high"]) == clustered(np.tile([True, False], 16), np.tile(range(8), 4))
    assert half["high"] - half["low"] > 1.5 * np.subtract(*interval(16, 32)[::-1])


def test_the_figure_has_a_line_for_each_share():
    figure = plots.share_of_pairs(shares.rates(table()))
    (axis,) = figure.axes
    lines = [container.lines[0].get_ydata().tolist() for container in axis.containers]
    assert lines == [[0, 0], [50, 100]]
    assert {text.get_text() for text in axis.texts} == {"5 %", "40 %"}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["100", "400"]
    assert "4 to 8 pairs" in axis.get_title()
    assert axis.get_xlabel() and axis.get_ylabel()
    plt.close(figure)


def test_the_shipped_table_is_read_from_beside_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "weights_folder", lambda: tmp_path)
    shares.measured.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"no table at .*shares\.parquet"):
        shares.measured()
    save_table(table(), tmp_path / shares.TABLE)
    assert shares.measured().equals(table())
    shares.measured.cache_clear()
