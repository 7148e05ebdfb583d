"""Notebook 07: a lab to play in. It reads what notebook 01 captures, and samples a few images at a time."""

from __future__ import annotations

from memsub.run import notebook01
from memsub.run.notebooks import Notebook

NOTEBOOK = Notebook("07_explorer", needs=(notebook01.NAME,))
