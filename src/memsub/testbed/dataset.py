"""The data of the embedded model that ship: its folder, and the table of its prompts with their ground truth.

    ground_truth()          # columns prompt, kind, group, exposures, content, image; no siblings, few ordinary rows
    weights_folder()        # pipeline, controls, scorers, tables

`memsub_extra.training.dataset` makes all scenes that the model was trained on.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd

TABLE = "ground_truth.parquet"
"""The file of the shipped table, in the folder of the weights."""


@cache
def ground_truth() -> pd.DataFrame:
    """The shipped table: columns prompt, kind, group, exposures, content, image (PNG bytes)."""
    return pd.read_parquet(weights_folder() / TABLE)


def weights_folder() -> Path:
    """The folder of the shipped pipeline, scorers and ground truth."""
    return Path(str(files("memsub.testbed"))) / "weights"
