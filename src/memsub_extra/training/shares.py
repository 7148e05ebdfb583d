"""Replication against exposures and against the share of memorized pairs in training, measured by `tools.shares`.

    table = measured()                     # the shipped table: a row for each pair and noise
    rates(table)                           # columns share, exposures, value, low, high, pairs, n
    plots.share_of_pairs(rates(table))     # the figure (`memsub_extra.training.plots`)

All trials continue from one base for equally many steps. `python -m tools.shares` trains them and writes the table.
"""

from __future__ import annotations

from functools import cache

import pandas as pd

from memsub.measure.intervals import clustered
from memsub.testbed.dataset import weights_folder
from memsub_extra.files import load_table

TABLE = "shares.parquet"
"""Columns share (of a trial's samples that are memorized pairs), exposures (of a pair), pair, noise, replicated."""


@cache
def measured() -> pd.DataFrame:
    """The shipped table.

    Raises:
        FileNotFoundError: there is no table; it was not measured.
    """
    return load_table(weights_folder() / TABLE)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """The replication rate by share and exposures, with its 95 % interval and the numbers of pairs and images.

    The unit of the interval is the pair: images of one pair under several noises are not independent.
    """
    rows = []
    for (share, exposures), part in table.groupby(["share", "exposures"]):
        low, high = clustered(part["replicated"], part["pair"])
        numbers = {"value": part["replicated"].mean(), "low": low, "high": high}
        rows.append(
            {"share": share, "exposures": exposures, **numbers, "pairs": part["pair"].nunique(), "n": len(part)}
        )
    return pd.DataFrame(rows)
