"""Downloads of the training images of published prompt lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from memsub.registry import Registry

TRAINING_IMAGES: Registry[Callable[[pd.DataFrame, Path], str]] = Registry(
    "memsub.training_images", "source of training images", {}
)
"""Functions that download the training images of a published list. They take rows (columns url, index) and a folder,
and return a text with the number of downloaded images."""
