"""Notebook 07: a lab to play in. It reads what notebook 01 captures, and samples a few images at a time."""

from __future__ import annotations

from ..notebooks import notebook01
from ..notebooks.listing import Notebook

NOTEBOOK = Notebook("07_explorer", needs=(notebook01.NAME,))
