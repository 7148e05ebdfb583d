"""Notebook 01: where the method looks. What it captures, all later notebooks read."""

from __future__ import annotations

from memsub.activations import ActivationStats
from memsub_extra.run.run import Run

from .listing import Notebook


def captured(run: Run) -> tuple[ActivationStats, ActivationStats]:
    """Statistics of all groups of prompts, and of the empty prompt."""
    return run.grid.statistics, run.grid.null()


NAME = "01_activation_capture"
NOTEBOOK = Notebook(NAME, experiments={"capture of the grid": captured})
