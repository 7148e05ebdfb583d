"""What is fetched from the web besides prompt lists: their training images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from memsub.registry import Registry

TRAINING_IMAGES: Registry[Callable[[pd.DataFrame, Path], str]] = Registry(
    "memsub.training_images", "source of training images", {}
)
"""Who brings the training images of a published list into a folder: rows (columns url, index) and the folder to a
sentence that says how many were brought."""
