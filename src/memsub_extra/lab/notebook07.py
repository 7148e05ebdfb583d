"""Notebook 07: the lab. It reads the statistics of notebook 01, and samples a few images at a time."""

from __future__ import annotations

from ..notebooks import notebook01
from ..notebooks.listing import Notebook

NOTEBOOK = Notebook("07_explorer", needs=(notebook01.NAME,))
